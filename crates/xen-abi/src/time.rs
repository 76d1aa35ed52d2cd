//! Xen's system time.

use core::fmt;
use core::time::Duration;

/// Nanoseconds of Xen's system time since the host's boot (`vcpu_time_info`, `xen.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Instant {
    ns: u64,
}

impl Instant {
    /// The instant `ns` nanoseconds after the host's boot.
    #[must_use]
    pub const fn from_ns(ns: u64) -> Self {
        Self { ns }
    }

    /// Nanoseconds since the host's boot.
    #[must_use]
    pub const fn as_ns(self) -> u64 {
        self.ns
    }

    /// The instant `delay` later; stays at the last one that can be told past it (584 years).
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        let delay_ns = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        Self { ns: self.ns.saturating_add(delay_ns) }
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.ns / 1_000_000_000, self.ns / 1_000_000 % 1000)
    }
}
