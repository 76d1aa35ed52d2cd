//! Failures on demand.

use crate::Rng;

/// When operations of one kind fail, and with which status `S`.
#[derive(Clone, Debug)]
pub struct Fault<S> {
    /// Operations still to come until one fails, and what it is told.
    scripted: Vec<(u64, S)>,
    random: Option<(u64, S)>,
    rng: Rng,
    nr_failed: u64,
}

impl<S: Copy> Fault<S> {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { scripted: Vec::new(), random: None, rng, nr_failed: 0 }
    }

    /// Fails the `nth` operation from now (1 is the next one) with `status`.
    pub fn fail_nth(&mut self, nth: u64, status: S) {
        assert!(nth > 0, "the next operation is number 1");
        self.scripted.push((nth, status));
    }

    /// Fails one operation in `n` at random, with `status`.
    pub fn fail_one_in(&mut self, n: u64, status: S) {
        self.random = Some((n, status));
    }

    /// Lets everything succeed again.
    pub fn clear(&mut self) {
        self.scripted.clear();
        self.random = None;
    }

    /// How many operations were failed on purpose.
    #[must_use]
    pub const fn nr_failed(&self) -> u64 {
        self.nr_failed
    }

    /// Whether the operation at hand fails.
    pub(crate) fn strike(&mut self) -> Option<S> {
        let mut struck = None;
        self.scripted.retain_mut(|(left, status)| {
            *left -= 1;
            if *left == 0 {
                struck = Some(*status);
            }
            *left > 0
        });
        if let (None, Some((n, status))) = (struck, self.random)
            && self.rng.one_in(n)
        {
            struck = Some(status);
        }
        self.nr_failed += u64::from(struck.is_some());
        struck
    }
}
