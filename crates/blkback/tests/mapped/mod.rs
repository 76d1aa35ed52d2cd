//! One ring whose pages stay mapped, for tests here and of a heap that is full (`kernel/tests`).

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test uses what it needs")]

use std::cell::Cell;

use blkback::{Discards, Engine, Grants, Media, Persistent, Queue};
use blkif::{
    Abi, BackRing, FrontRing, MaxIndirectSegments, Operation, Request, RequestId, Sector, Segment,
    Segments, Status, Transfer,
};
use sim::{GrantAccess, Machine, OwnFrames, Page, Region, SimMapping, SimPlatform};
use store::{Access, BlockSize, PageDisk, PagePool};
use xen_abi::{DomId, EvtchnPort, Gfn, GrantRef, PAGE_SIZE};

const FIRST_FRAME: Gfn = Gfn(100);
const NR_FRAMES: u64 = 64;

/// Pages of a request.
pub const NR_PAGES: usize = 6;

thread_local! {
    /// What this thread gets no memory for during a turn, by its alignment: what else is asked for
    /// meanwhile has another one. An allocator that a test brings obeys it.
    pub static REFUSED_ALIGN: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A frontend that writes its pages to a disk and reads them back.
pub struct Lab {
    pub machine: Machine,
    platform: SimPlatform,
    guest: DomId,
    front: FrontRing<Region>,
    queue: Queue<SimMapping>,
    engine: Engine,
    pool: PagePool<OwnFrames>,
    disk: PageDisk,
    /// What a turn gets no memory for.
    pub refused_align: Option<usize>,
}

impl Lab {
    pub fn new(max_pages: usize) -> Self {
        let machine = Machine::new(1);
        let (us, guest) = (machine.create_domain(), machine.create_domain());
        let mut platform = SimPlatform::new(&machine, us, &[(FIRST_FRAME, NR_FRAMES)]);
        let page = Page::new();
        let gref = machine.grants().grant(guest, us, &page, GrantAccess::ReadWrite);
        let front = FrontRing::init(Region::owned(vec![page]), Abi::X86_64).unwrap();
        let mapping = platform.map(guest, &[gref]).unwrap();
        let ring = BackRing::attach(mapping, Abi::X86_64, MaxIndirectSegments::NONE).unwrap();
        let mapped = Some(Persistent::new(max_pages));
        let queue = Queue::new(ring, EvtchnPort(0), guest, mapped);
        let runs = [(Gfn(FIRST_FRAME.0 + Engine::NR_FRAMES), NR_FRAMES - Engine::NR_FRAMES)];
        let pool = PagePool::new(platform.frames().clone(), &runs).unwrap();
        let disk = PageDisk::new(128, BlockSize::B512, 16, &pool).unwrap();
        let engine = Engine::new(FIRST_FRAME, MaxIndirectSegments::NONE);
        Self { machine, platform, guest, front, queue, engine, pool, disk, refused_align: None }
    }

    pub fn pages(&self, fill: &[u8]) -> Vec<(Page, GrantRef)> {
        let (us, mut grants) = (self.platform.domid(), self.machine.grants());
        let mut granted = |byte| {
            let page = Page::new();
            page.fill(byte);
            let gref = grants.grant(self.guest, us, &page, GrantAccess::ReadWrite);
            (page, gref)
        };
        fill.iter().map(|&byte| granted(byte)).collect()
    }

    /// Serves one request for whole pages.
    pub fn serve(&mut self, op: fn(Transfer) -> Operation, pages: &[(Page, GrantRef)]) {
        let whole = |&(_, gref): &(Page, GrantRef)| Segment { gref, first_sect: 0, last_sect: 7 };
        let segments: Vec<Segment> = pages.iter().map(whole).collect();
        let segments = Segments::new(&segments).unwrap();
        let op = op(Transfer { sector: Sector(0), segments });
        let request = Request { id: RequestId(1), handle: 0, op };
        self.front.push(&request).unwrap();
        let _ = self.front.publish();
        let mut media = Media {
            disk: &mut self.disk,
            access: Access::ReadWrite,
            discards: Discards::Offered,
            pool: &mut self.pool,
        };
        REFUSED_ALIGN.set(self.refused_align);
        let turn = self.engine.turn(&mut self.queue, &mut self.platform, &mut media).unwrap();
        REFUSED_ALIGN.set(None);
        assert_eq!((turn.refused, turn.lost), (None, None));
        self.front.unconsumed().unwrap();
        assert_eq!(self.front.consume(), Some(request.response(Status::OKAY)));
    }

    /// Reads the disk back and compares.
    pub fn check_disk(&mut self, written: &[(Page, GrantRef)]) {
        let read = self.pages(&[0xee; NR_PAGES]);
        self.serve(Operation::Read, &read);
        for ((read, _), (written, _)) in read.iter().zip(written) {
            assert!(read.bytes(0..PAGE_SIZE) == written.bytes(0..PAGE_SIZE), "read back");
        }
    }

    pub fn nr_mapped(&self) -> (usize, usize) {
        let handles = self.machine.grants().nr_handles(self.platform.domid());
        // One is the ring's.
        (self.queue.mapped.as_ref().unwrap().nr_pages(), handles - 1)
    }
}
