//! Joining what follows each other in memory, so that a long request is named in few words.

use xen_abi::{Gfn, PAGE_SIZE};

use super::SECTORS_PER_PAGE;
use crate::block_store::{Extent, ExtentSink};
use crate::geometry::{SECTOR_SIZE, SectorRange};
use crate::memory::FrameAddr;

/// Bytes of a disk of pages that are found in one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// In frames.
    Frames { at: FrameAddr, len_bytes: usize },
    /// In no page: the disk's base has them, from byte `offset` of the disk on.
    Absent { offset: u64, len_bytes: usize },
}

impl Part {
    /// Names it where it is in frames, as all of a write's are.
    pub(super) fn name_frames(part: Option<Self>, sink: &mut impl ExtentSink) {
        if let Some(Self::Frames { at, len_bytes }) = part {
            sink.extent(Extent::Frames { at, len_bytes });
        }
    }
}

/// The pages of a range, one after the other, joined and cut to the range's bytes.
pub(super) struct Parts {
    run: Option<Run>,
    /// Bytes of the first page that come before the range.
    skip_bytes: usize,
    /// Bytes of the range that are in no part yet.
    left_bytes: usize,
}

/// Whole pages that are found in one place, and their number.
enum Run {
    Frames { first: Gfn, nr: u64 },
    Absent { number: u64, nr: u64 },
}

impl Parts {
    pub(super) fn of(range: SectorRange) -> Self {
        let bytes = |sectors: u64| usize::try_from(sectors).map_or(0, |nr| nr * SECTOR_SIZE);
        Self {
            run: None,
            skip_bytes: bytes(range.first() % SECTORS_PER_PAGE),
            left_bytes: bytes(range.nr()),
        }
    }

    /// Adds the next page, at `number` of the disk. Where it is elsewhere than the one before, what
    /// came up to there is given.
    #[inline]
    pub(super) fn add(&mut self, number: u64, page: Option<Gfn>) -> Option<Part> {
        let next = match (&mut self.run, page) {
            (Some(Run::Frames { first, nr }), Some(page)) if first.0 + *nr == page.0 => {
                *nr += 1;
                return None;
            }
            (Some(Run::Absent { nr, .. }), None) => {
                *nr += 1;
                return None;
            }
            (_, Some(first)) => Run::Frames { first, nr: 1 },
            (_, None) => Run::Absent { number, nr: 1 },
        };
        self.run.replace(next).map(|run| self.cut(&run))
    }

    /// What is left when all pages are added.
    pub(super) fn end(mut self) -> Option<Part> {
        self.run.take().map(|run| self.cut(&run))
    }

    fn cut(&mut self, run: &Run) -> Part {
        let skip_bytes = core::mem::take(&mut self.skip_bytes);
        let (Run::Frames { nr, .. } | Run::Absent { nr, .. }) = *run;
        let run_bytes = usize::try_from(nr).map_or(usize::MAX, |nr| nr * PAGE_SIZE);
        let len_bytes = (run_bytes - skip_bytes).min(self.left_bytes);
        self.left_bytes -= len_bytes;
        match *run {
            Run::Frames { first, .. } => {
                Part::Frames { at: FrameAddr::start_of(first).after(skip_bytes), len_bytes }
            }
            Run::Absent { number, .. } => {
                Part::Absent { offset: number * PAGE_SIZE as u64 + skip_bytes as u64, len_bytes }
            }
        }
    }
}
