//! How long requests took, in little memory however many there were.

use std::time::{Duration, Instant};

/// Counts of nanoseconds: exact below 128, in steps of less than 1 % above.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Vec<u64>,
    max_ns: u64,
}

/// A power of two has this many steps, as a power of two.
const STEPS_LOG2: u32 = 7;
const STEPS: u64 = 1 << STEPS_LOG2;

impl Latencies {
    pub fn new() -> Self {
        Self { counts: vec![0; (64 - STEPS_LOG2 as usize + 1) << STEPS_LOG2], max_ns: 0 }
    }

    /// Runs one request and counts how long it took.
    pub fn time<T>(&mut self, request: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = request();
        self.add(begin.elapsed());
        result
    }

    pub fn add(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.counts[step_of(ns)] += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The time that so many percent did not exceed, and at most 1 % more than that; 0 of none.
    pub fn percentile(&self, percent: u64) -> u64 {
        let rank = (self.count() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let step = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        step.map_or(0, |step| last_of(step).min(self.max_ns))
    }

    /// Members of a JSON object.
    pub fn json(&self) -> String {
        let [p50, p90, p99] = [50, 90, 99].map(|percent| self.percentile(percent));
        let (count, max) = (self.count(), self.max_ns);
        format!(
            r#""count": {count}, "p50_ns": {p50}, "p90_ns": {p90}, "p99_ns": {p99}, "max_ns": {max}"#
        )
    }
}

fn step_of(ns: u64) -> usize {
    let power = (ns | (STEPS - 1)).ilog2() + 1 - STEPS_LOG2;
    let step = (u64::from(power) << STEPS_LOG2)
        + if power == 0 { ns } else { (ns >> (power - 1)) & (STEPS - 1) };
    usize::try_from(step).expect("a few thousand")
}

/// The largest number of nanoseconds of a step.
fn last_of(step: usize) -> u64 {
    let (power, low) = (step as u64 >> STEPS_LOG2, step as u64 & (STEPS - 1));
    if power == 0 {
        return low;
    }
    let shift = power - 1;
    ((STEPS | low) << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::Latencies;
    use std::time::Duration;

    fn of(times: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::new();
        times.into_iter().for_each(|ns| latencies.add(Duration::from_nanos(ns)));
        latencies
    }

    #[test]
    fn percentiles_are_exact_where_steps_are_of_1_ns() {
        let hundred = of(1..=100);
        assert_eq!([50, 90, 99].map(|p| hundred.percentile(p)), [50, 90, 99]);
        assert_eq!(of([]).percentile(50), 0);
        assert_eq!(of([7]).percentile(99), 7);
    }

    #[test]
    fn percentiles_are_at_most_1_percent_too_large() {
        for shift in 0..64 {
            let ns = u64::MAX >> shift;
            for ns in [ns, ns / 2 + 1, ns - ns / 3] {
                // Something larger, so that the largest of all does not make it exact.
                let found = of([ns, u64::MAX]).percentile(50);
                assert!(ns <= found && found - ns <= ns / 100, "{ns} {found}");
            }
        }
    }

    #[test]
    fn the_largest_is_exact_and_merged() {
        let mut all = of([1, 2]);
        all.merge(&of([123_457]));
        assert_eq!((all.count(), all.percentile(99)), (3, 123_457));
        assert_eq!(
            all.json(),
            r#""count": 3, "p50_ns": 2, "p90_ns": 123457, "p99_ns": 123457, "max_ns": 123457"#
        );
    }
}
