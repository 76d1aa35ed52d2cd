//! A request on its way, from the ring to its answer.

use alloc::vec::Vec;
use core::ops::Range;

use blkif::{CheckedSegment, IndirectOp, Malformed, OpCode, RequestId, Sector, Segment};
use store::{
    BlockStore, Direction, Discard, FrameMemory, Geometry, OpenRead, OpenWrite, PagePool,
    SECTOR_SIZE, SectorRange, StoreError, Token,
};

use crate::Stats;
use crate::batch::Piece;
use crate::refused::Reason;

/// A request that was taken off the ring and is not answered.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: RequestId,
    pub(crate) operation: OpCode,
    pub(crate) state: State,
}

/// A request between two rounds.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) entry: Entry,
    /// Its segments, if it is to have them in a round.
    pub(crate) segments: Vec<CheckedSegment>,
}

/// How far a request has come.
#[derive(Debug)]
pub(crate) enum State {
    /// An indirect request whose segments are on their way to us.
    Fetching,
    /// Its segments are checked; it is to be begun.
    Parsed(Task),
    /// A discard that is not checked yet.
    Discard { sector: Sector, nr_sectors: u64, secure: bool },
    /// Its data is to be copied to the guest.
    Reading(OpenRead, SectorRange),
    /// Its data is to be copied from the guest.
    Writing(OpenWrite),
    /// A part of it was given up; it goes on in the next round.
    Discarding(SectorRange, Discard),
    /// The store works on it.
    Late(Late),
    /// To be answered.
    Done(Result<(), Reason>),
}

/// What a store works on.
#[derive(Debug)]
pub(crate) enum Late {
    /// To name what is read.
    Read(OpenRead, SectorRange, Task),
    /// To name where the data that is written goes.
    Write(OpenWrite, Task),
    /// To end a step, after which there may be another.
    Step(Token, Then),
}

/// What a step was, and what comes after it.
#[derive(Debug)]
pub(crate) enum Then {
    /// A write of so many sectors; a barrier is then made durable.
    Written { nr_sectors: u64 },
    /// A read or write of so many sectors in the guest's own pages, which were lent in that round.
    Lent { direction: Direction, nr_sectors: u64, round: u64 },
    /// A flush, before what is to be written.
    Flushed(Task),
    /// The flush that ends a barrier.
    Sealed,
    /// A discard.
    Discarded(SectorRange, Discard),
}

/// A request that moves data or orders it.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) kind: Kind,
    pub(crate) sector: Sector,
    pub(crate) nr_sectors: u64,
    /// Its segments among those of the round.
    pub(crate) pieces: Range<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    /// Makes durable what was written before, and then writes, as Linux's backend has it.
    Flush,
    /// A write between all that came before and all that comes after.
    Barrier,
}

impl Entry {
    pub(crate) const fn new(id: RequestId, operation: OpCode, state: State) -> Self {
        Self { id, operation, state }
    }

    /// A request that is answered by what is wrong with it.
    pub(crate) const fn malformed(malformed: &Malformed) -> Self {
        let state = State::Done(Err(Reason::Malformed(malformed.reason)));
        Self::new(malformed.id, malformed.operation, state)
    }

    pub(crate) const fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// Whether nothing that came after it may be begun.
    pub(crate) fn holds_back(&self) -> bool {
        match self.state {
            State::Parsed(_) | State::Discard { .. } | State::Discarding(..) => true,
            State::Late(_) => self.operation == OpCode::BARRIER,
            _ => false,
        }
    }

    /// Whether there is something to do for it in this round.
    pub(crate) fn is_due<M: FrameMemory>(&self, disk: &impl BlockStore<M>) -> bool {
        match &self.state {
            State::Late(late) => late.token().is_none_or(|token| disk.is_ready(token)),
            State::Done(_) => false,
            _ => true,
        }
    }

    /// The round in which its pages were lent, if they are.
    pub(crate) const fn lent_in(&self) -> Option<u64> {
        match self.state {
            State::Late(Late::Step(_, Then::Lent { round, .. })) => Some(round),
            _ => None,
        }
    }

    /// Adds its segments to those of the round.
    pub(crate) fn take_up(&mut self, segments: &mut Vec<CheckedSegment>, pieces: &mut Vec<Piece>) {
        let start = pieces.len();
        pieces.extend(segments.drain(..).map(|segment| Piece { segment, place: None }));
        if let Some(task) = self.state.task_mut() {
            task.pieces = start..pieces.len();
        }
    }

    /// Keeps its segments beyond the round, unless they have been left where they were.
    ///
    /// # Errors
    /// The heap has no room for them.
    pub(crate) fn lay_down(
        &mut self,
        segments: &mut Vec<CheckedSegment>,
        pieces: &[Piece],
    ) -> Result<(), StoreError> {
        let Some(task) = self.state.task_mut() else { return Ok(()) };
        let own = core::mem::take(&mut task.pieces);
        if segments.is_empty() {
            segments.try_reserve_exact(own.len()).map_err(|_| StoreError::NoHeap)?;
            segments.extend(pieces[own].iter().map(|piece| piece.segment));
        }
        Ok(())
    }

    /// Lets go of what the store keeps for it.
    pub(crate) fn abandon<M: FrameMemory>(
        &mut self,
        disk: &mut impl BlockStore<M>,
        pool: &mut PagePool<M>,
        reason: Reason,
    ) {
        match core::mem::replace(&mut self.state, State::Done(Err(reason))) {
            State::Reading(read, _) | State::Late(Late::Read(read, ..)) => {
                disk.end_read(pool, read);
            }
            State::Writing(write) | State::Late(Late::Write(write, _)) => {
                disk.abort_write(pool, write);
            }
            State::Late(Late::Step(token, _)) => disk.cancel(pool, token),
            State::Done(result) => self.state = State::Done(result),
            State::Fetching | State::Parsed(_) | State::Discard { .. } | State::Discarding(..) => {}
        }
    }
}

impl State {
    const fn task_mut(&mut self) -> Option<&mut Task> {
        match self {
            Self::Parsed(task)
            | Self::Late(
                Late::Read(_, _, task) | Late::Write(_, task) | Late::Step(_, Then::Flushed(task)),
            ) => Some(task),
            _ => None,
        }
    }
}

impl Late {
    /// What it waits for.
    const fn token(&self) -> Option<&Token> {
        match self {
            Self::Read(read, ..) => read.token(),
            Self::Write(write, _) => write.token(),
            Self::Step(token, _) => Some(token),
        }
    }
}

impl From<IndirectOp> for Kind {
    fn from(op: IndirectOp) -> Self {
        match op {
            IndirectOp::Read => Self::Read,
            IndirectOp::Write => Self::Write,
        }
    }
}

impl Task {
    /// Checks the segments of a request and adds them to those of the round: what there is to do,
    /// or the answer.
    pub(crate) fn parse(
        kind: Kind,
        sector: Sector,
        segments: impl Iterator<Item = Segment>,
        pieces: &mut Vec<Piece>,
        geometry: &Geometry,
        stats: &mut Stats,
    ) -> State {
        let start = pieces.len();
        match check(pieces, geometry, segments) {
            Ok(nr_sectors) => {
                let pieces = start..pieces.len();
                stats.segments.count(pieces.len());
                State::Parsed(Self { kind, sector, nr_sectors, pieces })
            }
            Err(reason) => {
                pieces.truncate(start);
                State::Done(Err(reason))
            }
        }
    }
}

/// Checks segments against their page and the disk's logical block size: how many sectors they
/// come to.
fn check(
    pieces: &mut Vec<Piece>,
    geometry: &Geometry,
    segments: impl Iterator<Item = Segment>,
) -> Result<u64, Reason> {
    let block_bytes = geometry.logical.bytes();
    let mut len_bytes = 0;
    for (n, segment) in segments.enumerate() {
        let segment = segment.check().map_err(|error| Reason::Segment { n, error })?;
        // A power of two.
        if u32::from(segment.offset() | segment.len_bytes()) & (block_bytes - 1) != 0 {
            return Err(Reason::SegmentBlock { n, block_bytes });
        }
        len_bytes += usize::from(segment.len_bytes());
        pieces.push(Piece { segment, place: None });
    }
    Ok((len_bytes / SECTOR_SIZE) as u64)
}
