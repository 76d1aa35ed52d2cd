//! Where the segments of indirect requests are copied to before anyone reads them.

use blkif::{Indirect, MaxIndirectSegments, SEGMENTS_PER_INDIRECT_PAGE, Segment};
use store::{FrameAddr, FrameMemory};
use xen_abi::{Gfn, GrantRef, PAGE_SIZE};

/// A run of our own frames, in places of one size: a power of two that holds the most segments a
/// request may have. So no page of segments crosses a frame.
#[derive(Debug)]
pub(crate) struct Descriptors {
    area: Gfn,
    place_bytes: usize,
    nr_places: usize,
    nr_taken: usize,
}

/// A segment that is not parsed yet.
pub(crate) type SegmentBytes = [u8; Segment::LEN_BYTES];

/// The segments of one indirect request, in our own memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetched {
    at: FrameAddr,
}

impl Descriptors {
    /// Frames of the run.
    pub(crate) const NR_FRAMES: u64 = 16;

    const LEN_BYTES: usize = 16 * PAGE_SIZE;

    /// Over the run of [`NR_FRAMES`](Self::NR_FRAMES) frames that begins at `area`.
    pub(crate) fn new(area: Gfn, max: MaxIndirectSegments) -> Self {
        let place_bytes = (usize::from(max.get()).max(1) * Segment::LEN_BYTES).next_power_of_two();
        let nr_places = Self::LEN_BYTES / place_bytes;
        Self { area, place_bytes, nr_places, nr_taken: 0 }
    }

    /// Begins a round: every place is free.
    pub(crate) const fn begin(&mut self) {
        self.nr_taken = 0;
    }

    /// Whether another request's segments have a place in this round.
    pub(crate) const fn has_room(&self) -> bool {
        self.nr_taken < self.nr_places
    }

    /// Takes a place for a request's segments.
    pub(crate) fn take(&mut self) -> Fetched {
        debug_assert!(self.has_room(), "no place for an indirect request");
        let at = FrameAddr::start_of(self.area).after(self.nr_taken * self.place_bytes);
        self.nr_taken += 1;
        Fetched { at }
    }
}

impl Fetched {
    /// The parts to be fetched: a page of the frontend, where it goes, and how many bytes.
    pub(crate) fn parts(
        self,
        indirect: &Indirect,
    ) -> impl Iterator<Item = (GrantRef, FrameAddr, u16)> {
        let mut left = usize::from(indirect.nr_segments());
        let mut at = self.at;
        indirect.grefs().iter().map(move |&gref| {
            let nr = left.min(SEGMENTS_PER_INDIRECT_PAGE);
            let len_bytes = nr * Segment::LEN_BYTES;
            let part = (gref, at, u16::try_from(len_bytes).unwrap_or(0));
            left -= nr;
            at = at.after(len_bytes);
            part
        })
    }

    /// The request's segments, as they were fetched, by way of `bytes`.
    pub(crate) fn segments<'a, M: FrameMemory>(
        self,
        memory: &M,
        nr: u16,
        bytes: &'a mut [SegmentBytes],
    ) -> impl Iterator<Item = Segment> + 'a {
        let bytes = &mut bytes[..nr.into()];
        memory.read(self.at, bytes.as_flattened_mut());
        bytes.iter().map(|&bytes| Segment::parse(bytes))
    }
}
