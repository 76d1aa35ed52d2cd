//! What a vbd has done.

use core::fmt;

/// Counters of one vbd since it was connected.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Reads that were answered OKAY.
    pub nr_reads: u64,
    /// Writes that were answered OKAY.
    pub nr_writes: u64,
    /// Flushes that were answered OKAY.
    pub nr_flushes: u64,
    /// Sectors read by them.
    pub nr_sectors_read: u64,
    /// Sectors written by them.
    pub nr_sectors_written: u64,
    /// Requests that were answered ERROR or EOPNOTSUPP.
    pub nr_errors: u64,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} reads ({} sectors), {} writes ({} sectors), {} flushes, {} errors",
            self.nr_reads,
            self.nr_sectors_read,
            self.nr_writes,
            self.nr_sectors_written,
            self.nr_flushes,
            self.nr_errors
        )
    }
}
