//! Copies between guests and our frames, gathered for one hypercall.

use alloc::vec::Vec;

use blkif::{CheckedSegment, IndirectOp};
use store::{Extent, ExtentSink, FrameAddr};
use xen_abi::{CopyPtr, DomId, Gfn, GntStatus, GnttabCopy, GrantRef, PAGE_SIZE};

use crate::Grants;
use crate::persistent::{Persistent, Place};

/// Copies in one hypercall at most. Xen looks for other work between copies by itself.
const MAX_COPIES: usize = 512;

/// Copies that wait for the hypercall, and the request each belongs to.
#[derive(Debug)]
pub(crate) struct Batch {
    copies: Vec<GnttabCopy>,
    /// The request of each copy, as its place in the round.
    owners: Vec<usize>,
    /// What became of each request's copies: the first failure.
    failures: Vec<Option<GntStatus>>,
}

impl Batch {
    /// An empty batch for rounds of up to `max_requests` requests.
    pub(crate) fn new(max_requests: usize) -> Self {
        Self {
            copies: Vec::with_capacity(MAX_COPIES),
            owners: Vec::with_capacity(MAX_COPIES),
            failures: alloc::vec![None; max_requests],
        }
    }

    /// Begins a round: no request has failed.
    pub(crate) fn begin(&mut self) {
        debug_assert!(self.copies.is_empty(), "copies of an earlier round wait");
        self.failures.fill(None);
    }

    /// Adds a copy for the request at `owner`; where there is no room left, those before it are
    /// made first.
    pub(crate) fn push(&mut self, grants: &mut impl Grants, owner: usize, copy: GnttabCopy) {
        if self.copies.len() == MAX_COPIES {
            self.run(grants);
        }
        self.copies.push(copy);
        self.owners.push(owner);
    }

    /// Makes all copies that wait.
    pub(crate) fn run(&mut self, grants: &mut impl Grants) {
        if self.copies.is_empty() {
            return;
        }
        grants.copy(&mut self.copies);
        for (copy, &owner) in self.copies.iter().zip(&self.owners) {
            if !copy.status.is_okay() {
                self.failures[owner].get_or_insert(copy.status);
            }
        }
        self.copies.clear();
        self.owners.clear();
    }

    /// Drops the copies that wait for the request at `owner`, which was the last to add any.
    pub(crate) fn forget(&mut self, owner: usize) {
        while self.owners.last() == Some(&owner) {
            self.owners.pop();
            self.copies.pop();
        }
    }

    /// What went wrong with the copies of the request at `owner`.
    pub(crate) fn failure(&self, owner: usize) -> Option<GntStatus> {
        self.failures[owner]
    }
}

/// A segment, and where its page is mapped, if it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) segment: CheckedSegment,
    pub(crate) place: Option<Place>,
}

/// Pairs a request's segments with the extents that a store names: data in mapped pages is copied
/// at once, for the rest copies are added to a batch.
pub(crate) struct Gather<'a, G: Grants> {
    pub(crate) batch: &'a mut Batch,
    pub(crate) grants: &'a mut G,
    pub(crate) mapped: Option<&'a Persistent<G::Mapping>>,
    pub(crate) peer: DomId,
    pub(crate) direction: IndirectOp,
    pub(crate) owner: usize,
    /// A page of zeroes.
    pub(crate) zero: Gfn,
    /// The segments that are not used up.
    pub(crate) pieces: &'a [Piece],
    /// Bytes of the first of them that are used up.
    pub(crate) used_bytes: u16,
}

impl<G: Grants> Gather<'_, G> {
    /// Copies between a mapped page, from byte `offset` on, and frames of ours.
    // A call leaves the loop over the segments its registers.
    #[inline(never)]
    fn copy(&mut self, page: &G::Mapping, offset: u16, at: FrameAddr, len_bytes: u16) {
        match self.direction {
            IndirectOp::Read => self.grants.copy_out(at, page, offset, len_bytes),
            IndirectOp::Write => self.grants.copy_in(page, offset, at, len_bytes),
        }
    }

    /// Copies between mapped pages and the `left` bytes of frames from `at` on, as many whole segments as
    /// lie in both: what is left, and from where.
    fn copy_whole(&mut self, mut at: FrameAddr, mut left: usize) -> (FrameAddr, usize) {
        let Some(mapped) = self.mapped else { return (at, left) };
        while let [Piece { segment, place: Some(place) }, rest @ ..] = self.pieces
            && let Some(after) = left.checked_sub(segment.len_bytes().into())
        {
            self.copy(mapped.page(*place), segment.offset(), at, segment.len_bytes());
            at = at.after(segment.len_bytes().into());
            left = after;
            self.pieces = rest;
        }
        (at, left)
    }

    /// Adds the copies between a granted page and frames of ours, each within one frame.
    #[inline(never)]
    fn copy_by_xen(&mut self, gref: GrantRef, mut offset: u16, mut at: FrameAddr, mut left: u16) {
        while left > 0 {
            #[expect(clippy::cast_possible_truncation, reason = "4096")]
            let len_bytes = left.min(PAGE_SIZE as u16 - at.offset());
            let grant = CopyPtr::grant(self.peer, gref, offset);
            let frame = CopyPtr::frame(at.gfn(), at.offset());
            let copy = match self.direction {
                IndirectOp::Read => GnttabCopy::to_grant(frame, grant, len_bytes),
                IndirectOp::Write => GnttabCopy::from_grant(grant, frame, len_bytes),
            };
            self.batch.push(self.grants, self.owner, copy);
            at = at.after(len_bytes.into());
            offset += len_bytes;
            left -= len_bytes;
        }
    }
}

impl<G: Grants> ExtentSink for Gather<'_, G> {
    fn extent(&mut self, extent: Extent) {
        let (mut at, mut left) = match extent {
            Extent::Frames { at, len_bytes } if self.used_bytes == 0 => {
                let (at, left) = self.copy_whole(at, len_bytes);
                (Some(at), left)
            }
            Extent::Frames { at, len_bytes } => (Some(at), len_bytes),
            Extent::Zero { len_bytes } => (Some(FrameAddr::start_of(self.zero)), len_bytes),
            Extent::Discarded { len_bytes } => (None, len_bytes),
        };
        let is_in_frames = matches!(extent, Extent::Frames { .. });
        while left > 0 {
            let [piece, rest @ ..] = self.pieces else {
                debug_assert!(false, "a store names more bytes than were asked for");
                return;
            };
            let room = piece.segment.len_bytes() - self.used_bytes;
            let len_bytes = u16::try_from(left).map_or(room, |left| left.min(room));
            if let Some(from) = at {
                let offset = piece.segment.offset() + self.used_bytes;
                match (self.mapped, piece.place) {
                    (Some(mapped), Some(place)) => {
                        self.copy(mapped.page(place), offset, from, len_bytes);
                    }
                    _ => self.copy_by_xen(piece.segment.gref(), offset, from, len_bytes),
                }
                if is_in_frames {
                    at = Some(from.after(len_bytes.into()));
                }
            }
            left -= usize::from(len_bytes);
            if len_bytes == room {
                self.pieces = rest;
                self.used_bytes = 0;
            } else {
                self.used_bytes += len_bytes;
            }
        }
    }
}
