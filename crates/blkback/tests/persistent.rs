//! The pages that stay mapped, where the hypervisor maps some of a batch and not others, and where
//! there is no memory to remember them.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use blkback::{Discards, Engine, Grants, Media, Persistent, Queue};
use blkif::{
    Abi, BackRing, FrontRing, MaxIndirectSegments, Operation, Request, RequestId, Sector, Segment,
    Segments, Status, Transfer,
};
use sim::{GrantAccess, Machine, OwnFrames, Page, Region, SimMapping, SimPlatform};
use store::{Access, BlockSize, PageDisk, PagePool};
use xen_abi::{DomId, EvtchnPort, Gfn, GntStatus, GrantRef, PAGE_SIZE};

const FIRST_FRAME: Gfn = Gfn(100);
const NR_FRAMES: u64 = 64;

/// Pages of a request.
const NR_PAGES: usize = 6;

thread_local! {
    /// What this thread gets no memory for, by its alignment: what else is asked for meanwhile has
    /// another one.
    static REFUSED_ALIGN: Cell<Option<usize>> = const { Cell::new(None) };
    static NR_REFUSED: Cell<usize> = const { Cell::new(0) };
}

/// The system's heap, which sometimes has nothing left.
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: it hands on what the system's allocator gives, or nothing, which is allowed at any time.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if REFUSED_ALIGN.get() == Some(layout.align()) {
            NR_REFUSED.set(NR_REFUSED.get() + 1);
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: all memory is the system's; the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// A frontend that writes its pages to a disk and reads them back.
struct Lab {
    machine: Machine,
    platform: SimPlatform,
    guest: DomId,
    front: FrontRing<Region>,
    queue: Queue<SimMapping>,
    engine: Engine,
    pool: PagePool<OwnFrames>,
    disk: PageDisk,
    /// What a turn gets no memory for.
    refused_align: Option<usize>,
}

impl Lab {
    fn new(max_pages: usize) -> Self {
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

    fn pages(&self, fill: &[u8]) -> Vec<(Page, GrantRef)> {
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
    fn serve(&mut self, op: fn(Transfer) -> Operation, pages: &[(Page, GrantRef)]) {
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
    fn check_disk(&mut self, written: &[(Page, GrantRef)]) {
        let read = self.pages(&[0xee; NR_PAGES]);
        self.serve(Operation::Read, &read);
        for ((read, _), (written, _)) in read.iter().zip(written) {
            assert!(read.bytes(0..PAGE_SIZE) == written.bytes(0..PAGE_SIZE), "read back");
        }
    }

    fn nr_mapped(&self) -> (usize, usize) {
        let handles = self.machine.grants().nr_handles(self.platform.domid());
        // One is the ring's.
        (self.queue.mapped.as_ref().unwrap().nr_pages(), handles - 1)
    }
}

#[test]
fn every_page_of_a_batch_that_maps_stays_mapped() {
    let mut lab = Lab::new(8);
    let pages = lab.pages(&[1, 2, 3, 4, 5, 6]);
    lab.serve(Operation::Write, &pages);
    assert_eq!(lab.nr_mapped(), (6, 6));
    lab.check_disk(&pages);
    // The 2 that were free, and the 4 that were not used for longest.
    assert_eq!(lab.nr_mapped(), (8, 8));
}

/// What Xen still maps behind a grant that found no space has no room in the cache any more: it
/// would take the place of a page that is in use in this round, or, in an empty one, of none.
#[test]
fn a_page_mapped_behind_one_that_found_no_space_goes_at_once() {
    for nr_before in 0..NR_PAGES {
        let mut lab = Lab::new(8);
        let pages = lab.pages(&[1, 2, 3, 4, 5, 6]);
        let nth = u64::try_from(nr_before).unwrap() + 1;
        lab.machine.grants().map_faults.fail_nth(nth, GntStatus::NO_SPACE);
        lab.serve(Operation::Write, &pages);
        assert_eq!(lab.nr_mapped(), (nr_before, nr_before));
        lab.check_disk(&pages);
        // No more are asked for.
        assert_eq!(lab.nr_mapped(), (nr_before, nr_before));
    }
}

#[test]
fn a_page_that_fails_alone_is_copied_and_the_others_stay_mapped() {
    for nth in 1..=6 {
        let mut lab = Lab::new(8);
        let pages = lab.pages(&[1, 2, 3, 4, 5, 6]);
        lab.machine.grants().map_faults.fail_nth(nth, GntStatus::GENERAL_ERROR);
        lab.serve(Operation::Write, &pages);
        assert_eq!(lab.nr_mapped(), (5, 5), "fails on grant {nth}");
        lab.check_disk(&pages);
    }
}

#[test]
fn pages_that_there_is_no_memory_to_remember_are_copied() {
    // The list of those that are missing, and the table of those that are mapped.
    for align in [align_of::<GrantRef>(), 16] {
        let mut lab = Lab::new(8);
        let pages = lab.pages(&[1, 2, 3, 4, 5, 6]);
        lab.refused_align = Some(align);
        NR_REFUSED.set(0);
        lab.serve(Operation::Write, &pages);
        assert!(NR_REFUSED.get() > 0, "nothing of alignment {align} was asked for");
        assert_eq!(lab.nr_mapped(), (0, 0));
        lab.refused_align = None;
        lab.check_disk(&pages);
        assert_eq!(lab.nr_mapped(), (6, 6));
    }
}
