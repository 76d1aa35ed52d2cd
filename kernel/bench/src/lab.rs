//! A frontend's ring and the engine that serves it.

use alloc::boxed::Box;

use blkback::{Discards, Engine, Grants, Media, Next, Persistent, Queue, Turn};
use blkif::{
    Abi, BackRing, FinalCheck, FrontRing, Indirect, IndirectOp, MAX_INDIRECT_PAGES,
    MaxIndirectSegments, Operation, Request, RequestId, Sector, Segment, Segments, Status,
    Transfer,
};
use store::{Access, BlockSize, Disk, NullDisk, PageDisk, PagePool};
use xen_abi::{DomId, EvtchnPort, Gfn, GrantRef, SharedMemory};

use crate::frames::Frames;
use crate::guest::Guest;
use crate::linux;
use crate::region::Region;

/// Sectors of the disks: 1 GiB.
const NR_SECTORS: u64 = 1 << 21;

/// Sectors that requests are for: 32 MiB, all of them written before.
pub(crate) const NR_USED_SECTORS: u64 = 1 << 16;

/// Pages that stay mapped, as by default.
const MAX_PERSISTENT: usize = 1056;

/// The frontend's pages: the ring's, as many as the segments of indirect requests lie in, data's.
const RING: GrantRef = GrantRef(0);
const FIRST_DESCRIPTORS: u32 = 1;
const FIRST_DATA: u32 = FIRST_DESCRIPTORS + 32;
const NR_GUEST_FRAMES: u64 = FIRST_DATA as u64 + 1024;

const MAX_INDIRECT: u16 = 256;

/// The frontend.
const PEER: DomId = DomId(7);

/// What a disk keeps its bytes in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    Ram,
}

/// How the frontend's pages are reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Persistent,
    Copied,
}

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Read,
    Write,
    Flush,
}

pub(crate) struct Lab {
    pub(crate) guest: Guest,
    front: FrontRing<Region>,
    queue: Queue<Region>,
    engine: Engine,
    pool: PagePool<Frames>,
    disk: Disk,
    random: u64,
}

impl Lab {
    /// A lab in all of the bench's frames: what was there before is gone.
    pub(crate) fn new(kind: Kind, way: Way) -> Self {
        let first = linux::first_frame();
        let ours = Gfn(first.0 + NR_GUEST_FRAMES);
        let nr_ours = linux::NR_FRAMES - NR_GUEST_FRAMES;
        let runs: &'static [(Gfn, u64)] = Box::leak(Box::new([(ours, nr_ours)]));
        // SAFETY: the bench's frames hold no Rust object.
        let (frames, more) = unsafe { (Frames::new(runs), Frames::new(runs)) };
        let mut guest = Guest { frames, first_page: first, nr_hypercalls: 0 };
        let front = FrontRing::init(guest.page(RING), Abi::X86_64).expect("a ring of one page");
        let max = MaxIndirectSegments::new(MAX_INDIRECT).expect("a limit");
        let mapping = guest.map(PEER, &[RING]).expect("it maps all");
        let ring = BackRing::attach(mapping, Abi::X86_64, max).expect("a ring of one page");
        let mapped = (way == Way::Persistent).then(|| Persistent::new(MAX_PERSISTENT));
        let pages = (Gfn(ours.0 + Engine::NR_FRAMES), nr_ours - Engine::NR_FRAMES);
        let pool = PagePool::new(more, &[pages]).expect("a pool");
        let disk = match kind {
            Kind::Null => NullDisk::new(NR_SECTORS, BlockSize::B512).map(Disk::Null),
            Kind::Ram => PageDisk::new(NR_SECTORS, BlockSize::B512, NR_USED_SECTORS / 8, &pool)
                .map(Disk::Pages),
        };
        Self {
            guest,
            front,
            queue: Queue::new(ring, EvtchnPort(0), PEER, mapped),
            engine: Engine::new(ours, max),
            pool,
            disk: disk.expect("a disk of that size"),
            random: 1,
        }
    }

    /// Writes all that requests are for, from its start to its end.
    pub(crate) fn fill(&mut self) {
        let nr = NR_USED_SECTORS / 2048;
        for n in 0..nr {
            self.push(0, Ask::Write, Sector(n * 2048), 256);
            self.serve();
        }
    }

    /// Has `depth` requests of `nr_pages` pages each served, at places that follow no order.
    pub(crate) fn round(&mut self, ask: Ask, depth: u32, nr_pages: u16) {
        for slot in 0..depth {
            let sectors = u64::from(nr_pages) * 8;
            let sector = if ask == Ask::Flush { 0 } else { self.place(sectors) };
            self.push(slot, ask, Sector(sector), nr_pages);
        }
        self.serve();
    }

    /// A multiple of `sectors`.
    fn place(&mut self, sectors: u64) -> u64 {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (self.random >> 33) % (NR_USED_SECTORS / sectors) * sectors
    }

    fn push(&mut self, slot: u32, ask: Ask, sector: Sector, nr_pages: u16) {
        let first = FIRST_DATA + slot * u32::from(nr_pages);
        let segment = |n: u16| {
            let gref = GrantRef(first + u32::from(n));
            Segment { gref, first_sect: 0, last_sect: 7 }
        };
        let op = if usize::from(nr_pages) <= blkif::MAX_SEGMENTS {
            let mut list = [segment(0); blkif::MAX_SEGMENTS];
            (0..nr_pages).for_each(|n| list[usize::from(n)] = segment(n));
            let segments = Segments::new(&list[..nr_pages.into()]).expect("at most 11");
            let transfer = Transfer { sector, segments };
            match ask {
                Ask::Read => Operation::Read(transfer),
                Ask::Write => Operation::Write(transfer),
                Ask::Flush => Operation::Flush(transfer),
            }
        } else {
            let gref = GrantRef(FIRST_DESCRIPTORS + slot);
            let page = self.guest.page(gref);
            for n in 0..nr_pages {
                page.write(usize::from(n) * Segment::LEN_BYTES, &segment(n).encode());
            }
            let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
            grefs[0] = gref;
            let op = if ask == Ask::Read { IndirectOp::Read } else { IndirectOp::Write };
            let max = self.engine.max_indirect();
            Operation::Indirect(Indirect::new(op, sector, nr_pages, grefs, max).expect("a page"))
        };
        let request = Request { id: RequestId(slot.into()), handle: 0, op };
        self.front.push(&request).expect("the ring has room");
    }

    /// Serves all that was pushed, and looks at the answers.
    fn serve(&mut self) {
        let _ = self.front.publish();
        while self.turn().next == Next::Work {}
        let nr = self.front.unconsumed().expect("our own ring");
        for slot in 0..nr {
            let response = self.front.consume().expect("as many as there are");
            assert!(response.id == RequestId(slot.into()), "{response:?} at {slot}");
            assert!(response.status == Status::OKAY, "{response:?}");
        }
        assert!(self.front.final_check() == Ok(FinalCheck::Idle), "more answers than requests");
    }

    /// What callgrind counts, by this function's name.
    #[inline(never)]
    fn turn(&mut self) -> Turn {
        let mut media = Media {
            disk: &mut self.disk,
            access: Access::ReadWrite,
            discards: Discards::Offered,
            pool: &mut self.pool,
        };
        self.engine.turn(&mut self.queue, &mut self.guest, &mut media).expect("our own ring")
    }
}
