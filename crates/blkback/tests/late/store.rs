//! A store that has everything later, when the test says so.

use std::fmt::Write as _;

use sim::{Iommu, Page};
use store::{
    BlockStore, Direction, Discard, Extent, ExtentSink, Failure, FrameMemory, Geometry, Lease,
    Lent, Naming, OpenRead, OpenWrite, PageDisk, PagePool, Progress, SectorRange, Steps,
    StoreError, Token,
};
use xen_abi::{Gfn, PAGE_SIZE};

/// What stands in a place of the table.
enum Op {
    Free,
    Read(Option<OpenRead>),
    /// A write that is to be named, was named, and is being committed.
    Write(Option<OpenWrite>),
    Flush,
    Discard(SectorRange, Discard),
    Lent(SectorRange, Direction, Pages),
}

/// What a guest has lent.
struct Pages {
    frames: Vec<Gfn>,
    _lease: Lease,
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
    /// By what it reaches pages that it is lent, if it takes any.
    pub iommu: Option<Iommu>,
    /// Whether it takes those it is offered now.
    pub lends: bool,
    /// What it was lent and nobody waits for any more.
    abandoned: Vec<Pages>,
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
            iommu: None,
            lends: true,
            abandoned: Vec::new(),
            log: String::new(),
        }
    }

    /// Gives up a request that is under way, as a ring does with what it has no memory for.
    pub fn give_up(&mut self, place: usize) {
        if let Op::Lent(_, _, pages) = std::mem::replace(&mut self.slots[place].op, Op::Flush) {
            self.abandoned.push(pages);
        }
        self.make_ready(place, Some(Failure::Gone));
    }

    /// Accesses all that it is lent, as a device may at any time.
    pub fn access_lent(&self) {
        let lent = self.slots.iter().filter_map(|slot| match &slot.op {
            Op::Lent(_, _, pages) => Some(pages),
            _ => None,
        });
        lent.chain(&self.abandoned).for_each(|pages| _ = self.pages(pages));
    }

    /// Has all be over that nobody waits for.
    pub fn finish_abandoned(&mut self) {
        self.access_lent();
        self.abandoned.clear();
    }

    fn pages(&self, pages: &Pages) -> Vec<Page> {
        let iommu = self.iommu.as_ref().expect("nothing is lent without one");
        pages.frames.iter().map(|&frame| iommu.page(frame)).collect()
    }

    /// Moves the data of a request between the disk and what was lent for it.
    fn carry_out<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        direction: Direction,
        pages: &Pages,
    ) -> Result<Progress, StoreError> {
        let mut extents = Vec::new();
        let mut sink = |extent| extents.push(extent);
        let mut data: Vec<u8> =
            self.pages(pages).iter().flat_map(|page| page.bytes(0..PAGE_SIZE)).collect();
        let (read, write) = match direction {
            Direction::Read => (Some(self.disk.begin_read(pool, range, &mut sink)?), None),
            Direction::Write => (None, Some(self.disk.begin_write(pool, range, &mut sink)?)),
        };
        let mut rest = &mut data[..];
        for extent in extents {
            let (Extent::Frames { len_bytes, .. }
            | Extent::Zero { len_bytes }
            | Extent::Discarded { len_bytes }) = extent;
            let (bytes, behind) = rest.split_at_mut(len_bytes);
            rest = behind;
            match (extent, direction) {
                (Extent::Frames { at, .. }, Direction::Read) => pool.memory_mut().read(at, bytes),
                (Extent::Frames { at, .. }, Direction::Write) => pool.memory_mut().write(at, bytes),
                _ => bytes.fill(0),
            }
        }
        if let Some(read) = read {
            self.disk.end_read(pool, read);
            for (page, bytes) in self.pages(pages).iter().zip(data.chunks(PAGE_SIZE)) {
                page.write(0, bytes);
            }
        }
        write.map_or(Ok(Progress::Done), |write| self.disk.commit_write(pool, write))
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

    fn takes_pages(&self) -> bool {
        self.iommu.is_some()
    }

    fn lend(
        &mut self,
        range: SectorRange,
        direction: Direction,
        lent: Lent<'_>,
    ) -> Result<Option<Token>, StoreError> {
        if !self.lends || self.nr_open() >= self.max_open {
            return Ok(None);
        }
        assert_eq!(lent.frames.len() as u64, range.nr().div_ceil(8));
        let pages = Pages { frames: lent.frames.to_vec(), _lease: lent.lease.clone() };
        let token = self.open(Op::Lent(range, direction, pages), false)?;
        self.say(if direction == Direction::Read { "fill" } else { "drain" }, Some(range));
        Ok(Some(token))
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
        let is_write =
            |slot: &Slot| matches!(slot.op, Op::Write(_) | Op::Lent(_, Direction::Write, _));
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
            (Op::Lent(range, direction, pages), None) => {
                self.carry_out(pool, range, direction, &pages)
            }
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
            Op::Lent(_, _, pages) => self.abandoned.push(pages),
            _ => {}
        }
    }
}
