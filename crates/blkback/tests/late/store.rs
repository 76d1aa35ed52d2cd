//! A store that has everything later, when the test says so.

use std::fmt::Write as _;

use store::{
    BlockStore, Discard, ExtentSink, Failure, FrameMemory, Geometry, Naming, OpenRead, OpenWrite,
    PageDisk, PagePool, Progress, SectorRange, Steps, StoreError, Token,
};

/// What stands in a place of the table.
enum Op {
    Free,
    Read(Option<OpenRead>),
    /// A write that is to be named, was named, and is being committed.
    Write(Option<OpenWrite>),
    Flush,
    Discard(SectorRange, Discard),
}

struct Slot {
    op: Op,
    generation: u32,
    ready: bool,
    failure: Option<Failure>,
}

/// Whether there is room for two open writes.
#[derive(PartialEq, Eq)]
pub enum Room {
    ForAll,
    ForOne,
}

/// Disk of pages whose every answer waits for [`make_ready`](Self::make_ready).
pub struct LateDisk {
    pub disk: PageDisk,
    slots: Vec<Slot>,
    /// Whether a write's extents are named later, too.
    pub writes: Naming,
    /// Requests that it opens at most; more are told that it is busy.
    pub max_open: usize,
    /// Whether a write whose extents are named later has room beside another that is not committed.
    pub room: Room,
    /// Where it wants discards to be parted.
    pub discard_unit: u64,
    /// What was asked of it, in order.
    pub log: String,
}

impl LateDisk {
    pub fn new(disk: PageDisk) -> Self {
        Self {
            disk,
            slots: Vec::new(),
            writes: Naming::Done,
            max_open: usize::MAX,
            room: Room::ForAll,
            discard_unit: u64::MAX,
            log: String::new(),
        }
    }

    /// Requests that are open or under way.
    pub fn nr_open(&self) -> usize {
        self.slots.iter().filter(|slot| !matches!(slot.op, Op::Free)).count()
    }

    /// The places of what waits, the oldest places first.
    pub fn waiting(&self) -> Vec<usize> {
        let waits = |slot: &Slot| !matches!(slot.op, Op::Free) && !slot.ready;
        (0..self.slots.len()).filter(|&n| waits(&self.slots[n])).collect()
    }

    /// Has what waits at a place be ready.
    pub fn make_ready(&mut self, place: usize, failure: Option<Failure>) {
        self.slots[place].ready = true;
        self.slots[place].failure = failure;
    }

    fn say(&mut self, what: &str, range: Option<SectorRange>) {
        match range {
            Some(range) => write!(self.log, "{what} {} ", range.first()).expect("a String"),
            None => write!(self.log, "{what} ").expect("a String"),
        }
    }

    fn open(&mut self, op: Op, ready: bool) -> Result<Token, StoreError> {
        if self.nr_open() >= self.max_open {
            return Err(StoreError::Busy);
        }
        let free = self.slots.iter().position(|slot| matches!(slot.op, Op::Free));
        let place = free.unwrap_or(self.slots.len());
        if free.is_none() {
            self.slots.push(Slot { op: Op::Free, generation: 0, ready: false, failure: None });
        }
        let slot = &mut self.slots[place];
        *slot = Slot { op, generation: slot.generation + 1, ready, failure: None };
        Ok(Token::new(u32::try_from(place).expect("few"), slot.generation))
    }

    fn slot(&mut self, token: &Token) -> &mut Slot {
        let slot = &mut self.slots[token.slot() as usize];
        assert_eq!(slot.generation, token.generation(), "a stale token");
        slot
    }

    fn close(&mut self, token: &Token) -> (Op, Option<Failure>) {
        let slot = self.slot(token);
        (std::mem::replace(&mut slot.op, Op::Free), slot.failure.take())
    }
}

impl<M: FrameMemory> BlockStore<M> for LateDisk {
    fn geometry(&self) -> Geometry {
        BlockStore::<M>::geometry(&self.disk)
    }

    fn is_ready(&self, token: &Token) -> bool {
        self.slots[token.slot() as usize].ready
    }

    fn begin_read(
        &mut self,
        _pool: &mut PagePool<M>,
        range: SectorRange,
        _sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        let token = self.open(Op::Read(None), false)?;
        self.say("read", Some(range));
        Ok(OpenRead::later(token))
    }

    fn resume_read(
        &mut self,
        pool: &mut PagePool<M>,
        read: &mut OpenRead,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        let token = read.token().expect("every read has one");
        assert!(BlockStore::<M>::is_ready(self, token));
        if let Some(failure) = self.slot(token).failure {
            return Err(StoreError::Device(failure));
        }
        let inner = self.disk.begin_read(pool, range, sink)?;
        self.slot(token).op = Op::Read(Some(inner));
        Ok(())
    }

    fn end_read(&mut self, pool: &mut PagePool<M>, mut read: OpenRead) {
        let token = read.take_token().expect("every read has one");
        if let (Op::Read(Some(inner)), _) = self.close(&token) {
            self.disk.end_read(pool, inner);
        }
    }

    fn begin_write(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        let naming = self.writes;
        let token = self.open(Op::Write(None), naming == Naming::Done)?;
        if naming == Naming::Done {
            match self.disk.begin_write(pool, range, sink) {
                Ok(inner) => self.slot(&token).op = Op::Write(Some(inner)),
                Err(error) => {
                    self.close(&token);
                    return Err(error);
                }
            }
        }
        self.say("write", Some(range));
        Ok(OpenWrite::with_token(range, token, naming))
    }

    fn resume_write(
        &mut self,
        pool: &mut PagePool<M>,
        write: &mut OpenWrite,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        let range = write.range();
        let token = write.token().expect("every write has one");
        if let Some(failure) = self.slot(token).failure {
            return Err(StoreError::Device(failure));
        }
        let is_open = |slot: &Slot| slot.ready && matches!(slot.op, Op::Write(Some(_)));
        if self.room == Room::ForOne && self.slots.iter().any(is_open) {
            return Err(StoreError::NoMemory { free: 0, total: 0 });
        }
        let inner = self.disk.begin_write(pool, range, sink)?;
        self.slot(token).op = Op::Write(Some(inner));
        Ok(())
    }

    fn commit_write(
        &mut self,
        _pool: &mut PagePool<M>,
        mut write: OpenWrite,
    ) -> Result<Progress, StoreError> {
        self.say("commit", Some(write.range()));
        let token = write.take_token().expect("every write has one");
        self.slot(&token).ready = false;
        Ok(Progress::Later(token))
    }

    fn abort_write(&mut self, pool: &mut PagePool<M>, mut write: OpenWrite) {
        self.say("abort", Some(write.range()));
        let token = write.take_token().expect("every write has one");
        self.cancel(pool, token);
    }

    fn discard_unit_sectors(&self) -> u64 {
        self.discard_unit
    }

    fn discard(
        &mut self,
        _pool: &mut PagePool<M>,
        range: SectorRange,
        discard: Discard,
        _steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        let token = self.open(Op::Discard(range, discard), false)?;
        self.say("discard", Some(range));
        Ok(Progress::Later(token))
    }

    fn flush(&mut self, _pool: &mut PagePool<M>) -> Result<Progress, StoreError> {
        let is_write = |slot: &Slot| matches!(slot.op, Op::Write(_));
        assert!(!self.slots.iter().any(is_write), "a flush beside writes that came before it");
        self.say("flush", None);
        let most = std::mem::replace(&mut self.max_open, usize::MAX);
        let token = self.open(Op::Flush, false);
        self.max_open = most;
        token.map(Progress::Later)
    }

    fn conclude(&mut self, pool: &mut PagePool<M>, token: Token) -> Result<Progress, StoreError> {
        assert!(BlockStore::<M>::is_ready(self, &token));
        let (op, failure) = self.close(&token);
        match (op, failure) {
            (Op::Write(Some(inner)), Some(failure)) => {
                self.disk.abort_write(pool, inner);
                Err(StoreError::Device(failure))
            }
            (_, Some(failure)) => Err(StoreError::Device(failure)),
            (Op::Write(Some(inner)), None) => self.disk.commit_write(pool, inner),
            (Op::Discard(range, discard), None) => {
                self.disk.discard(pool, range, discard, &mut Steps::new(u32::MAX))
            }
            (_, None) => Ok(Progress::Done),
        }
    }

    fn cancel(&mut self, pool: &mut PagePool<M>, token: Token) {
        match self.close(&token).0 {
            Op::Write(Some(inner)) => self.disk.abort_write(pool, inner),
            Op::Read(Some(inner)) => self.disk.end_read(pool, inner),
            _ => {}
        }
    }
}
