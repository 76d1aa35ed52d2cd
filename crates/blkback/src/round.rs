//! One round: requests are begun in their order, copied together, ended in their order.

use alloc::vec::Vec;

use blkif::{
    CheckedSegment, Indirect, IndirectOp, Malformed, OpCode, Operation, RequestId, Sector, Segment,
    Transfer,
};
use store::{
    Access, BlockStore, FrameMemory, Geometry, OpenRead, OpenWrite, SectorRange, StoreError,
};
use xen_abi::DomId;

use crate::batch::{Batch, Gather};
use crate::descriptors::Fetched;
use crate::engine::Media;
use crate::refused::Reason;
use crate::{Grants, Stats};

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
    /// Its data is to be copied to the guest.
    Reading(OpenRead, SectorRange),
    /// Its data is to be copied from the guest.
    Writing(OpenWrite, SectorRange),
    /// To be answered.
    Done(Result<(), Reason>),
}

/// What a round works with.
pub(crate) struct Round<'a, 'm, G, M, D> {
    pub(crate) entries: &'a mut Vec<Entry>,
    pub(crate) batch: &'a mut Batch,
    pub(crate) segments: &'a mut Vec<CheckedSegment>,
    pub(crate) stats: &'a mut Stats,
    pub(crate) peer: DomId,
    pub(crate) grants: &'a mut G,
    pub(crate) media: &'a mut Media<'m, M, D>,
}

impl<G: Grants, M: FrameMemory, D: BlockStore<M>> Round<'_, '_, G, M, D> {
    /// Begins every request.
    pub(crate) fn begin_all(&mut self) {
        for owner in 0..self.entries.len() {
            let done = State::Done(Err(Reason::Unsupported));
            let state = match core::mem::replace(&mut self.entries[owner].state, done) {
                State::Direct(operation) => self.begin(owner, &operation),
                State::Indirect(indirect, fetched) => {
                    self.begin_indirect(owner, &indirect, fetched)
                }
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

    fn begin(&mut self, owner: usize, operation: &Operation) -> Result<State, Reason> {
        match operation {
            Operation::Read(transfer) => self.begin_direct(owner, IndirectOp::Read, transfer),
            Operation::Write(transfer) => self.begin_direct(owner, IndirectOp::Write, transfer),
            Operation::Flush(transfer) => {
                // All that was begun before it is to be durable.
                self.finish();
                self.media.disk.flush(self.media.pool)?;
                self.stats.nr_flushes += 1;
                // A flush with data is the flush, then the write, as Linux's backend has it.
                if transfer.segments.nr() == 0 {
                    return Ok(State::Done(Ok(())));
                }
                self.begin_direct(owner, IndirectOp::Write, transfer)
            }
            Operation::Barrier(_)
            | Operation::Discard { .. }
            | Operation::Indirect(_)
            | Operation::Unknown { .. } => Err(Reason::Unsupported),
        }
    }

    fn begin_direct(
        &mut self,
        owner: usize,
        direction: IndirectOp,
        transfer: &Transfer,
    ) -> Result<State, Reason> {
        let geometry = self.media.disk.geometry();
        self.segments.clear();
        for (n, segment) in transfer.segments.as_slice().iter().enumerate() {
            self.segments.push(check(&geometry, n, segment)?);
        }
        self.transfer(owner, direction, transfer.sector)
    }

    fn begin_indirect(
        &mut self,
        owner: usize,
        indirect: &Indirect,
        fetched: Fetched,
    ) -> Result<State, Reason> {
        if let Some(status) = self.batch.failure(owner) {
            return Err(Reason::Copy(status));
        }
        let geometry = self.media.disk.geometry();
        self.segments.clear();
        for n in 0..indirect.nr_segments() {
            let segment = fetched.segment(self.media.pool.memory(), n);
            self.segments.push(check(&geometry, n.into(), &segment)?);
        }
        self.transfer(owner, indirect.op(), indirect.sector())
    }

    /// Begins a read or write of the segments at hand.
    fn transfer(
        &mut self,
        owner: usize,
        direction: IndirectOp,
        sector: Sector,
    ) -> Result<State, Reason> {
        let nr = self.segments.iter().map(|segment| u64::from(segment.nr_sectors())).sum();
        let range = SectorRange::on(&self.media.disk.geometry(), sector.0, nr)?;
        if direction == IndirectOp::Write && self.media.access == Access::ReadOnly {
            return Err(Reason::ReadOnly);
        }
        match self.open(owner, direction, range) {
            Err(StoreError::Busy) => {
                self.finish();
                Ok(self.open(owner, direction, range)?)
            }
            other => Ok(other?),
        }
    }

    fn open(
        &mut self,
        owner: usize,
        direction: IndirectOp,
        range: SectorRange,
    ) -> Result<State, StoreError> {
        let mut gather = Gather {
            batch: self.batch,
            grants: self.grants,
            peer: self.peer,
            direction,
            owner,
            zero: self.media.pool.zero_page(),
            segments: self.segments,
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
}

/// Checks a segment against its page and the disk's logical block size.
fn check(geometry: &Geometry, n: usize, segment: &Segment) -> Result<CheckedSegment, Reason> {
    let segment = segment.check().map_err(|error| Reason::Segment { n, error })?;
    let block_bytes = geometry.logical.bytes();
    let whole = |bytes: u16| u32::from(bytes).is_multiple_of(block_bytes);
    if whole(segment.offset()) && whole(segment.len_bytes()) {
        Ok(segment)
    } else {
        Err(Reason::SegmentBlock { n, block_bytes })
    }
}
