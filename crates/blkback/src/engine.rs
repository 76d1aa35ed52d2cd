//! The way of a request: off the ring, checked, paired with the disk's frames, copied, answered.
//!
//! A turn takes the requests at hand in one round. What they need of the hypervisor goes through as
//! few hypercalls as there can be: data in pages that stay mapped takes none, all other data one,
//! the segments of indirect requests in pages that are not mapped another. Nothing on this way
//! allocates or logs, but for pages that are mapped for the first time, and for requests that the
//! store answers later: their segments are kept until then.

use alloc::vec::Vec;

use blkif::{
    BackRing, CheckedSegment, FinalCheck, Indirect, MaxIndirectSegments, Notify, Operation,
    ProducerOverrun, Response, Sector, Status, Transfer,
};
use store::{Access, BlockStore, FrameMemory, Geometry, Lease, PagePool, SECTOR_SIZE, StoreError};
use xen_abi::{DomId, EvtchnPort, Gfn, GntStatus, PAGE_SIZE};

use crate::batch::{Batch, Piece};
use crate::descriptors::{Descriptors, Fetched, SegmentBytes};
use crate::entry::{Entry, Kind, Parked, State, Task};
use crate::persistent::Persistent;
use crate::refused::{Reason, Refused};
use crate::round::Round;
use crate::{Grants, Stats};

/// Requests that a round takes off the ring at most: a whole one of one page.
const MAX_REQUESTS: usize = 32;

/// Requests of a ring that a store may be working on at once. More stay on the ring.
const MAX_IN_FLIGHT: usize = 64;

/// Segments that a round takes at most, give or take one request: 4 MiB.
const MAX_SEGMENTS: usize = 1024;

/// Bytes that a round may have to unpack at most, give or take one request. The other rings wait
/// as long: about 7 ns a byte.
const MAX_UNPACKED_BYTES: u64 = 1 << 20;

/// One ring of a vbd.
pub struct Queue<M> {
    /// The ring.
    pub ring: BackRing<M>,
    /// The port that tells its frontend.
    pub port: EvtchnPort,
    /// Whose ring it is.
    pub peer: DomId,
    /// The frontend's pages that stay mapped, if it uses them again and again.
    pub mapped: Option<Persistent<M>>,
    /// What was done.
    pub stats: Stats,
    /// Requests that are not answered, in the order of the ring: the store works on some of them, or
    /// is asked again.
    in_flight: Vec<Parked>,
}

impl<M> Queue<M> {
    /// A ring that was just attached.
    #[must_use]
    pub fn new(
        ring: BackRing<M>,
        port: EvtchnPort,
        peer: DomId,
        mapped: Option<Persistent<M>>,
    ) -> Self {
        Self { ring, port, peer, mapped, stats: Stats::default(), in_flight: Vec::new() }
    }

    /// Pages of the frontend that stay mapped, the ring's own not among them.
    #[must_use]
    pub fn nr_mapped(&self) -> usize {
        self.mapped.as_ref().map_or(0, Persistent::nr_pages)
    }

    /// Requests that were taken off the ring and are not answered.
    #[must_use]
    pub const fn nr_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Segments that are kept of them. The heap is to hold those of all rings.
    fn nr_kept(&self) -> usize {
        self.in_flight.iter().map(|parked| parked.segments.len()).sum()
    }

    /// Gives up what is not answered, before the ring is let go. What the store works on it ends by
    /// itself, in frames of its own or in pages that it was lent.
    pub fn abandon<F: FrameMemory>(
        &mut self,
        disk: &mut impl BlockStore<F>,
        pool: &mut PagePool<F>,
    ) {
        for Parked { mut entry, .. } in self.in_flight.drain(..) {
            entry.abandon(disk, pool, Reason::Store(StoreError::Stale));
        }
    }

    /// Lets the ring go: all that is mapped of its frontend, to be unmapped as soon as none of it is lent
    /// to a device any more.
    #[must_use]
    pub fn into_mappings(self) -> (Vec<M>, Option<Lease>)
    where
        M: xen_abi::SharedMemory,
    {
        let (mut mappings, lease) = match self.mapped {
            Some(mapped) => {
                let (pages, lease) = mapped.into_pages();
                (pages, Some(lease))
            }
            None => (Vec::new(), None),
        };
        mappings.push(self.ring.into_memory());
        (mappings, lease.filter(|lease| !lease.is_over()))
    }
}

/// What the requests of a ring are for.
pub struct Media<'a, M, D> {
    /// The disk.
    pub disk: &'a mut D,
    /// Whether this vbd may write it, whatever the disk itself allows.
    pub access: Access,
    /// Whether this vbd may discard, whatever the disk itself allows.
    pub discards: Discards,
    /// The pool that the disk's pages are from.
    pub pool: &'a mut PagePool<M>,
}

/// Whether discards are offered to a frontend (`discard-enable`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discards {
    /// As far as the disk knows them.
    Offered,
    /// The toolstack does not want it.
    No,
}

/// How a turn ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// What the ring has its next turn for.
    pub next: Next,
    /// The first request that was refused.
    pub refused: Option<Refused>,
    /// What Xen said where it did not unmap a page that had to go.
    pub lost: Option<GntStatus>,
}

/// What a ring has its next turn for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// There is more to do at once.
    Work,
    /// An event of its frontend, or something of its disk that has become ready.
    Event,
    /// Its disk is busy: something of it that has become ready, or was let go by another ring.
    Disk,
}

/// Serves the rings, one at a time. Holds what a round needs, so that none allocates it.
#[derive(Debug)]
pub struct Engine {
    batch: Batch,
    descriptors: Descriptors,
    /// The requests that are in flight and those of this round, in the order of the ring.
    round: Vec<Entry>,
    /// The segments of those that were in flight and are not due: of the first entries.
    left: Vec<Vec<CheckedSegment>>,
    /// Those among them whose segments lie in pages: the place in the round, and where to.
    indirect: Vec<(usize, Indirect, Fetched)>,
    /// The segments of one of them at a time, as they lie there.
    segment_bytes: Vec<SegmentBytes>,
    /// The segments of all of them.
    pieces: Vec<Piece>,
    /// The frames of a request's pages, one request at a time.
    frames: Vec<Gfn>,
    max_indirect: MaxIndirectSegments,
}

impl Engine {
    /// Frames that [`new`](Self::new) is given.
    pub const NR_FRAMES: u64 = Descriptors::NR_FRAMES;

    /// An engine that works in the run of [`NR_FRAMES`](Self::NR_FRAMES) frames from `area` on,
    /// which nothing else uses.
    #[must_use]
    pub fn new(area: Gfn, max_indirect: MaxIndirectSegments) -> Self {
        let max_segments = usize::from(max_indirect.get()).max(blkif::MAX_SEGMENTS);
        Self {
            batch: Batch::new(MAX_IN_FLIGHT),
            descriptors: Descriptors::new(area, max_indirect),
            round: Vec::with_capacity(MAX_IN_FLIGHT),
            left: Vec::new(),
            indirect: Vec::with_capacity(MAX_REQUESTS),
            segment_bytes: alloc::vec![SegmentBytes::default(); max_indirect.get().into()],
            pieces: Vec::with_capacity(MAX_SEGMENTS + max_segments),
            frames: Vec::with_capacity(max_segments),
            max_indirect,
        }
    }

    /// How many segments an indirect request may have; what rings are to be attached with.
    #[must_use]
    pub const fn max_indirect(&self) -> MaxIndirectSegments {
        self.max_indirect
    }

    /// Serves requests of one ring, as many as one turn allows, and answers them in their order.
    ///
    /// # Errors
    /// The frontend broke the ring; no request of this turn was taken from it after that.
    pub fn turn<G, M, D>(
        &mut self,
        queue: &mut Queue<G::Mapping>,
        grants: &mut G,
        media: &mut Media<'_, M, D>,
    ) -> Result<Turn, ProducerOverrun>
    where
        G: Grants,
        M: FrameMemory,
        D: BlockStore<M>,
    {
        queue.stats.at_hand.count(queue.ring.unconsumed()? as usize);
        let geometry = media.disk.geometry();
        let next = self.begin(queue, &geometry, media.disk);
        let mut round = Round {
            geometry,
            entries: &mut self.round,
            left: &self.left,
            nr_ended: 0,
            nr_done: 0,
            next,
            indirect: &self.indirect,
            batch: &mut self.batch,
            segment_bytes: &mut self.segment_bytes,
            pieces: &mut self.pieces,
            frames: &mut self.frames,
            mapped: queue.mapped.as_mut(),
            stats: &mut queue.stats,
            peer: queue.peer,
            grants,
            media,
        };
        round.fetch_descriptors();
        round.prepare();
        round.begin_all();
        round.finish(usize::MAX);
        let next = round.next;
        if !round.are_done_before(usize::MAX) {
            self.lay_down(queue, media);
        }
        let refused = self.answer(queue, grants);
        let lost = queue.mapped.as_mut().and_then(|mapped| mapped.unmap_evicted(grants).err());
        let next = if next == Next::Event { Self::look_again(queue)? } else { next };
        Ok(Turn { next, refused, lost })
    }

    /// Takes up what is in flight, and takes requests off the ring unless one that is not begun holds
    /// them back. Whether something that is ready is left for the next round.
    fn begin<F, M, D>(&mut self, queue: &mut Queue<F>, geometry: &Geometry, disk: &D) -> Next
    where
        F: xen_abi::SharedMemory,
        M: FrameMemory,
        D: BlockStore<M>,
    {
        self.batch.begin();
        self.descriptors.begin();
        self.pieces.clear();
        self.round.clear();
        self.left.clear();
        self.indirect.clear();
        if let Some(mapped) = &mut queue.mapped {
            mapped.begin(queue.in_flight.iter().filter_map(|parked| parked.entry.lent_in()));
        }
        let mut next = Next::Event;
        let mut is_held_back = queue.nr_kept() >= MAX_SEGMENTS;
        for Parked { mut entry, mut segments } in queue.in_flight.drain(..) {
            if entry.is_due(disk) {
                if self.pieces.len() < MAX_SEGMENTS {
                    entry.take_up(&mut segments, &mut self.pieces);
                } else {
                    next = Next::Work;
                }
            }
            is_held_back |= entry.holds_back();
            self.round.push(entry);
            self.left.push(segments);
        }
        if !is_held_back {
            self.take(queue, geometry, disk.unpack_unit_bytes());
        }
        next
    }

    /// Takes requests off the ring.
    fn take<M>(&mut self, queue: &mut Queue<M>, geometry: &Geometry, unpack_unit_bytes: Option<u64>)
    where
        M: xen_abi::SharedMemory,
    {
        let mut nr_segments = self.pieces.len();
        let mut unpacked_bytes = 0;
        let max_requests = MAX_IN_FLIGHT.min(self.round.len() + MAX_REQUESTS);
        while self.round.len() < max_requests
            && nr_segments < MAX_SEGMENTS
            && unpacked_bytes < MAX_UNPACKED_BYTES
            && self.descriptors.has_room()
        {
            let consumed = queue.ring.consume();
            // Not moved: it has room for all segments that a request can have.
            let request = match &consumed {
                None => break,
                Some(Ok(request)) => request,
                Some(Err(malformed)) => {
                    self.round.push(Entry::malformed(malformed));
                    continue;
                }
            };
            let (id, operation) = (request.id, request.operation());
            if let Some(unit_bytes) = unpack_unit_bytes {
                unpacked_bytes += may_unpack(unit_bytes, &request.op);
            }
            let mut parse = |kind, transfer: &Transfer| {
                nr_segments += blkif::MAX_SEGMENTS;
                let segments = transfer.segments.as_slice().iter().copied();
                Task::parse(
                    kind,
                    transfer.sector,
                    segments,
                    &mut self.pieces,
                    geometry,
                    &mut queue.stats,
                )
            };
            let state = match &request.op {
                Operation::Read(transfer) => parse(Kind::Read, transfer),
                Operation::Write(transfer) => parse(Kind::Write, transfer),
                Operation::Flush(transfer) => parse(Kind::Flush, transfer),
                Operation::Barrier(transfer) => parse(Kind::Barrier, transfer),
                Operation::Indirect(indirect) => {
                    nr_segments += usize::from(indirect.nr_segments());
                    let owner = self.round.len();
                    self.indirect.push((owner, *indirect, self.descriptors.take()));
                    State::Fetching
                }
                &Operation::Discard { sector, nr_sectors, secure } => {
                    State::Discard { sector, nr_sectors, secure }
                }
                Operation::Unknown { .. } => State::Done(Err(Reason::Unsupported)),
            };
            let may_take_long = matches!(state, State::Discard { .. });
            self.round.push(Entry::new(id, operation, state));
            if may_take_long {
                break;
            }
        }
    }

    /// Gets what is not done ready for a later round. What there is no room for is given up.
    #[inline(never)]
    fn lay_down<F, M, D>(&mut self, queue: &mut Queue<F>, media: &mut Media<'_, M, D>)
    where
        M: FrameMemory,
        D: BlockStore<M>,
    {
        let nr = self.round.len();
        let is_room = queue.in_flight.try_reserve(nr).is_ok()
            && self.left.try_reserve(nr.saturating_sub(self.left.len())).is_ok();
        if is_room {
            self.left.resize_with(nr, Vec::new);
        }
        for (n, entry) in self.round.iter_mut().enumerate().filter(|(_, entry)| !entry.is_done()) {
            let laid_down = match self.left.get_mut(n).filter(|_| is_room) {
                Some(segments) => entry.lay_down(segments, &self.pieces),
                None => Err(StoreError::NoHeap),
            };
            if let Err(error) = laid_down {
                entry.abandon(media.disk, media.pool, error.into());
            }
        }
    }

    /// Answers the requests of the round, in order, up to the first that is not done.
    fn answer<G: Grants>(
        &mut self,
        queue: &mut Queue<G::Mapping>,
        grants: &mut G,
    ) -> Option<Refused> {
        let mut refused = None;
        let mut nr_done = 0;
        for &Entry { id, operation, ref state, .. } in &self.round {
            let State::Done(result) = *state else { break };
            nr_done += 1;
            let status = match result {
                Ok(()) => Status::OKAY,
                Err(reason) => {
                    queue.stats.nr_errors += 1;
                    refused.get_or_insert(Refused { id, operation, reason });
                    reason.status()
                }
            };
            let pushed = queue.ring.push(&Response { id, operation, status });
            debug_assert_eq!(pushed, Ok(()), "a request is answered twice");
        }
        if nr_done < self.round.len() {
            let late = self.round.drain(nr_done..).zip(self.left.drain(nr_done..));
            queue.in_flight.extend(late.map(|(entry, segments)| Parked { entry, segments }));
        }
        if nr_done > 0 && queue.ring.publish() == Notify::Needed {
            if nr_done == 1 {
                grants.notify_with_wait(queue.port);
            } else {
                grants.notify(queue.port);
            }
        }
        refused
    }

    /// What the ring has its next turn for, if it is up to the ring.
    fn look_again<M>(queue: &mut Queue<M>) -> Result<Next, ProducerOverrun>
    where
        M: xen_abi::SharedMemory,
    {
        // The frontend need not tell of requests that are not taken before the disk is ready.
        if queue.in_flight.len() >= MAX_IN_FLIGHT
            || queue.nr_kept() >= MAX_SEGMENTS
            || queue.in_flight.iter().any(|parked| parked.entry.holds_back())
        {
            return Ok(Next::Event);
        }
        Ok(match queue.ring.final_check()? {
            FinalCheck::Work => Next::Work,
            FinalCheck::Idle => Next::Event,
        })
    }
}

/// Bytes of the units that a request can touch, were its segments whole pages. Not checked yet.
fn may_unpack(unit_bytes: u64, operation: &Operation) -> u64 {
    let (Sector(first), nr_segments) = match operation {
        Operation::Indirect(indirect) => (indirect.sector(), indirect.nr_segments().into()),
        Operation::Read(transfer)
        | Operation::Write(transfer)
        | Operation::Flush(transfer)
        | Operation::Barrier(transfer) => (transfer.sector, transfer.segments.as_slice().len()),
        Operation::Discard { .. } | Operation::Unknown { .. } => return 0,
    };
    let first_byte = first.saturating_mul(SECTOR_SIZE as u64);
    let end = first_byte.saturating_add((nr_segments * PAGE_SIZE) as u64);
    (end.div_ceil(unit_bytes) - first_byte / unit_bytes).saturating_mul(unit_bytes)
}
