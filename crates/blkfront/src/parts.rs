//! How a request becomes requests of the ring.

use blkif::{
    Indirect, IndirectOp, MAX_INDIRECT_PAGES, MAX_SEGMENTS, MaxIndirectSegments, OpCode, Operation,
    Sector, Segment, Segments, Transfer,
};
use store::{Buffer, PageNumber, SECTORS_PER_PAGE};
use xen_abi::{GrantRef, SharedMemory};

use crate::pages::Pages;
use crate::{Disk, Flush};

/// What is to be sent of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rest {
    Transfer {
        op: IndirectOp,
        sector: Sector,
        nr_sectors: u32,
        /// Where the data lies.
        data: PageNumber,
        /// Where the segments of the next indirect request go.
        list: PageNumber,
    },
    Flush,
    Discard {
        sector: Sector,
        nr_sectors: u64,
        secure: bool,
    },
}

impl Rest {
    /// All of a read or write.
    pub(crate) const fn of_transfer(op: IndirectOp, sector: Sector, buffer: &Buffer) -> Self {
        let (data, list) = (buffer.data(), buffer.lists());
        Self::Transfer { op, sector, nr_sectors: buffer.nr_sectors(), data, list }
    }

    /// The next request of the ring, and what is left then.
    pub(crate) fn next_part<M: SharedMemory>(
        self,
        disk: &Disk,
        pages: &Pages<M>,
    ) -> (Operation, Option<Self>) {
        match self {
            Self::Transfer { op, sector, nr_sectors, data, list } => {
                let max_sectors = u32::from(disk.max_segments) * SECTORS_PER_PAGE;
                let nr_now = nr_sectors.min(max_sectors);
                let mut segments = SegmentsOf { pages, page: data, nr_left: nr_now };
                let nr_segments = segments.len();
                let (operation, list) = if nr_segments <= MAX_SEGMENTS {
                    (direct(op, sector, &mut segments), list)
                } else {
                    (indirect(op, sector, &mut segments, list), pages.buffers.after(list))
                };
                let rest = (nr_now < nr_sectors).then(|| Self::Transfer {
                    op,
                    sector: Sector(sector.0 + u64::from(nr_now)),
                    nr_sectors: nr_sectors - nr_now,
                    data: segments.page,
                    list,
                });
                (operation, rest)
            }
            Self::Flush => {
                let empty = Transfer { sector: Sector(0), segments: Segments::EMPTY };
                let operation = match disk.flush {
                    Flush::Barrier => Operation::Barrier(empty),
                    Flush::Cache | Flush::None => Operation::Flush(empty),
                };
                (operation, None)
            }
            Self::Discard { sector, nr_sectors, secure } => {
                (Operation::Discard { sector, nr_sectors, secure }, None)
            }
        }
    }
}

/// The segments of so many sectors, from the start of a page on.
struct SegmentsOf<'a, M> {
    pages: &'a Pages<M>,
    page: PageNumber,
    nr_left: u32,
}

impl<M: SharedMemory> Iterator for SegmentsOf<'_, M> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        let nr_sectors = self.nr_left.min(SECTORS_PER_PAGE);
        let last_sect = u8::try_from(nr_sectors.checked_sub(1)?).ok()?;
        let gref = self.pages.gref(self.page);
        self.page = self.pages.buffers.after(self.page);
        self.nr_left -= nr_sectors;
        Some(Segment { gref, first_sect: 0, last_sect })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let nr_segments = self.nr_left.div_ceil(SECTORS_PER_PAGE) as usize;
        (nr_segments, Some(nr_segments))
    }
}

impl<M: SharedMemory> ExactSizeIterator for SegmentsOf<'_, M> {}

/// A request that holds its segments itself: at most 11.
fn direct(
    op: IndirectOp,
    sector: Sector,
    segments: &mut impl ExactSizeIterator<Item = Segment>,
) -> Operation {
    let mut list = [Segment { gref: GrantRef(0), first_sect: 0, last_sect: 0 }; MAX_SEGMENTS];
    let nr_segments = segments.len().min(MAX_SEGMENTS);
    for (entry, segment) in list.iter_mut().zip(segments) {
        *entry = segment;
    }
    let segments = Segments::new(&list[..nr_segments]).unwrap_or(Segments::EMPTY);
    let transfer = Transfer { sector, segments };
    match op {
        IndirectOp::Read => Operation::Read(transfer),
        IndirectOp::Write => Operation::Write(transfer),
    }
}

/// A request whose segments lie in a page: at most 256.
fn indirect<M: SharedMemory>(
    op: IndirectOp,
    sector: Sector,
    segments: &mut SegmentsOf<'_, M>,
    list: PageNumber,
) -> Operation {
    let pages = segments.pages;
    let nr_segments = u16::try_from(segments.len()).unwrap_or(u16::MAX);
    for (index, segment) in segments.enumerate() {
        pages.write_segment(list, index, &segment);
    }
    let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
    grefs[0] = pages.gref(list);
    let indirect = Indirect::new(op, sector, nr_segments, grefs, MaxIndirectSegments::MAX);
    // There are segments, and no more than fit the page; what is no request is refused.
    indirect.map_or(Operation::Unknown { code: OpCode::INDIRECT }, Operation::Indirect)
}
