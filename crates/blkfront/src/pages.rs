//! The pages that requests are made of: granted once, and used again and again.

use alloc::vec::Vec;

use blkif::{MAX_SEGMENTS, Segment};
use store::{Buffer, Buffers, PageNumber, PartLimits};
use xen_abi::{Gfn, GrantRef, PAGE_SIZE, SharedMemory};

use crate::Disk;
use crate::granted::{Granted, Retired};

/// What a request of the ring can be; the segments of an indirect one are a list.
pub(crate) fn part_limits(disk: &Disk) -> PartLimits {
    PartLimits { max_pages: disk.max_segments.into(), max_direct: MAX_SEGMENTS }
}

/// The pages, and the buffers that they are.
#[derive(Debug)]
pub(crate) struct Pages<M> {
    memory: M,
    granted: Vec<Granted>,
    pub(crate) buffers: Buffers,
}

impl<M: SharedMemory> Pages<M> {
    /// These pages, of which `memory` consists.
    pub(crate) fn new((granted, memory): (Vec<Granted>, M)) -> Self {
        Self { memory, buffers: Buffers::new(0..granted.len()), granted }
    }

    pub(crate) fn gref(&self, page: PageNumber) -> GrantRef {
        self.granted[page.index()].gref()
    }

    /// The frames of a buffer's data, one for each 8 sectors.
    pub(crate) fn frames(&self, buffer: &Buffer) -> impl Iterator<Item = Gfn> {
        self.buffers.data(buffer).map(|page| self.granted[page.index()].frame())
    }

    /// Writes a segment of an indirect request.
    pub(crate) fn write_segment(&self, list: PageNumber, index: usize, segment: &Segment) {
        let at = list.index() * PAGE_SIZE + index * Segment::LEN_BYTES;
        self.memory.write(at, &segment.encode());
    }

    pub(crate) fn retire(self, retired: &mut Retired) {
        retired.add(self.granted);
    }
}
