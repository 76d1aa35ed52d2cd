//! One round: requests are begun in their order, copied together, ended in their order.

use alloc::vec::Vec;
use core::ops::Range;

use blkif::{
    Indirect, IndirectOp, Malformed, OpCode, Operation, RequestId, Sector, Segment, Transfer,
};
use store::{
    Access, BlockStore, Discard, FrameMemory, Geometry, OpenRead, OpenWrite, Progress, SectorRange,
    SecureDiscard, Steps, StoreError,
};
use xen_abi::{CopyPtr, DomId, GnttabCopy};

use crate::batch::{Batch, Gather, Piece};
use crate::descriptors::Fetched;
use crate::engine::{Discards, Media};
use crate::persistent::Persistent;
use crate::refused::Reason;
use crate::{Grants, Stats};

/// Pages that a discard gives back in one round.
const MAX_DISCARDED: u32 = 1024;

/// A request of this round.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: RequestId,
    pub(crate) operation: OpCode,
    pub(crate) state: State,
}

impl Entry {
    /// A request that is answered by what is wrong with it.
    pub(crate) const fn malformed(malformed: &Malformed) -> Self {
        Self {
            id: malformed.id,
            operation: malformed.operation,
            state: State::Done(Err(Reason::Malformed(malformed.reason))),
        }
    }
}

/// How far a request has come.
#[derive(Debug)]
pub(crate) enum State {
    /// Off the ring.
    Direct(Operation),
    /// Off the ring, and its segments on their way to us.
    Indirect(Indirect, Fetched),
    /// Its segments are checked.
    Parsed(Task),
    /// Its data is to be copied to the guest.
    Reading(OpenRead, SectorRange),
    /// Its data is to be copied from the guest.
    Writing(OpenWrite, SectorRange),
    /// A part of it was given up; it goes on in the next round.
    Discarding(SectorRange, Discard),
    /// To be answered.
    Done(Result<(), Reason>),
}

/// A request that moves data or orders it.
#[derive(Debug)]
pub(crate) struct Task {
    kind: Kind,
    sector: Sector,
    /// Its segments among those of the round.
    pieces: Range<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Write,
    /// Makes durable what was written before, and then writes, as Linux's backend has it.
    Flush,
    /// A write between all that came before and all that comes after.
    Barrier,
}

/// What a round works with.
pub(crate) struct Round<'a, 'm, G: Grants, M, D> {
    pub(crate) entries: &'a mut Vec<Entry>,
    pub(crate) batch: &'a mut Batch,
    /// The segments of all its requests.
    pub(crate) pieces: &'a mut Vec<Piece>,
    pub(crate) mapped: Option<&'a mut Persistent<G::Mapping>>,
    pub(crate) stats: &'a mut Stats,
    pub(crate) peer: DomId,
    pub(crate) grants: &'a mut G,
    pub(crate) media: &'a mut Media<'m, M, D>,
}

impl<G: Grants, M: FrameMemory, D: BlockStore<M>> Round<'_, '_, G, M, D> {
    /// Gets the segments of indirect requests into our own memory.
    pub(crate) fn fetch_descriptors(&mut self) {
        if let Some(mapped) = &mut self.mapped {
            for entry in &*self.entries {
                if let State::Indirect(indirect, _) = &entry.state {
                    indirect.grefs().iter().for_each(|&gref| mapped.want(gref));
                }
            }
            mapped.map_missing(self.grants, self.peer);
        }
        for (owner, entry) in self.entries.iter().enumerate() {
            let State::Indirect(indirect, fetched) = &entry.state else { continue };
            for (gref, to, len_bytes) in fetched.parts(indirect) {
                let place = self.mapped.as_mut().and_then(|mapped| mapped.find(gref));
                if let (Some(mapped), Some(place)) = (&self.mapped, place) {
                    self.grants.copy_in(mapped.page(place), 0, to, len_bytes);
                } else {
                    let from = CopyPtr::grant(self.peer, gref, 0);
                    let to = CopyPtr::frame(to.gfn, to.offset);
                    let copy = GnttabCopy::from_grant(from, to, len_bytes);
                    self.batch.push(self.grants, owner, copy);
                }
            }
        }
        self.batch.run(self.grants);
    }

    /// Checks the segments of every request, and maps the pages that are to stay mapped.
    pub(crate) fn prepare(&mut self) {
        let geometry = self.media.disk.geometry();
        let memory = self.media.pool.memory();
        for (owner, entry) in self.entries.iter_mut().enumerate() {
            let start = self.pieces.len();
            let (kind, sector, parsed) = match &entry.state {
                State::Direct(operation) => {
                    let Some((kind, transfer)) = transfer(operation) else { continue };
                    let segments = transfer.segments.as_slice().iter().copied();
                    (kind, transfer.sector, parse(self.pieces, &geometry, segments))
                }
                State::Indirect(indirect, fetched) => {
                    let segments = (0..indirect.nr_segments()).map(|n| fetched.segment(memory, n));
                    let parsed = match self.batch.failure(owner) {
                        Some(status) => Err(Reason::Copy(status)),
                        None => parse(self.pieces, &geometry, segments),
                    };
                    (indirect.op().into(), indirect.sector(), parsed)
                }
                _ => continue,
            };
            entry.state = match parsed {
                Ok(()) => {
                    let pieces = start..self.pieces.len();
                    self.stats.segments.count(pieces.len());
                    State::Parsed(Task { kind, sector, pieces })
                }
                Err(reason) => {
                    self.pieces.truncate(start);
                    State::Done(Err(reason))
                }
            };
        }
        if let Some(mapped) = &mut self.mapped {
            self.pieces.iter().for_each(|piece| mapped.want(piece.segment.gref()));
            mapped.map_missing(self.grants, self.peer);
            for piece in &mut *self.pieces {
                piece.place = mapped.find(piece.segment.gref());
            }
        }
    }

    /// Begins every request.
    pub(crate) fn begin_all(&mut self) {
        for owner in 0..self.entries.len() {
            let done = State::Done(Err(Reason::Unsupported));
            let state = match core::mem::replace(&mut self.entries[owner].state, done) {
                State::Parsed(task) => self.begin(owner, &task),
                State::Direct(operation) => self.begin_discard(&operation),
                State::Discarding(range, discard) => self.discard(range, discard),
                state => Ok(state),
            };
            self.entries[owner].state = state.unwrap_or_else(|reason| State::Done(Err(reason)));
        }
    }

    /// Makes the copies that wait, and ends every request that waits for them.
    pub(crate) fn finish(&mut self) {
        self.batch.run(self.grants);
        for owner in 0..self.entries.len() {
            let failure = self.batch.failure(owner).map(Reason::Copy);
            let state = &mut self.entries[owner].state;
            let result = failure.map_or(Ok(()), Err);
            match core::mem::replace(state, State::Done(result)) {
                State::Reading(read, range) => {
                    self.media.disk.end_read(self.media.pool, read);
                    if failure.is_none() {
                        self.stats.nr_reads += 1;
                        self.stats.nr_sectors_read += range.nr();
                    }
                }
                State::Writing(write, range) => {
                    if failure.is_none() {
                        self.media.disk.commit_write(self.media.pool, write);
                        self.stats.nr_writes += 1;
                        self.stats.nr_sectors_written += range.nr();
                    } else {
                        self.media.disk.abort_write(self.media.pool, write);
                    }
                }
                other => self.entries[owner].state = other,
            }
        }
    }

    fn begin(&mut self, owner: usize, task: &Task) -> Result<State, Reason> {
        match task.kind {
            Kind::Read => self.transfer(owner, IndirectOp::Read, task),
            Kind::Write => self.transfer(owner, IndirectOp::Write, task),
            Kind::Flush => {
                self.flush()?;
                self.stats.nr_flushes += 1;
                if task.pieces.is_empty() {
                    return Ok(State::Done(Ok(())));
                }
                self.transfer(owner, IndirectOp::Write, task)
            }
            Kind::Barrier => {
                self.flush()?;
                self.stats.nr_barriers += 1;
                if task.pieces.is_empty() {
                    return Ok(State::Done(Ok(())));
                }
                self.entries[owner].state = self.transfer(owner, IndirectOp::Write, task)?;
                self.flush()?;
                let done = State::Done(Err(Reason::Unsupported));
                Ok(core::mem::replace(&mut self.entries[owner].state, done))
            }
        }
    }

    /// Ends all that was begun, and makes it durable.
    fn flush(&mut self) -> Result<(), Reason> {
        self.finish();
        Ok(self.media.disk.flush(self.media.pool)?)
    }

    /// Begins a read or write of a request's segments.
    fn transfer(
        &mut self,
        owner: usize,
        direction: IndirectOp,
        task: &Task,
    ) -> Result<State, Reason> {
        let pieces = &self.pieces[task.pieces.clone()];
        let nr = pieces.iter().map(|piece| u64::from(piece.segment.nr_sectors())).sum();
        let range = SectorRange::on(&self.media.disk.geometry(), task.sector.0, nr)?;
        if direction == IndirectOp::Write && self.media.access == Access::ReadOnly {
            return Err(Reason::ReadOnly);
        }
        match self.open(owner, direction, range, task.pieces.clone()) {
            // What is open may be in its way, or have reserved pages in exchange for others that
            // only go back when it is ended.
            Err(
                StoreError::Busy
                | StoreError::NoMemory { .. }
                | StoreError::NoHeap
                | StoreError::CapReached { .. },
            ) => {
                self.finish();
                Ok(self.open(owner, direction, range, task.pieces.clone())?)
            }
            other => Ok(other?),
        }
    }

    fn open(
        &mut self,
        owner: usize,
        direction: IndirectOp,
        range: SectorRange,
        pieces: Range<usize>,
    ) -> Result<State, StoreError> {
        let mut gather = Gather {
            batch: self.batch,
            grants: self.grants,
            mapped: self.mapped.as_deref(),
            peer: self.peer,
            direction,
            owner,
            zero: self.media.pool.zero_page(),
            pieces: &self.pieces[pieces],
            used_bytes: 0,
        };
        let (disk, pool) = (&mut *self.media.disk, &mut *self.media.pool);
        let opened = match direction {
            IndirectOp::Read => {
                disk.begin_read(pool, range, &mut gather).map(|read| State::Reading(read, range))
            }
            IndirectOp::Write => {
                disk.begin_write(pool, range, &mut gather).map(|write| State::Writing(write, range))
            }
        };
        if opened.is_err() {
            // Their frames are not ours to touch any more.
            self.batch.forget(owner);
        }
        opened
    }

    fn begin_discard(&mut self, operation: &Operation) -> Result<State, Reason> {
        let Operation::Discard { sector, nr_sectors, secure } = *operation else {
            return Err(Reason::Unsupported);
        };
        let geometry = self.media.disk.geometry();
        let Some(limits) = geometry.discard.filter(|_| self.media.discards == Discards::Offered)
        else {
            return Err(Reason::Unsupported);
        };
        if self.media.access == Access::ReadOnly {
            return Err(Reason::ReadOnly);
        }
        let range = SectorRange::on(&geometry, sector.0, nr_sectors)?;
        // The flag is to be ignored where secure discards were never offered.
        let discard = match limits.secure {
            SecureDiscard::Offered | SecureDiscard::Shared if secure => Discard::Secure,
            _ => Discard::Plain,
        };
        self.discard(range, discard)
    }

    fn discard(&mut self, range: SectorRange, discard: Discard) -> Result<State, Reason> {
        self.finish();
        let (disk, pool) = (&mut *self.media.disk, &mut *self.media.pool);
        match disk.discard(pool, range, discard, &mut Steps::new(MAX_DISCARDED))? {
            Progress::More => Ok(State::Discarding(range, discard)),
            Progress::Done => {
                self.stats.nr_discards += 1;
                self.stats.nr_sectors_discarded += range.nr();
                Ok(State::Done(Ok(())))
            }
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

/// What a direct operation transfers, if it does.
const fn transfer(operation: &Operation) -> Option<(Kind, &Transfer)> {
    match operation {
        Operation::Read(transfer) => Some((Kind::Read, transfer)),
        Operation::Write(transfer) => Some((Kind::Write, transfer)),
        Operation::Flush(transfer) => Some((Kind::Flush, transfer)),
        Operation::Barrier(transfer) => Some((Kind::Barrier, transfer)),
        Operation::Discard { .. } | Operation::Indirect(_) | Operation::Unknown { .. } => None,
    }
}

/// Checks segments against their page and the disk's logical block size.
fn parse(
    pieces: &mut Vec<Piece>,
    geometry: &Geometry,
    segments: impl Iterator<Item = Segment>,
) -> Result<(), Reason> {
    let block_bytes = geometry.logical.bytes();
    let whole = |bytes: u16| u32::from(bytes).is_multiple_of(block_bytes);
    for (n, segment) in segments.enumerate() {
        let segment = segment.check().map_err(|error| Reason::Segment { n, error })?;
        if !whole(segment.offset()) || !whole(segment.len_bytes()) {
            return Err(Reason::SegmentBlock { n, block_bytes });
        }
        pieces.push(Piece { segment, place: None });
    }
    Ok(())
}
