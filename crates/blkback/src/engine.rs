//! The way of a request: off the ring, checked, paired with the disk's frames, copied, answered.
//!
//! A turn takes the requests at hand in one round. What they need copied goes through as few
//! hypercalls as there can be: one for the segments of indirect requests, one for all data. Nothing
//! on this way allocates or logs.

use alloc::vec::Vec;

use blkif::{
    BackRing, CheckedSegment, FinalCheck, MaxIndirectSegments, Notify, Operation, ProducerOverrun,
    Response, Status,
};
use store::{Access, BlockStore, FrameMemory, PagePool};
use xen_abi::{DomId, EvtchnPort, Gfn};

use crate::batch::Batch;
use crate::descriptors::Descriptors;
use crate::refused::{Reason, Refused};
use crate::round::{Entry, Round, State};
use crate::{Grants, Stats};

/// Requests that a round takes at most: a whole ring of one page.
const MAX_REQUESTS: usize = 32;

/// Segments that a round takes at most, give or take one request: 4 MiB.
const MAX_SEGMENTS: usize = 1024;

/// One ring of a vbd.
pub struct Queue<M> {
    /// The ring.
    pub ring: BackRing<M>,
    /// The port that tells its frontend.
    pub port: EvtchnPort,
    /// Whose ring it is.
    pub peer: DomId,
    /// What was done.
    pub stats: Stats,
}

/// What the requests of a ring are for.
pub struct Media<'a, M, D> {
    /// The disk.
    pub disk: &'a mut D,
    /// Whether this vbd may write it, whatever the disk itself allows.
    pub access: Access,
    /// The pool that the disk's pages are from.
    pub pool: &'a mut PagePool<M>,
}

/// How a turn ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Whether more requests are at hand.
    pub left: FinalCheck,
    /// The first request that was refused.
    pub refused: Option<Refused>,
}

/// Serves the rings, one at a time. Holds what a round needs, so that no round allocates.
#[derive(Debug)]
pub struct Engine {
    batch: Batch,
    descriptors: Descriptors,
    /// The requests of this round, in the order of the ring.
    round: Vec<Entry>,
    /// The checked segments of the request at hand.
    segments: Vec<CheckedSegment>,
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
            batch: Batch::new(MAX_REQUESTS),
            descriptors: Descriptors::new(area, max_indirect),
            round: Vec::with_capacity(MAX_REQUESTS),
            segments: Vec::with_capacity(max_segments),
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
        queue.ring.unconsumed()?;
        self.fetch(queue, grants);
        let mut round = Round {
            entries: &mut self.round,
            batch: &mut self.batch,
            segments: &mut self.segments,
            stats: &mut queue.stats,
            peer: queue.peer,
            grants,
            media,
        };
        round.begin_all();
        round.finish();
        let refused = self.answer(queue, grants);
        Ok(Turn { left: queue.ring.final_check()?, refused })
    }

    /// Takes requests off the ring, and gets the segments of indirect ones.
    fn fetch<G: Grants>(&mut self, queue: &mut Queue<G::Mapping>, grants: &mut G) {
        self.batch.begin();
        self.descriptors.begin();
        self.round.clear();
        let mut nr_segments = 0;
        while self.round.len() < MAX_REQUESTS
            && nr_segments < MAX_SEGMENTS
            && self.descriptors.has_room()
        {
            let owner = self.round.len();
            let entry = match queue.ring.consume() {
                None => break,
                Some(Err(malformed)) => Entry::malformed(&malformed),
                Some(Ok(request)) => {
                    let state = match request.op {
                        Operation::Indirect(indirect) => {
                            nr_segments += usize::from(indirect.nr_segments());
                            let batch = &mut self.batch;
                            let push = |copy| batch.push(grants, owner, copy);
                            let fetched = self.descriptors.fetch(queue.peer, &indirect, push);
                            State::Indirect(indirect, fetched)
                        }
                        op => {
                            nr_segments += blkif::MAX_SEGMENTS;
                            State::Direct(op)
                        }
                    };
                    Entry { id: request.id, operation: request.operation(), state }
                }
            };
            self.round.push(entry);
        }
        self.batch.run(grants);
    }

    /// Answers every request of the round, in order.
    fn answer<G: Grants>(
        &mut self,
        queue: &mut Queue<G::Mapping>,
        grants: &mut G,
    ) -> Option<Refused> {
        let mut refused = None;
        for Entry { id, operation, state } in self.round.drain(..) {
            let result = match state {
                State::Done(result) => result,
                state => {
                    debug_assert!(false, "{state:?} is not finished");
                    Err(Reason::Unsupported)
                }
            };
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
        if queue.ring.publish() == Notify::Needed {
            grants.notify(queue.port);
        }
        refused
    }
}
