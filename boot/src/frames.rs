//! What the memory map leaves to us.

use xen_abi::{Gfn, PAGE_SIZE};

use crate::{MemoryKind, MemoryRange};

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// The frames that nothing uses, as runs that do not touch or overlap unless the memory map's
/// entries touched.
#[derive(Debug)]
pub struct FreeFrames {
    /// First frame of each run and their number, which is never 0.
    runs: [(Gfn, u64); Self::MAX_RUNS],
    len: usize,
}

/// The free frames lie in more runs than are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("free memory lies in more than {} runs", FreeFrames::MAX_RUNS)]
pub struct TooFragmented;

impl FreeFrames {
    /// How many runs are kept. Every entry of the memory map makes one, every reservation may
    /// split one.
    pub const MAX_RUNS: usize = 192;

    /// The whole frames of RAM in `memory_map` that lie below `end`. A frame that it lists twice
    /// counts once.
    ///
    /// # Errors
    /// Where they lie in more than [`Self::MAX_RUNS`] runs.
    pub fn new(memory_map: &[MemoryRange], end: u64) -> Result<Self, TooFragmented> {
        let mut free = Self { runs: [(Gfn(0), 0); Self::MAX_RUNS], len: 0 };
        for range in memory_map.iter().filter(|range| range.kind == MemoryKind::RAM) {
            let first = range.paddr.div_ceil(PAGE_BYTES);
            let last = range.paddr.saturating_add(range.size_bytes).min(end) / PAGE_BYTES;
            if first < last {
                free.remove(first, last)?;
                free.push(first, last)?;
            }
        }
        Ok(free)
    }

    /// Takes out every frame that has a byte of `size_bytes` at `paddr`.
    ///
    /// # Errors
    /// Where the rest lies in more than [`Self::MAX_RUNS`] runs.
    pub fn reserve(&mut self, paddr: u64, size_bytes: u64) -> Result<(), TooFragmented> {
        let end = paddr.saturating_add(size_bytes).div_ceil(PAGE_BYTES);
        self.remove(paddr / PAGE_BYTES, end)
    }

    /// Takes `nr_frames` out of the low end of the first run that has as many: the first of them.
    pub fn take(&mut self, nr_frames: u64) -> Option<Gfn> {
        let index = self.as_slice().iter().position(|&(_, nr)| nr >= nr_frames)?;
        let (first, nr) = self.runs[index];
        if nr == nr_frames {
            self.drop_run(index);
        } else {
            self.runs[index] = (Gfn(first.0 + nr_frames), nr - nr_frames);
        }
        Some(first)
    }

    /// The runs: first frame and number of frames, in no order.
    #[must_use]
    pub fn as_slice(&self) -> &[(Gfn, u64)] {
        &self.runs[..self.len]
    }

    /// How many frames there are in all.
    #[must_use]
    pub fn nr_frames(&self) -> u64 {
        self.as_slice().iter().map(|&(_, nr)| nr).sum()
    }

    /// Removes the frames from `first` up to `end`, which is not one of them.
    fn remove(&mut self, first: u64, end: u64) -> Result<(), TooFragmented> {
        let mut index = 0;
        while index < self.len {
            let (run_first, run_nr) = self.runs[index];
            let (run_first, run_end) = (run_first.0, run_first.0 + run_nr);
            if first >= run_end || end <= run_first || first >= end {
                index += 1;
                continue;
            }
            self.drop_run(index);
            if run_first < first {
                self.push(run_first, first)?;
            }
            if end < run_end {
                self.push(end, run_end)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, first: u64, end: u64) -> Result<(), TooFragmented> {
        let slot = self.runs.get_mut(self.len).ok_or(TooFragmented)?;
        *slot = (Gfn(first), end - first);
        self.len += 1;
        Ok(())
    }

    fn drop_run(&mut self, index: usize) {
        self.len -= 1;
        self.runs[index] = self.runs[self.len];
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::{FreeFrames, TooFragmented};
    use crate::{MemoryKind, MemoryRange};
    use xen_abi::Gfn;

    const NO_LIMIT: u64 = 1 << 39;

    fn ram(paddr: u64, size_bytes: u64) -> MemoryRange {
        MemoryRange { paddr, size_bytes, kind: MemoryKind::RAM }
    }

    fn runs(free: &FreeFrames) -> Vec<(u64, u64)> {
        let mut runs: Vec<_> = free.as_slice().iter().map(|&(gfn, nr)| (gfn.0, nr)).collect();
        runs.sort_unstable();
        runs
    }

    #[test]
    fn only_whole_frames_of_ram_count() {
        let reserved = MemoryRange { paddr: 0x8000, size_bytes: 0x8000, kind: MemoryKind(2) };
        let map = [ram(0x1001, 0x3000), reserved, ram(0x20000, 0xfff), ram(0x30fff, 0x1001)];
        let free = FreeFrames::new(&map, NO_LIMIT).unwrap();
        assert_eq!(runs(&free), [(2, 2), (0x31, 1)]);
        assert_eq!(free.nr_frames(), 3);
    }

    #[test]
    fn memory_past_the_end_does_not_count() {
        let map = [ram(0, 0x5000), ram(0x6000, u64::MAX - 0x6000), ram(0x9000, 0x1000)];
        let free = FreeFrames::new(&map, 0x8800).unwrap();
        assert_eq!(runs(&free), [(0, 5), (6, 2)]);
    }

    #[test]
    fn a_frame_that_is_listed_twice_counts_once() {
        let map = [ram(0x1000, 0x4000), ram(0x3000, 0x4000), ram(0, 0x10000), ram(0x2000, 0x1000)];
        let free = FreeFrames::new(&map, NO_LIMIT).unwrap();
        assert_eq!(free.nr_frames(), 16);
    }

    #[test]
    fn a_reservation_takes_every_frame_it_touches() {
        let mut free = FreeFrames::new(&[ram(0, 0x10000)], NO_LIMIT).unwrap();
        free.reserve(0x3fff, 2).unwrap();
        assert_eq!(runs(&free), [(0, 3), (5, 11)]);
        free.reserve(0, 0x1000).unwrap();
        free.reserve(0xf001, u64::MAX).unwrap();
        assert_eq!(runs(&free), [(1, 2), (5, 10)]);
        free.reserve(0x6000, 0).unwrap();
        assert_eq!(runs(&free), [(1, 2), (5, 10)]);
        free.reserve(0x1000, 0x2000).unwrap();
        assert_eq!(runs(&free), [(5, 10)]);
    }

    #[test]
    fn frames_are_taken_from_a_run_that_has_enough() {
        let mut free =
            FreeFrames::new(&[ram(0x1000, 0x2000), ram(0x5000, 0x4000)], NO_LIMIT).unwrap();
        assert_eq!(free.take(3), Some(Gfn(5)));
        assert_eq!(free.take(2), Some(Gfn(1)));
        assert_eq!(free.take(2), None);
        assert_eq!(runs(&free), [(8, 1)]);
    }

    #[test]
    fn too_many_runs_are_an_error() {
        let map: Vec<_> = (0..193).map(|i| ram(i * 0x2000, 0x1000)).collect();
        assert_eq!(FreeFrames::new(&map, NO_LIMIT).unwrap_err(), TooFragmented);
        let mut free = FreeFrames::new(&map[..192], NO_LIMIT).unwrap();
        assert_eq!(free.nr_frames(), 192);
        free.reserve(0, 0x1000).unwrap();
        assert_eq!(free.nr_frames(), 191);
    }
}
