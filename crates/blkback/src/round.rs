//! One round: requests are begun in their order, copied together, ended in their order.

use alloc::vec::Vec;
use core::mem::replace;
use core::ops::Range;

use blkif::{CheckedSegment, Indirect, IndirectOp, OpCode, Sector};
use store::{
    Access, BlockStore, Direction, Discard, FrameMemory, Geometry, Lent, Naming, OpenWrite,
    PagePool, Progress, SectorRange, SecureDiscard, Steps, StoreError,
};
use xen_abi::{CopyPtr, DomId, Gfn, GnttabCopy, PAGE_SIZE};

use crate::batch::{Batch, Gather, Piece};
use crate::descriptors::{Fetched, SegmentBytes};
use crate::engine::{Discards, Media, Next};
use crate::entry::{Entry, Kind, Late, State, Task, Then};
use crate::persistent::Persistent;
use crate::refused::Reason;
use crate::{Grants, Stats};

/// Pages that a discard gives back in one round.
const MAX_DISCARDED: u32 = 1024;

/// What a round works with.
pub(crate) struct Round<'a, 'm, G: Grants, M, D> {
    /// The disk's, which does not change in a round.
    pub(crate) geometry: Geometry,
    pub(crate) entries: &'a mut Vec<Entry>,
    /// The segments of entries that were in flight and are not taken up: of the first ones.
    pub(crate) left: &'a [Vec<CheckedSegment>],
    /// Entries of which none is open any more: the first ones.
    pub(crate) nr_ended: usize,
    /// Entries that are all known to be done: the first ones.
    pub(crate) nr_done: usize,
    /// What the ring has its next turn for, unless that is up to the ring.
    pub(crate) next: Next,
    pub(crate) indirect: &'a [(usize, Indirect, Fetched)],
    pub(crate) batch: &'a mut Batch,
    /// Where the segments of an indirect request are read to.
    pub(crate) segment_bytes: &'a mut [SegmentBytes],
    /// The segments of all its requests.
    pub(crate) pieces: &'a mut Vec<Piece>,
    /// Where the frames of a request's pages are put.
    pub(crate) frames: &'a mut Vec<Gfn>,
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

    /// Begins or resumes every request that may be. What the store works on is resumed also behind one
    /// that holds back: that may wait for the room that it has.
    pub(crate) fn begin_all(&mut self) {
        let mut is_held_back = false;
        for owner in 0..self.entries.len() {
            let entry = &mut self.entries[owner];
            // Not so for what has just come: it is not in flight.
            let is_left = |left: &Vec<_>| !left.is_empty() || !entry.is_due(self.media.disk);
            let is_left = self.left.get(owner).is_some_and(is_left);
            if is_left || is_held_back && !matches!(entry.state, State::Late(_)) {
                is_held_back |= entry.holds_back();
                continue;
            }
            let begun = match entry.state {
                State::Parsed(ref task) => {
                    let task = task.clone();
                    self.begin(owner, &task)
                }
                State::Discard { sector, nr_sectors, secure } => {
                    self.begin_discard(owner, sector, nr_sectors, secure)
                }
                State::Discarding(range, discard) => self.discard(owner, range, discard),
                State::Late(_) => self.resume(owner),
                _ => continue,
            };
            let entry = &mut self.entries[owner];
            if let Err(reason) = begun {
                entry.state = State::Done(Err(reason));
            }
            is_held_back |= entry.holds_back();
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
            match replace(state, State::Done(result)) {
                State::Reading(read, range) => {
                    self.media.disk.end_read(self.media.pool, read);
                    if failure.is_none() {
                        self.stats.nr_reads += 1;
                        self.stats.nr_sectors_read += range.nr();
                    }
                }
                State::Writing(write) => {
                    if failure.is_none() {
                        self.commit(owner, write);
                    } else {
                        self.media.disk.abort_write(self.media.pool, write);
                    }
                }
                _ => {}
            }
        }
        self.nr_ended = end;
    }

    /// Whether all before the one at `end` only wait to be answered.
    pub(crate) fn are_done_before(&mut self, end: usize) -> bool {
        let end = end.min(self.entries.len());
        while self.nr_done < end && self.entries[self.nr_done].is_done() {
            self.nr_done += 1;
        }
        self.nr_done >= end
    }

    /// Ends a write whose data is copied.
    fn commit(&mut self, owner: usize, write: OpenWrite) {
        let nr_sectors = write.range().nr();
        let state = match self.media.disk.commit_write(self.media.pool, write) {
            Ok(Progress::Later(token)) => {
                State::Late(Late::Step(token, Then::Written { nr_sectors }))
            }
            Ok(_) => {
                self.stats.nr_writes += 1;
                self.stats.nr_sectors_written += nr_sectors;
                return;
            }
            Err(error) => State::Done(Err(error.into())),
        };
        self.entries[owner].state = state;
    }

    fn begin(&mut self, owner: usize, task: &Task) -> Result<(), Reason> {
        match task.kind {
            Kind::Read => return self.transfer(owner, IndirectOp::Read, task),
            Kind::Write => return self.transfer(owner, IndirectOp::Write, task),
            Kind::Flush | Kind::Barrier => {}
        }
        self.finish(owner);
        if !self.are_done_before(owner) {
            return Ok(());
        }
        let flushed = self.media.disk.flush(self.media.pool)?;
        match task.kind {
            Kind::Barrier => self.stats.nr_barriers += 1,
            _ => self.stats.nr_flushes += 1,
        }
        if let Progress::Later(token) = flushed {
            let then = Then::Flushed(task.clone());
            self.entries[owner].state = State::Late(Late::Step(token, then));
            return Ok(());
        }
        self.flushed(owner, task)
    }

    /// Goes on with a request that had all before it made durable.
    fn flushed(&mut self, owner: usize, task: &Task) -> Result<(), Reason> {
        if task.pieces.is_empty() {
            self.entries[owner].state = State::Done(Ok(()));
            return Ok(());
        }
        self.transfer(owner, IndirectOp::Write, task)?;
        self.seal(owner)
    }

    /// Makes a barrier's own data durable before anything that comes after it, once it is written.
    fn seal(&mut self, owner: usize) -> Result<(), Reason> {
        if self.entries[owner].operation != OpCode::BARRIER {
            return Ok(());
        }
        self.finish(owner + 1);
        if matches!(self.entries[owner].state, State::Done(Ok(())))
            && let Progress::Later(token) = self.media.disk.flush(self.media.pool)?
        {
            self.entries[owner].state = State::Late(Late::Step(token, Then::Sealed));
        }
        Ok(())
    }

    /// Goes on with a request whose turn it is again in the store.
    #[inline(never)]
    fn resume(&mut self, owner: usize) -> Result<(), Reason> {
        let state = &mut self.entries[owner].state;
        match replace(state, State::Done(Ok(()))) {
            State::Late(Late::Read(mut read, range, task)) => {
                let (disk, pool, mut gather) = self.gather(owner, IndirectOp::Read, task.pieces);
                let resumed = disk.resume_read(pool, &mut read, range, &mut gather);
                if let Err(error) = resumed {
                    self.batch.forget(owner);
                    self.media.disk.end_read(self.media.pool, read);
                    return Err(error.into());
                }
                self.entries[owner].state = State::Reading(read, range);
            }
            State::Late(Late::Write(mut write, task)) => {
                let mut resumed = self.resume_write(owner, &mut write, task.pieces.clone());
                if resumed.is_err_and(may_pass) {
                    self.finish(owner);
                    resumed = self.resume_write(owner, &mut write, task.pieces);
                }
                if let Err(error) = resumed {
                    self.media.disk.abort_write(self.media.pool, write);
                    return Err(error.into());
                }
                self.entries[owner].state = State::Writing(write);
                self.seal(owner)?;
            }
            State::Late(Late::Step(token, then)) => {
                let concluded = self.media.disk.conclude(self.media.pool, token)?;
                self.step(owner, then, concluded)?;
            }
            other => self.entries[owner].state = other,
        }
        Ok(())
    }

    fn resume_write(
        &mut self,
        owner: usize,
        write: &mut OpenWrite,
        pieces: Range<usize>,
    ) -> Result<(), StoreError> {
        let (disk, pool, mut gather) = self.gather(owner, IndirectOp::Write, pieces);
        let resumed = disk.resume_write(pool, write, &mut gather);
        if resumed.is_err() {
            self.batch.forget(owner);
        }
        resumed
    }

    /// Goes on behind a step that is over, or not quite.
    #[inline(never)]
    fn step(&mut self, owner: usize, then: Then, concluded: Progress) -> Result<(), Reason> {
        if let Progress::Later(token) = concluded {
            self.entries[owner].state = State::Late(Late::Step(token, then));
            return Ok(());
        }
        match then {
            Then::Lent { direction: Direction::Read, nr_sectors, .. } => {
                self.stats.nr_reads += 1;
                self.stats.nr_sectors_read += nr_sectors;
                Ok(())
            }
            Then::Written { nr_sectors }
            | Then::Lent { direction: Direction::Write, nr_sectors, .. } => {
                self.stats.nr_writes += 1;
                self.stats.nr_sectors_written += nr_sectors;
                self.seal(owner)
            }
            Then::Flushed(task) => self.flushed(owner, &task),
            Then::Sealed => Ok(()),
            Then::Discarded(range, discard) => {
                self.discarded(owner, range, discard, concluded);
                Ok(())
            }
        }
    }

    /// Begins a read or write of a request's segments. Where the store is too busy for that, it
    /// stays to be begun.
    fn transfer(&mut self, owner: usize, direction: IndirectOp, task: &Task) -> Result<(), Reason> {
        let range = SectorRange::on(&self.geometry, task.sector.0, task.nr_sectors)?;
        if direction == IndirectOp::Write && self.media.access == Access::ReadOnly {
            return Err(Reason::ReadOnly);
        }
        if self.media.disk.takes_pages() && self.lend(owner, direction, range, task)? {
            return Ok(());
        }
        let opened = match self.open(owner, direction, range, task) {
            Err(error) if may_pass(error) => {
                self.finish(owner);
                self.open(owner, direction, range, task)
            }
            other => other,
        };
        match opened {
            Err(StoreError::Busy) => {
                self.entries[owner].state = State::Parsed(task.clone());
                self.wait_for_disk();
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Has a device move a request's data between its disk and the guest's pages, where it can.
    #[inline(never)]
    fn lend(
        &mut self,
        owner: usize,
        direction: IndirectOp,
        range: SectorRange,
        task: &Task,
    ) -> Result<bool, StoreError> {
        let Some(mapped) = self.mapped.as_deref() else { return Ok(false) };
        let pieces = &self.pieces[task.pieces.clone()];
        self.frames.clear();
        self.frames.extend(pieces.iter().map_while(|Piece { segment, place }| {
            let frame = self.grants.frame(mapped.page((*place)?));
            frame.filter(|_| segment.offset() == 0)
        }));
        let are_whole = pieces.split_last().is_some_and(|(_, others)| {
            others.iter().all(|piece| usize::from(piece.segment.len_bytes()) == PAGE_SIZE)
        });
        if self.frames.len() < pieces.len() || !are_whole {
            return Ok(false);
        }
        let direction = match direction {
            IndirectOp::Read => Direction::Read,
            IndirectOp::Write => Direction::Write,
        };
        let lent = Lent { frames: self.frames, lease: mapped.lease() };
        let Some(token) = self.media.disk.lend(range, direction, lent)? else { return Ok(false) };
        let (nr_sectors, round) = (range.nr(), mapped.round());
        let then = Then::Lent { direction, nr_sectors, round };
        self.entries[owner].state = State::Late(Late::Step(token, then));
        Ok(true)
    }

    /// The disk is busy. What is ready and was left for the next round does not wait for it.
    fn wait_for_disk(&mut self) {
        if self.next == Next::Event {
            self.next = Next::Disk;
        }
    }

    /// What a request's extents go to.
    #[inline]
    fn gather(
        &mut self,
        owner: usize,
        direction: IndirectOp,
        pieces: Range<usize>,
    ) -> (&mut D, &mut PagePool<M>, Gather<'_, G>) {
        let gather = Gather {
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
        (&mut *self.media.disk, &mut *self.media.pool, gather)
    }

    fn open(
        &mut self,
        owner: usize,
        direction: IndirectOp,
        range: SectorRange,
        task: &Task,
    ) -> Result<(), StoreError> {
        let (disk, pool, mut gather) = self.gather(owner, direction, task.pieces.clone());
        let opened = match direction {
            IndirectOp::Read => {
                disk.begin_read(pool, range, &mut gather).map(|read| match read.naming() {
                    Naming::Done => State::Reading(read, range),
                    Naming::Later => State::Late(Late::Read(read, range, task.clone())),
                })
            }
            IndirectOp::Write => {
                disk.begin_write(pool, range, &mut gather).map(|write| match write.naming() {
                    Naming::Done => State::Writing(write),
                    Naming::Later => State::Late(Late::Write(write, task.clone())),
                })
            }
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
        let (part, _) = range.split(disk.discard_unit_sectors());
        match disk.discard(pool, part, discard, &mut Steps::new(MAX_DISCARDED)) {
            // What the store works on is in its way.
            Err(StoreError::Busy) => {
                self.entries[owner].state = State::Discarding(range, discard);
                self.wait_for_disk();
            }
            progress => self.discarded(owner, range, discard, progress?),
        }
        Ok(())
    }

    fn discarded(
        &mut self,
        owner: usize,
        range: SectorRange,
        discard: Discard,
        progress: Progress,
    ) {
        self.entries[owner].state = match progress {
            Progress::More => {
                self.next = Next::Work;
                State::Discarding(range, discard)
            }
            Progress::Later(token) => {
                State::Late(Late::Step(token, Then::Discarded(range, discard)))
            }
            Progress::Done => {
                let (part, rest) = range.split(self.media.disk.discard_unit_sectors());
                self.stats.count_discarded(part.nr());
                if let Some(rest) = rest {
                    self.next = Next::Work;
                    State::Discarding(rest, discard)
                } else {
                    self.stats.nr_discards += 1;
                    State::Done(Ok(()))
                }
            }
        };
    }
}

/// Whether a request that the store refused may do once those before it are ended: what is open may be
/// in its way, or have reserved pages in exchange for others that only go back then.
const fn may_pass(error: StoreError) -> bool {
    matches!(
        error,
        StoreError::Busy
            | StoreError::NoMemory { .. }
            | StoreError::NoHeap
            | StoreError::CapReached { .. }
    )
}
