//! A device that does what a test says, when it says so.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use store::{
    Access, BlockSize, BlockStore, Completion, Device, DeviceDisk, DiscardLimits, Extent, Failure,
    Flushing, FrameAddr, FrameMemory, Geometry, OpenRead, OpenWrite, PagePool, Progress, Refusal,
    Refused, Request, SectorRange, SecureDiscard, Shared, Slice, Steps, StoreError, Tag, Token,
};
use xen_abi::{Gfn, PAGE_SIZE};

use crate::frames::{Frames, POISON, SECTOR, fill, gather};

/// Sectors of its disk.
pub const NR_SECTORS: u64 = 256;

/// Frames of its buffers.
pub const NR_FRAMES: u64 = 24;

/// The first of them.
const FIRST: u64 = 2;

/// Frames of the pool come after them.
const POOL: u64 = 32;

#[derive(PartialEq, Eq, Debug)]
pub struct Buffer {
    frames: Vec<Gfn>,
    nr_sectors: u32,
}

/// What byte `n` of the disk is at first.
pub fn byte(n: usize) -> u8 {
    u8::try_from(n / SECTOR % 251).unwrap() + 1
}

pub struct Fake {
    pub geometry: Geometry,
    pub flushing: Flushing,
    pub max_sectors: u64,
    /// Requests that it takes at once.
    pub max_requests: usize,
    /// Pages that it takes at once which are not its own.
    pub max_lent: usize,
    /// It refuses all that it is asked from now on.
    pub refuses: Option<Failure>,
    pub disk: Vec<u8>,
    memory: Frames,
    free: Vec<Gfn>,
    /// In the order in which they were submitted.
    pub under_way: Vec<(Tag, Request<Buffer>)>,
    over: VecDeque<Completion<Buffer>>,
    /// Everything that was ever submitted, and how many sectors.
    pub log: Vec<Request<u32>>,
}

impl Fake {
    pub fn new(memory: &Frames) -> Self {
        let bytes = usize::try_from(NR_SECTORS).unwrap() * SECTOR;
        Self {
            geometry: Geometry {
                nr_sectors: NR_SECTORS,
                logical: BlockSize::B512,
                physical_bytes: 4096,
                access: Access::ReadWrite,
                discard: Some(DiscardLimits {
                    granularity_bytes: 8192,
                    secure: SecureDiscard::Offered,
                }),
            },
            flushing: Flushing::Offered,
            max_sectors: 8 * NR_FRAMES,
            max_requests: 100,
            max_lent: 0,
            refuses: None,
            disk: (0..bytes).map(byte).collect(),
            memory: memory.clone(),
            free: (FIRST..FIRST + NR_FRAMES).rev().map(Gfn).collect(),
            under_way: Vec::new(),
            over: VecDeque::new(),
            log: Vec::new(),
        }
    }

    pub fn nr_free(&self) -> u64 {
        self.free.len() as u64
    }

    /// Carries out the `nth` of what is under way, or fails it without.
    pub fn finish(&mut self, nth: usize, result: Result<(), Failure>) {
        let (tag, request) = self.under_way.remove(nth);
        if result.is_ok() {
            self.carry_out(&request);
        }
        self.over.push_back(Completion { tag, result, buffer: request.into_buffer() });
    }

    /// Fails the `nth` of what is under way, and may still access its buffer.
    pub fn lose(&mut self, nth: usize) {
        let (tag, _) = self.under_way.remove(nth);
        self.over.push_back(Completion { tag, result: Err(Failure::Gone), buffer: None });
    }

    pub fn finish_all(&mut self) {
        while !self.under_way.is_empty() {
            self.finish(0, Ok(()));
        }
    }

    fn carry_out(&mut self, request: &Request<Buffer>) {
        let byte_of = |sector: u64| usize::try_from(sector).unwrap() * SECTOR;
        let places = |sector: u64, buffer: &Buffer| {
            let len_bytes = buffer.nr_sectors as usize * SECTOR;
            let place = |(n, &frame): (usize, &Gfn)| {
                let len_bytes = (len_bytes - n * PAGE_SIZE).min(PAGE_SIZE);
                (byte_of(sector) + n * PAGE_SIZE, len_bytes, FrameAddr::start_of(frame))
            };
            buffer.frames.iter().enumerate().map(place).collect::<Vec<_>>()
        };
        match request {
            Request::Read { sector, buffer } => {
                for (start, len_bytes, at) in places(*sector, buffer) {
                    self.memory.write(at, &self.disk[start..][..len_bytes]);
                }
            }
            Request::Write { sector, buffer } => {
                for (start, len_bytes, at) in places(*sector, buffer) {
                    self.memory.read(at, &mut self.disk[start..][..len_bytes]);
                }
            }
            Request::Flush => {}
            Request::Discard { sector, nr_sectors }
            | Request::SecureDiscard { sector, nr_sectors } => {
                self.disk[byte_of(*sector)..][..byte_of(*nr_sectors)].fill(0);
            }
        }
    }
}

impl Device for Fake {
    type Buffer = Buffer;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn flushing(&self) -> Flushing {
        self.flushing
    }

    fn max_sectors(&self) -> u64 {
        self.max_sectors
    }

    fn reserve(&mut self, nr_sectors: u32) -> Option<Buffer> {
        assert!(nr_sectors > 0 && u64::from(nr_sectors) <= self.max_sectors);
        let left = self.free.len().checked_sub(nr_sectors.div_ceil(8) as usize)?;
        let mut frames = self.free.split_off(left);
        frames.reverse();
        Some(Buffer { frames, nr_sectors })
    }

    fn lend(&mut self, frames: &[Gfn], nr_sectors: u32) -> Option<Buffer> {
        self.max_lent = self.max_lent.checked_sub(frames.len())?;
        Some(Buffer { frames: frames.to_vec(), nr_sectors })
    }

    fn give_back(&mut self, buffer: Buffer) {
        if buffer.frames[0].0 >= POOL {
            self.max_lent += buffer.frames.len();
            return;
        }
        for frame in buffer.frames.into_iter().rev() {
            assert!(!self.free.contains(&frame), "{frame} is given back twice");
            self.memory.write(FrameAddr::start_of(frame), &[POISON; PAGE_SIZE]);
            self.free.push(frame);
        }
    }

    fn frames(&self, buffer: &Buffer, each: &mut dyn FnMut(Gfn)) {
        buffer.frames.iter().copied().for_each(each);
    }

    fn submit(&mut self, tag: Tag, request: Request<Buffer>) -> Result<(), Refused<Buffer>> {
        let refuse = |reason, request| Err(Refused { reason, request });
        if let Some(failure) = self.refuses {
            return refuse(Refusal::Failed(failure), request);
        }
        if self.under_way.len() >= self.max_requests {
            return refuse(Refusal::Full { max: self.max_requests }, request);
        }
        let (first, nr, entry) = match &request {
            Request::Read { sector, buffer } => {
                let nr = buffer.nr_sectors;
                (*sector, nr.into(), Request::Read { sector: *sector, buffer: nr })
            }
            Request::Write { sector, buffer } => {
                let nr = buffer.nr_sectors;
                (*sector, nr.into(), Request::Write { sector: *sector, buffer: nr })
            }
            Request::Flush => (0, self.geometry.logical.sectors(), Request::Flush),
            Request::Discard { sector, nr_sectors } => {
                let entry = Request::Discard { sector: *sector, nr_sectors: *nr_sectors };
                (*sector, *nr_sectors, entry)
            }
            Request::SecureDiscard { sector, nr_sectors } => {
                let entry = Request::SecureDiscard { sector: *sector, nr_sectors: *nr_sectors };
                (*sector, *nr_sectors, entry)
            }
        };
        if SectorRange::on(&self.geometry, first, nr).is_err() {
            return refuse(Refusal::Failed(Failure::Range), request);
        }
        let all = self.under_way.iter().map(|one| one.0).chain(self.over.iter().map(|one| one.tag));
        assert!(all.into_iter().all(|other| other != tag), "{tag:?} is under way");
        self.log.push(entry);
        self.under_way.push((tag, request));
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion<Buffer>> {
        self.over.pop_front()
    }
}

/// A pool beside the device's frames, and the device.
pub struct Lab {
    pub pool: PagePool<Frames>,
    pub device: Rc<RefCell<Shared<Fake>>>,
    nr_pages: u64,
}

impl Lab {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Fake)) -> Self {
        let memory = Frames::new(256);
        let mut fake = Fake::new(&memory);
        change(&mut fake);
        let pool = PagePool::new(memory, &[(Gfn(POOL), 256 - POOL)]).unwrap();
        let device = Rc::new(RefCell::new(Shared::new()));
        device.borrow_mut().connect(fake);
        assert!(device.borrow_mut().pump(), "a new device is news");
        Self { nr_pages: pool.nr_free(), pool, device }
    }

    /// All of the device.
    pub fn disk(&self) -> DeviceDisk {
        DeviceDisk::new(&self.device, Slice::default(), Access::ReadWrite).unwrap()
    }

    pub fn slice(&self, offset: u64, nr_sectors: u64) -> DeviceDisk {
        let slice = Slice { offset, nr_sectors: Some(nr_sectors) };
        DeviceDisk::new(&self.device, slice, Access::ReadWrite).unwrap()
    }

    /// Does something with the device.
    pub fn fake<T>(&self, act: impl FnOnce(&mut Fake) -> T) -> T {
        act(self.device.borrow_mut().device().unwrap())
    }

    pub fn pump(&self) -> bool {
        self.device.borrow_mut().pump()
    }

    /// Carries out all that is under way.
    pub fn finish(&self) {
        self.fake(Fake::finish_all);
        assert!(self.pump());
    }

    pub fn log(&self) -> Vec<Request<u32>> {
        self.fake(|fake| std::mem::take(&mut fake.log))
    }

    /// Nothing is open, every frame of the device is free, and every page of the pool.
    pub fn assert_clean(&self) {
        assert_eq!(self.device.borrow().nr_open(), 0, "operations are not ended");
        if let Some(fake) = self.device.borrow_mut().device() {
            assert_eq!(fake.nr_free(), NR_FRAMES, "buffers are lost");
        }
        assert_eq!(self.pool.nr_free(), self.nr_pages, "pages are lost");
    }
}

pub fn range(disk: &impl BlockStore<Frames>, first: u64, nr: u64) -> SectorRange {
    SectorRange::on(&disk.geometry(), first, nr).unwrap()
}

/// Begins a read, which must name nothing yet.
pub fn begin(
    disk: &mut impl BlockStore<Frames>,
    lab: &mut Lab,
    first: u64,
    nr: u64,
) -> Result<OpenRead, StoreError> {
    let range = range(disk, first, nr);
    disk.begin_read(&mut lab.pool, range, &mut |extent| panic!("{extent:?} is named at once"))
}

/// What a read that is ready names; it is ended.
pub fn resume(
    disk: &mut impl BlockStore<Frames>,
    lab: &mut Lab,
    mut read: OpenRead,
    first: u64,
    nr: u64,
) -> Result<(Vec<Extent>, Vec<u8>), StoreError> {
    let range = range(disk, first, nr);
    let mut extents = Vec::new();
    let mut sink = |extent| extents.push(extent);
    let result = disk.resume_read(&mut lab.pool, &mut read, range, &mut sink);
    let bytes = gather(&lab.pool, &extents);
    disk.end_read(&mut lab.pool, read);
    result.map(|()| (extents, bytes))
}

/// Reads, from begin to end.
pub fn read(disk: &mut impl BlockStore<Frames>, lab: &mut Lab, first: u64, nr: u64) -> Vec<u8> {
    let read = begin(disk, lab, first, nr).unwrap();
    lab.finish();
    resume(disk, lab, read, first, nr).unwrap().1
}

/// Begins a write, and copies its data where it goes if that is known.
pub fn begin_write(
    disk: &mut impl BlockStore<Frames>,
    lab: &mut Lab,
    first: u64,
    data: &[u8],
) -> Result<OpenWrite, StoreError> {
    let range = range(disk, first, (data.len() / SECTOR) as u64);
    let mut extents = Vec::new();
    let write = disk.begin_write(&mut lab.pool, range, &mut |extent| extents.push(extent))?;
    match write.naming() {
        store::Naming::Done => fill(&mut lab.pool, &extents, data),
        store::Naming::Later => assert_eq!(extents, []),
    }
    Ok(write)
}

/// What is answered later.
pub fn later(progress: Result<Progress, StoreError>) -> Token {
    match progress {
        Ok(Progress::Later(token)) => token,
        other => panic!("{other:?}"),
    }
}

pub const fn plenty() -> Steps {
    Steps::new(1 << 20)
}
