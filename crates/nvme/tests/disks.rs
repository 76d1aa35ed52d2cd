//! Disks on the namespaces of a controller.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

mod simulated;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use nvme::{Controller, NamespaceDevice, NamespaceId};
use sim::{OwnFrames, Region};
use simulated::{Bus, Lab, OTHERS, SimNamespace, device};
use store::{
    Access, BlockStore, Device, DeviceDisk, Extent, Failure, FrameMemory, OpenRead, PagePool,
    Progress, Request, SectorRange, Shared, Slice, StoreError, Tag,
};
use xen_abi::Instant;

type OnNamespace = Rc<RefCell<Shared<NamespaceDevice<Bus, Region>>>>;

struct Disks {
    bus: Bus,
    controller: Rc<RefCell<Controller<Bus, Region>>>,
    /// Of both namespaces.
    on: [OnNamespace; 2],
    pool: PagePool<OwnFrames>,
}

impl Disks {
    /// Namespaces 1 and 2, of 1024 sectors each, the second of 4096-byte blocks.
    fn new() -> Self {
        let bus = device(1, 24);
        bus.device().namespaces.push(SimNamespace::new(2, 12, 128));
        let Lab { controller, .. } = Lab::new(bus.clone());
        let controller = Rc::new(RefCell::new(controller));
        let on = [1, 2].map(|nsid| {
            let mut shared = Shared::new();
            let device = NamespaceDevice::new(controller.clone(), NamespaceId(nsid));
            shared.connect(device.unwrap());
            assert!(shared.pump());
            Rc::new(RefCell::new(shared))
        });
        // Frames of the pool are not used by these disks.
        let frames = bus.device().frames.clone();
        let pool = PagePool::new(frames, &[OTHERS]).unwrap();
        Self { bus, controller, on, pool }
    }

    /// As the domain does it: all namespaces, then what they submitted.
    fn pump(&self) -> [bool; 2] {
        let news = self.on.each_ref().map(|on| on.borrow_mut().pump());
        let _ = self.controller.borrow_mut().step(Instant::from_ns(1));
        news
    }

    /// What was submitted is sent, done and taken.
    fn go(&self) -> [bool; 2] {
        self.pump();
        self.bus.device().run(usize::MAX);
        self.pump()
    }

    /// The namespaces of the commands that were sent.
    fn sent(&self) -> Vec<u32> {
        let log = std::mem::take(&mut self.bus.device().log);
        log.iter().map(|sqe| sqe.nsid).collect()
    }

    fn write(&mut self, disk: &mut DeviceDisk, first: u64, nr: u64, byte: u8) -> Progress {
        let range = SectorRange::on(&BlockStore::<OwnFrames>::geometry(disk), first, nr).unwrap();
        let mut extents = Vec::new();
        let mut sink = |extent| extents.push(extent);
        let write = disk.begin_write(&mut self.pool, range, &mut sink).unwrap();
        for extent in extents {
            let Extent::Frames { at, len_bytes } = extent else { panic!("{extent:?}") };
            self.pool.memory_mut().write(at, &vec![byte; len_bytes]);
        }
        disk.commit_write(&mut self.pool, write).unwrap()
    }

    fn read(&mut self, disk: &mut DeviceDisk, first: u64, nr: u64) -> Result<Vec<u8>, StoreError> {
        let range = SectorRange::on(&BlockStore::<OwnFrames>::geometry(disk), first, nr).unwrap();
        let mut read = disk.begin_read(&mut self.pool, range, &mut |_| panic!("at once"))?;
        self.go();
        let mut extents = Vec::new();
        let mut sink = |extent| extents.push(extent);
        let resumed = disk.resume_read(&mut self.pool, &mut read, range, &mut sink);
        let mut bytes = Vec::new();
        for extent in extents {
            let Extent::Frames { at, len_bytes } = extent else { panic!("{extent:?}") };
            let start = bytes.len();
            bytes.resize(start + len_bytes, 0);
            self.pool.memory_mut().read(at, &mut bytes[start..]);
        }
        disk.end_read(&mut self.pool, read);
        resumed.map(|()| bytes)
    }

    fn begin(&mut self, disk: &mut DeviceDisk, nr: u64) -> Result<OpenRead, StoreError> {
        let range = SectorRange::on(&BlockStore::<OwnFrames>::geometry(disk), 0, nr).unwrap();
        disk.begin_read(&mut self.pool, range, &mut |_| panic!("at once"))
    }

    fn later(&mut self, disk: &mut DeviceDisk, progress: Progress) -> Result<Progress, StoreError> {
        let Progress::Later(token) = progress else { panic!("{progress:?}") };
        self.go();
        assert!(BlockStore::<OwnFrames>::is_ready(disk, &token));
        disk.conclude(&mut self.pool, token)
    }
}

#[test]
fn disks_on_both_namespaces_and_slices_of_one() {
    let mut disks = Disks::new();
    let all = Slice::default();
    let half = Slice { offset: 512, nr_sectors: Some(512) };
    let mut first = DeviceDisk::new(&disks.on[0], all, Access::ReadWrite).unwrap();
    let mut slice = DeviceDisk::new(&disks.on[0], half, Access::ReadOnly).unwrap();
    let mut second = DeviceDisk::new(&disks.on[1], all, Access::ReadWrite).unwrap();
    let a = disks.write(&mut first, 510, 20, 0xaa);
    let b = disks.write(&mut second, 512, 16, 0xbb);
    assert_eq!(disks.later(&mut first, a), Ok(Progress::Done));
    // The other's answer came with the same interrupt, and its disks are told by their own pump.
    let Progress::Later(b) = b else { panic!("{b:?}") };
    assert!(BlockStore::<OwnFrames>::is_ready(&second, &b));
    assert_eq!(second.conclude(&mut disks.pool, b), Ok(Progress::Done));
    let bytes = disks.read(&mut slice, 0, 20).unwrap();
    assert!(bytes[..18 * 512].iter().all(|&byte| byte == 0xaa));
    assert!(bytes[18 * 512..].iter().all(|&byte| byte == 0));
    assert_eq!(disks.read(&mut second, 512, 16).unwrap(), [0xbb; 16 * 512]);
    // Durable is what was flushed.
    let flush = second.flush(&mut disks.pool).unwrap();
    assert_eq!(disks.later(&mut second, flush), Ok(Progress::Done));
    disks.bus.device().lose_power();
    assert_eq!(disks.read(&mut second, 512, 16).unwrap(), [0xbb; 16 * 512]);
    assert_eq!(disks.read(&mut first, 510, 20).unwrap(), [0; 20 * 512]);
}

#[test]
fn a_controller_that_goes_is_gone_for_all() {
    let mut disks = Disks::new();
    let all = Slice::default();
    let mut first = DeviceDisk::new(&disks.on[0], all, Access::ReadWrite).unwrap();
    let mut second = DeviceDisk::new(&disks.on[1], all, Access::ReadWrite).unwrap();
    let a = disks.write(&mut first, 0, 8, 1);
    disks.pump();
    disks.controller.borrow_mut().abandon();
    let gone = StoreError::Device(Failure::Gone);
    assert_eq!(disks.later(&mut first, a), Err(gone));
    assert_eq!(disks.read(&mut second, 0, 8), Err(gone));
    for on in &disks.on {
        assert_eq!(on.borrow().nr_open(), 0);
        assert!(on.borrow_mut().disconnect().is_some());
    }
    assert_eq!(disks.controller.borrow().nr_in_flight(), 0);
}

#[test]
fn what_waits_for_pages_is_gone_when_they_are_lost_with_the_controller() {
    let mut disks = Disks::new();
    let all = Slice::default();
    let mut first = DeviceDisk::new(&disks.on[0], all, Access::ReadWrite).unwrap();
    let mut second = DeviceDisk::new(&disks.on[1], all, Access::ReadWrite).unwrap();
    let nr_sectors = disks.controller.borrow().max_sectors();
    let a = disks.write(&mut first, 0, nr_sectors, 1);
    disks.pump();
    let mut waits = disks.begin(&mut second, 8).unwrap();
    assert!(!disks.on[1].borrow_mut().pump());
    // It is not seen to be disabled: where it may still write nothing is ever kept again.
    disks.controller.borrow_mut().abandon();
    assert!(disks.on[1].borrow_mut().pump());
    let gone = StoreError::Device(Failure::Gone);
    let range = SectorRange::on(&BlockStore::<OwnFrames>::geometry(&second), 0, 8).unwrap();
    let mut sink = |_| panic!("named");
    assert_eq!(second.resume_read(&mut disks.pool, &mut waits, range, &mut sink), Err(gone));
    second.end_read(&mut disks.pool, waits);
    assert_eq!(disks.read(&mut second, 0, 8), Err(gone));
    assert_eq!(disks.later(&mut first, a), Err(gone));
    assert_eq!(disks.read(&mut first, 0, 8), Err(gone));
    assert!(!disks.on[1].borrow_mut().pump(), "nobody waits");
}

#[test]
fn short_requests_leave_a_long_one_of_a_neighbour_its_turn() {
    let mut disks = Disks::new();
    let all = Slice::default();
    let mut long = DeviceDisk::new(&disks.on[0], all, Access::ReadWrite).unwrap();
    let mut short = DeviceDisk::new(&disks.on[1], all, Access::ReadWrite).unwrap();
    let mut reads: VecDeque<_> = (0..24).map(|_| disks.begin(&mut short, 8).unwrap()).collect();
    // Four pages, and one for their list.
    let waits = disks.begin(&mut long, 32).unwrap();
    reads.push_back(disks.begin(&mut short, 8).unwrap());
    disks.go();
    disks.bus.device().log.clear();
    for _ in 0..5 {
        disks.go();
        assert_eq!(disks.sent(), []);
        short.end_read(&mut disks.pool, reads.pop_front().unwrap());
    }
    disks.go();
    assert_eq!(disks.sent(), [1]);
    // Now it is the neighbour's turn.
    let other = DeviceDisk::new(&disks.on[0], all, Access::ReadWrite);
    let behind = disks.begin(&mut other.unwrap(), 8).unwrap();
    short.end_read(&mut disks.pool, reads.pop_front().unwrap());
    disks.go();
    assert_eq!(disks.sent(), [2]);
    for read in reads {
        short.end_read(&mut disks.pool, read);
    }
    disks.go();
    assert_eq!(disks.sent(), [1]);
    for read in [waits, behind] {
        long.end_read(&mut disks.pool, read);
    }
    for disk in [&mut long, &mut short] {
        assert_eq!(disks.read(disk, 0, 32), Ok(vec![0; 32 * 512]));
    }
}

#[test]
fn nobody_waits_for_the_turn_of_a_namespace_that_is_lost() {
    let disks = Disks::new();
    let device = |nsid| NamespaceDevice::new(disks.controller.clone(), NamespaceId(nsid)).unwrap();
    let [mut lost, mut stays] = [1, 2].map(device);
    // What can never be waits for nothing.
    assert_eq!(lost.reserve(25 * 8), None);
    let taken = stays.reserve(12 * 8).unwrap();
    assert_eq!(lost.reserve(12 * 8), None);
    stays.give_back(taken);
    assert_eq!(stays.reserve(8), None);
    {
        let mut device = disks.bus.device();
        device.csts |= 2;
        device.namespaces.remove(0);
    }
    stays.submit(Tag(1), Request::Flush).unwrap();
    let mut now = Instant::from_ns(1);
    while stays.complete().is_none() {
        now = disks.controller.borrow_mut().step(now).unwrap();
        disks.bus.device().run_admin();
    }
    assert_eq!(disks.controller.borrow().disk(NamespaceId(1)), None);
    assert_eq!((lost.max_sectors(), stays.max_sectors()), (0, 23 * 8));
    assert!(stays.reserve(8).is_some());
}

#[test]
fn a_namespace_that_is_read_all_the_time_leaves_pages_to_the_other() {
    let mut disks = Disks::new();
    let all = Slice::default();
    let mut first = DeviceDisk::new(&disks.on[0], all, Access::ReadWrite).unwrap();
    let mut second = DeviceDisk::new(&disks.on[1], all, Access::ReadWrite).unwrap();
    let on = |disk: &DeviceDisk, nr| {
        SectorRange::on(&BlockStore::<OwnFrames>::geometry(disk), 0, nr).unwrap()
    };
    let (page, long) = (on(&first, 8), on(&second, 96));
    let (mut open, mut waits) = (Vec::new(), None);
    for round in 0.. {
        assert!(round < 100, "there is never room for the long read");
        // The turn of the first: what is over, and then as much as there is room for.
        let is_ready =
            |read: &OpenRead| BlockStore::<OwnFrames>::is_ready(&first, read.token().unwrap());
        if let Some(ready) = open.iter().position(is_ready) {
            first.end_read(&mut disks.pool, open.swap_remove(ready));
        }
        while let Ok(read) = first.begin_read(&mut disks.pool, page, &mut |_| ()) {
            open.push(read);
        }
        if round == 0 {
            waits = second.begin_read(&mut disks.pool, long, &mut |_| ()).ok();
        }
        // As the domain does it, twice: what one does not wait for any more another may.
        disks.pump();
        disks.pump();
        disks.bus.device().run(1);
        if disks.sent().contains(&2) {
            break;
        }
        disks.pump();
    }
    second.end_read(&mut disks.pool, waits.unwrap());
    // When that is over, the first waits for nobody any more.
    disks.go();
    disks.pump();
    assert!(first.begin_read(&mut disks.pool, page, &mut |_| ()).is_ok());
}
