//! What a vbd has done.

use core::fmt;

/// How often a number was met, by powers of two.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Histogram([u64; Histogram::NR_BUCKETS]);

impl Histogram {
    /// Bucket `n` is for numbers from 2^n on; the last one, from 4096 on, is for all that are greater.
    const NR_BUCKETS: usize = 13;

    /// Counts a number. 0, which has no bucket, is not counted.
    pub fn count(&mut self, number: usize) {
        if let Some(log2) = number.checked_ilog2() {
            self.0[(log2 as usize).min(Self::NR_BUCKETS - 1)] += 1;
        }
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl core::ops::AddAssign for Histogram {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }
}

/// `1:5,8:2`: five times 1, twice from 8 to 15. `-` where nothing was counted.
impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for (log2, count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            write!(f, "{before}{}:{count}", 1_usize << log2)?;
            before = ",";
        }
        if before.is_empty() { f.write_str("-") } else { Ok(()) }
    }
}

/// Counters of one vbd since it was connected.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Reads that were answered OKAY.
    pub nr_reads: u64,
    /// Writes that were answered OKAY.
    pub nr_writes: u64,
    /// Flushes that were answered OKAY.
    pub nr_flushes: u64,
    /// Barriers that were answered OKAY.
    pub nr_barriers: u64,
    /// Discards that were answered OKAY.
    pub nr_discards: u64,
    /// Sectors read by them.
    pub nr_sectors_read: u64,
    /// Sectors written by them.
    pub nr_sectors_written: u64,
    /// Sectors given up by them; the most that can be counted where there were more.
    pub nr_sectors_discarded: u64,
    /// Requests that were answered ERROR or EOPNOTSUPP.
    pub nr_errors: u64,
    /// Requests that waited on the ring when a turn began, once for each turn that found any.
    pub at_hand: Histogram,
    /// Segments of each read, write, flush and barrier, direct or indirect, whose segments passed
    /// their check, whatever came of it. A flush or barrier that has none is not counted.
    pub segments: Histogram,
}

impl Stats {
    /// Counts sectors that were given up. A frontend has it cost nothing to give up a large disk again
    /// and again: this is the one count that it could have overflow.
    pub(crate) const fn count_discarded(&mut self, nr_sectors: u64) {
        self.nr_sectors_discarded = self.nr_sectors_discarded.saturating_add(nr_sectors);
    }
}

impl core::ops::AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        for (count, more) in [
            (&mut self.nr_reads, other.nr_reads),
            (&mut self.nr_writes, other.nr_writes),
            (&mut self.nr_flushes, other.nr_flushes),
            (&mut self.nr_barriers, other.nr_barriers),
            (&mut self.nr_discards, other.nr_discards),
            (&mut self.nr_sectors_read, other.nr_sectors_read),
            (&mut self.nr_sectors_written, other.nr_sectors_written),
            (&mut self.nr_errors, other.nr_errors),
        ] {
            *count += more;
        }
        self.count_discarded(other.nr_sectors_discarded);
        self.at_hand += other.at_hand;
        self.segments += other.segments;
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} reads ({} sectors), {} writes ({} sectors), {} flushes, {} barriers, \
             {} discards ({} sectors), {} errors",
            self.nr_reads,
            self.nr_sectors_read,
            self.nr_writes,
            self.nr_sectors_written,
            self.nr_flushes,
            self.nr_barriers,
            self.nr_discards,
            self.nr_sectors_discarded,
            self.nr_errors
        )
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Histogram, Stats};
    use std::string::ToString;

    fn histogram(numbers: impl IntoIterator<Item = usize>) -> Histogram {
        let mut histogram = Histogram::default();
        numbers.into_iter().for_each(|number| histogram.count(number));
        histogram
    }

    #[test]
    fn a_number_is_in_the_bucket_of_its_power_of_two() {
        assert_eq!(histogram([]).to_string(), "-");
        assert!(histogram([0, 0]).is_empty());
        assert!(!histogram([1]).is_empty());
        assert_eq!(histogram([1, 2, 3, 4, 7, 8]).to_string(), "1:1,2:2,4:2,8:1");
        assert_eq!(histogram([4095, 4096, 8192, usize::MAX]).to_string(), "2048:1,4096:3");
        let every = "1:1,2:2,4:4,8:8,16:16,32:32,64:64,128:128,256:256,512:512,1024:1024,\
                     2048:2048,4096:1";
        assert_eq!(histogram(0..=4096).to_string(), every);
    }

    #[test]
    fn what_the_rings_did_is_added_up() {
        let one = Stats {
            nr_reads: 1,
            nr_writes: 2,
            nr_flushes: 3,
            nr_barriers: 4,
            nr_discards: 5,
            nr_sectors_read: 6,
            nr_sectors_written: 7,
            nr_sectors_discarded: 8,
            nr_errors: 9,
            at_hand: histogram([1, 32]),
            segments: histogram([11]),
        };
        let mut sum = one;
        sum += one;
        assert_eq!(
            sum,
            Stats {
                nr_reads: 2,
                nr_writes: 4,
                nr_flushes: 6,
                nr_barriers: 8,
                nr_discards: 10,
                nr_sectors_read: 12,
                nr_sectors_written: 14,
                nr_sectors_discarded: 16,
                nr_errors: 18,
                at_hand: histogram([1, 1, 32, 32]),
                segments: histogram([11, 11]),
            }
        );
    }
}
