//! One round: requests are begun in their order, copied together, ended in their order.

use alloc::vec::Vec;
use core::ops::Range;

use blkif::{Indirect, IndirectOp, Malformed, OpCode, RequestId, Sector, Segment};
use store::{
    Access, BlockStore, Discard, FrameMemory, Geometry, OpenRead, OpenWrite, Progress, SECTOR_SIZE,
    SectorRange, SecureDiscard, Steps, StoreError,
};
use xen_abi::{CopyPtr, DomId, GnttabCopy};

use crate::batch::{Batch, Gather, Piece};
use crate::descriptors::{Fetched, SegmentBytes};
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
    /// An indirect request whose segments are on their way to us.
    Fetching,
    /// Its segments are checked.
    Parsed(Task),
    /// A discard that is not checked yet.
    Discard { sector: Sector, nr_sectors: u64, secure: bool },
    /// Its data is to be copied to the guest.
    Reading(OpenRead, SectorRange),
    /// Its data is to be copied from the guest.
    Writing(OpenWrite),
    /// A part of it was given up; it goes on in the next round.
    Discarding(SectorRange, Discard),
    /// To be answered.
    Done(Result<(), Reason>),
}

/// A request that moves data or orders it.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    kind: Kind,
    sector: Sector,
    nr_sectors: u64,
    /// Its segments among those of the round.
    pieces: Range<usize>,
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

/// What a round works with.
pub(crate) struct Round<'a, 'm, G: Grants, M, D> {
    /// The disk's, which does not change in a round.
    pub(crate) geometry: Geometry,
    pub(crate) entries: &'a mut Vec<Entry>,
    /// Entries of which none is open any more: the first ones.
    pub(crate) nr_ended: usize,
    pub(crate) indirect: &'a [(usize, Indirect, Fetched)],
    pub(crate) batch: &'a mut Batch,
    /// Where the segments of an indirect request are read to.
    pub(crate) segment_bytes: &'a mut [SegmentBytes],
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
        if self.indirect.is_empty() {
            return;
        }
        if let Some(mapped) = &mut self.mapped {
            for (_, indirect, _) in self.indirect {
                indirect.grefs().iter().for_each(|&gref| _ = mapped.want(gref));
            }
            mapped.map_missing(self.grants, self.peer);
        }
        for &(owner, ref indirect, fetched) in self.indirect {
            for (gref, to, len_bytes) in fetched.parts(indirect) {
                let place = self.mapped.as_mut().and_then(|mapped| mapped.find(gref));
                if let (Some(mapped), Some(place)) = (&self.mapped, place) {
                    self.grants.copy_in(mapped.page(place), 0, to, len_bytes);
                } else {
                    let from = CopyPtr::grant(self.peer, gref, 0);
                    let to = CopyPtr::frame(to.gfn(), to.offset());
                    let copy = GnttabCopy::from_grant(from, to, len_bytes);
                    self.batch.push(self.grants, owner, copy);
                }
            }
        }
        self.batch.run(self.grants);
    }

    /// Checks the segments of indirect requests, and maps the pages that are to stay mapped.
    pub(crate) fn prepare(&mut self) {
        let memory = self.media.pool.memory();
        for &(owner, ref indirect, fetched) in self.indirect {
            self.entries[owner].state = match self.batch.failure(owner) {
                Some(status) => State::Done(Err(Reason::Copy(status))),
                None => Task::parse(
                    indirect.op().into(),
                    indirect.sector(),
                    fetched.segments(memory, indirect.nr_segments(), self.segment_bytes),
                    self.pieces,
                    &self.geometry,
                    self.stats,
                ),
            };
        }
        let Some(mapped) = &mut self.mapped else { return };
        for piece in &mut *self.pieces {
            piece.place = mapped.want(piece.segment.gref());
        }
        if mapped.map_missing(self.grants, self.peer) {
            for piece in self.pieces.iter_mut().filter(|piece| piece.place.is_none()) {
                piece.place = mapped.find(piece.segment.gref());
            }
        }
    }

    /// Begins every request.
    pub(crate) fn begin_all(&mut self) {
        for owner in 0..self.entries.len() {
            let begun = match self.entries[owner].state {
                State::Parsed(ref task) => {
                    let task = task.clone();
                    self.begin(owner, &task)
                }
                State::Discard { sector, nr_sectors, secure } => {
                    self.begin_discard(owner, sector, nr_sectors, secure)
                }
                State::Discarding(range, discard) => self.discard(owner, range, discard),
                _ => continue,
            };
            if let Err(reason) = begun {
                self.entries[owner].state = State::Done(Err(reason));
            }
        }
    }

    /// Makes the copies that wait, and ends every request before the one at `end` that waits for
    /// them.
    pub(crate) fn finish(&mut self, end: usize) {
        self.batch.run(self.grants);
        let end = end.min(self.entries.len());
        for owner in self.nr_ended..end {
            let state = &mut self.entries[owner].state;
            if !matches!(state, State::Reading(..) | State::Writing(_)) {
                continue;
            }
            let failure = self.batch.failure(owner).map(Reason::Copy);
            let result = failure.map_or(Ok(()), Err);
            match core::mem::replace(state, State::Done(result)) {
                State::Reading(read, range) => {
                    self.media.disk.end_read(self.media.pool, read);
                    if failure.is_none() {
                        self.stats.nr_reads += 1;
                        self.stats.nr_sectors_read += range.nr();
                    }
                }
                State::Writing(write) => {
                    if failure.is_none() {
                        self.stats.nr_writes += 1;
                        self.stats.nr_sectors_written += write.range().nr();
                        let _ = self.media.disk.commit_write(self.media.pool, write);
                    } else {
                        self.media.disk.abort_write(self.media.pool, write);
                    }
                }
                _ => {}
            }
        }
        self.nr_ended = end;
    }

    fn begin(&mut self, owner: usize, task: &Task) -> Result<(), Reason> {
        match task.kind {
            Kind::Read => return self.transfer(owner, IndirectOp::Read, task),
            Kind::Write => return self.transfer(owner, IndirectOp::Write, task),
            Kind::Flush => {
                self.flush(owner)?;
                self.stats.nr_flushes += 1;
            }
            Kind::Barrier => {
                self.flush(owner)?;
                self.stats.nr_barriers += 1;
            }
        }
        if task.pieces.is_empty() {
            self.entries[owner].state = State::Done(Ok(()));
            return Ok(());
        }
        self.transfer(owner, IndirectOp::Write, task)?;
        if task.kind == Kind::Barrier { self.flush(owner + 1) } else { Ok(()) }
    }

    /// Ends all that was begun before the request at `end`, and makes it durable.
    fn flush(&mut self, end: usize) -> Result<(), Reason> {
        self.finish(end);
        self.media.disk.flush(self.media.pool)?;
        Ok(())
    }

    /// Begins a read or write of a request's segments.
    fn transfer(&mut self, owner: usize, direction: IndirectOp, task: &Task) -> Result<(), Reason> {
        let range = SectorRange::on(&self.geometry, task.sector.0, task.nr_sectors)?;
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
                self.finish(owner);
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
    ) -> Result<(), StoreError> {
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
            IndirectOp::Write => disk.begin_write(pool, range, &mut gather).map(State::Writing),
        };
        match opened {
            Ok(state) => {
                self.entries[owner].state = state;
                Ok(())
            }
            Err(error) => {
                // Their frames are not ours to touch any more.
                self.batch.forget(owner);
                Err(error)
            }
        }
    }

    fn begin_discard(
        &mut self,
        owner: usize,
        sector: Sector,
        nr_sectors: u64,
        secure: bool,
    ) -> Result<(), Reason> {
        let offered = self.media.discards == Discards::Offered;
        let Some(limits) = self.geometry.discard.filter(|_| offered) else {
            return Err(Reason::Unsupported);
        };
        if self.media.access == Access::ReadOnly {
            return Err(Reason::ReadOnly);
        }
        let range = SectorRange::on(&self.geometry, sector.0, nr_sectors)?;
        // The flag is to be ignored where secure discards were never offered.
        let discard = match limits.secure {
            SecureDiscard::Offered | SecureDiscard::Shared if secure => Discard::Secure,
            _ => Discard::Plain,
        };
        self.discard(owner, range, discard)
    }

    fn discard(
        &mut self,
        owner: usize,
        range: SectorRange,
        discard: Discard,
    ) -> Result<(), Reason> {
        self.finish(owner);
        let (disk, pool) = (&mut *self.media.disk, &mut *self.media.pool);
        self.entries[owner].state =
            match disk.discard(pool, range, discard, &mut Steps::new(MAX_DISCARDED))? {
                Progress::More => State::Discarding(range, discard),
                _ => {
                    self.stats.nr_discards += 1;
                    self.stats.nr_sectors_discarded += range.nr();
                    State::Done(Ok(()))
                }
            };
        Ok(())
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
