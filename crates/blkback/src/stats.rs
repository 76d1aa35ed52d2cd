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
    /// Barriers that were answered OKAY.
    pub nr_barriers: u64,
    /// Discards that were answered OKAY.
    pub nr_discards: u64,
    /// Sectors read by them.
    pub nr_sectors_read: u64,
    /// Sectors written by them.
    pub nr_sectors_written: u64,
    /// Sectors given up by them.
    pub nr_sectors_discarded: u64,
    /// Requests that were answered ERROR or EOPNOTSUPP.
    pub nr_errors: u64,
}

impl core::ops::AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        self.nr_reads += other.nr_reads;
        self.nr_writes += other.nr_writes;
        self.nr_flushes += other.nr_flushes;
        self.nr_barriers += other.nr_barriers;
        self.nr_discards += other.nr_discards;
        self.nr_sectors_read += other.nr_sectors_read;
        self.nr_sectors_written += other.nr_sectors_written;
        self.nr_sectors_discarded += other.nr_sectors_discarded;
        self.nr_errors += other.nr_errors;
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
