//! How long a load goes on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Says to all workers whether there is another request, and which.
#[derive(Debug)]
pub struct Bound {
    until: Until,
    next: AtomicU64,
    stopped: AtomicBool,
}

#[derive(Debug)]
enum Until {
    Count(u64),
    Time(Instant),
    Gone(PathBuf),
}

impl Bound {
    pub fn count(requests: u64) -> Self {
        Self::new(Until::Count(requests))
    }

    pub fn seconds(seconds: u32) -> Self {
        Self::new(Until::Time(Instant::now() + Duration::from_secs(seconds.into())))
    }

    pub fn file(path: PathBuf) -> Self {
        Self::new(Until::Gone(path))
    }

    fn new(until: Until) -> Self {
        Self { until, next: AtomicU64::new(0), stopped: AtomicBool::new(false) }
    }

    /// The number of the next request, from 0; none when it is time to end.
    pub fn next(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let more = match &self.until {
            Until::Count(count) => number < *count,
            Until::Time(end) => Instant::now() < *end,
            Until::Gone(path) => path.exists(),
        };
        (more && !self.stopped.load(Ordering::Relaxed)).then_some(number)
    }

    /// Ends it for every worker.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
