//! The engine against a frontend that writes its ring and its pages between any two fetches.

mod watched;

use std::cell::RefCell;
use std::rc::Rc;

use blkback::{Discards, Engine, Media, Persistent, Queue};
use blkif::{Abi, BackRing, MaxIndirectSegments, OpCode, Segment, Slot, layout};
use sim::{GrantAccess, Machine, OwnFrames, Page, SimPlatform};
use store::{Access, BlockSize, PageDisk, PagePool, Steps};
use xen_abi::{DomId, EvtchnPort, Gfn, GntStatus, GrantRef, PAGE_SIZE};

use crate::input::Input;
use watched::{Ledger, Watched, WatchedMapping};

/// The disk: 16 pages, of which it can have 12.
const NR_SECTORS: u64 = 128;
const CAP_PAGES: u64 = 12;
const NR_POOL_FRAMES: u64 = 20;
const FIRST_FRAME: Gfn = Gfn(100);

/// What a page holds that the backend must not write.
const UNTOUCHED: u8 = 0xe1;

/// Turns that a frontend gets at most.
const MAX_STEPS: u32 = 512;

/// What a page is granted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Writable,
    /// These are not granted to us for writing, or not at all: they never change.
    ReadOnly,
    ForAnother,
    Revoked,
}

/// First what the vbd is like, then what its frontend does.
pub fn run(bytes: &[u8]) {
    // What our frames hold before they are used never comes from the frontend.
    let bytes: Vec<u8> =
        bytes.iter().map(|&byte| if byte == sim::STALE_BYTE { 0 } else { byte }).collect();
    let mut lab = Lab::new(Input::new(&bytes));
    for _ in 0..MAX_STEPS {
        if lab.input.borrow().is_empty() || !lab.step() {
            break;
        }
    }
    lab.end();
}

struct Lab {
    input: Rc<RefCell<Input>>,
    machine: Machine,
    platform: Watched,
    guest: DomId,
    abi: Abi,
    ring: Page,
    req_prod: u32,
    pages: Vec<(Page, GrantRef, Kind)>,
    queue: Queue<WatchedMapping>,
    engine: Engine,
    pool: PagePool<OwnFrames>,
    nr_free: u64,
    disk: PageDisk,
    access: Access,
    discards: Discards,
    ledger: Rc<RefCell<Ledger>>,
    broken: bool,
}

impl Lab {
    fn new(mut input: Input) -> Self {
        let abi = if input.flag() { Abi::X86_32 } else { Abi::X86_64 };
        let persistent = input.below(6);
        let access = if input.below(8) == 0 { Access::ReadOnly } else { Access::ReadWrite };
        let discards = if input.below(8) == 0 { Discards::No } else { Discards::Offered };
        let block = if input.flag() { BlockSize::B4096 } else { BlockSize::B512 };
        let max_indirect = [0, 1, 16, 600, 4096][input.below(5)];
        // Indices run through all of u32.
        let start = if input.flag() { u32::MAX - 9 } else { 0 };
        let max_indirect = MaxIndirectSegments::new(max_indirect).expect("at most 4096");

        let machine = Machine::new(1);
        let (us, guest) = (machine.create_domain(), machine.create_domain());
        let nr_frames = NR_POOL_FRAMES + Engine::NR_FRAMES;
        let platform = SimPlatform::new(&machine, us, &[(FIRST_FRAME, nr_frames)]);
        let runs = [(Gfn(FIRST_FRAME.0 + Engine::NR_FRAMES), NR_POOL_FRAMES)];
        let pool = PagePool::new(platform.frames().clone(), &runs).expect("large enough");
        let disk = PageDisk::new(NR_SECTORS, block, CAP_PAGES, &pool).expect("fits the pool");

        let input = Rc::new(RefCell::new(input));
        let ring = Page::new();
        ring.store_u32(layout::REQ_PROD, start);
        ring.store_u32(layout::RSP_EVENT, start.wrapping_add(1));
        let gref = machine.grants().grant(guest, us, &ring, GrantAccess::ReadWrite);
        let ledger = Rc::new(RefCell::new(Ledger::new(abi, start)));
        let mut platform = Watched::new(platform);
        let mapping = platform.map_ring(guest, gref, &ledger, frontend(&ring, &input));
        let attached = BackRing::attach_at(mapping, abi, max_indirect, start).expect("one page");
        let mapped = (persistent > 0).then(|| Persistent::new(persistent - 1));
        let queue = Queue::new(attached, EvtchnPort(0), guest, mapped);
        let nr_free = pool.nr_free();
        let mut lab = Self {
            input,
            machine,
            platform,
            guest,
            abi,
            ring,
            req_prod: start,
            pages: Vec::new(),
            queue,
            engine: Engine::new(FIRST_FRAME, max_indirect),
            pool,
            nr_free,
            disk,
            access,
            discards,
            ledger,
            broken: false,
        };
        for kind in [Kind::Writable, Kind::Writable, Kind::Writable, Kind::Writable] {
            lab.grant(kind);
        }
        for kind in [Kind::ReadOnly, Kind::ReadOnly, Kind::ForAnother, Kind::Revoked] {
            lab.grant(kind);
        }
        lab
    }

    fn grant(&mut self, kind: Kind) {
        let us = self.platform.domid();
        let (to, access) = match kind {
            Kind::Writable | Kind::Revoked => (us, GrantAccess::ReadWrite),
            Kind::ReadOnly => (us, GrantAccess::ReadOnly),
            Kind::ForAnother => (DomId(0), GrantAccess::ReadWrite),
        };
        let page = Page::new();
        page.fill(UNTOUCHED);
        let gref = self.machine.grants().grant(self.guest, to, &page, access);
        match kind {
            Kind::Revoked => self.machine.grants().revoke(self.guest, gref),
            // The frontend writes it between our accesses to it.
            Kind::Writable => {
                let input = self.input.clone();
                page.set_hook(move |page, _| scribble(page, &input));
            }
            Kind::ReadOnly | Kind::ForAnother => {}
        }
        self.pages.push((page, gref, kind));
    }

    /// The frontend does something, or the backend takes a turn. False where the vbd is closed.
    fn step(&mut self) -> bool {
        let choice = self.input.borrow_mut().below(16);
        match choice {
            0..=5 => {
                let slot = self.slot();
                self.push(&slot);
            }
            6 => {
                let mut slot = Slot::ZERO;
                let raw = self.input.borrow_mut().take(Slot::LEN_BYTES);
                slot.0[..raw.len()].copy_from_slice(&raw);
                self.push(&slot);
            }
            7 => self.descriptors(),
            8 => {
                let jump = u32::from(self.input.borrow_mut().u8());
                self.ring.store_u32(layout::REQ_PROD, self.req_prod.wrapping_add(jump));
            }
            9 => scribble(&self.ring, &self.input),
            10 => self.regrant(),
            11 => {
                let nth = u64::from(self.input.borrow_mut().u8() % 16) + 1;
                self.machine.grants().copy_faults.fail_nth(nth, GntStatus::GENERAL_ERROR);
            }
            12 => {
                let nth = u64::from(self.input.borrow_mut().u8() % 4) + 1;
                self.machine.grants().map_faults.fail_nth(nth, GntStatus::NO_SPACE);
            }
            _ => self.turn(),
        }
        !self.broken
    }

    /// Most of a request that a frontend might make.
    fn slot(&self) -> Slot {
        let mut input = self.input.borrow_mut();
        let mut slot = Slot::ZERO;
        let layout = self.abi.layout();
        let mut put = |at: usize, bytes: &[u8]| slot.0[at..at + bytes.len()].copy_from_slice(bytes);
        let op = [0, 0, 1, 1, 1, 2, 3, 5, 6, 6, 4, 255][input.below(12)];
        put(layout.id, &input.u16().to_le_bytes());
        put(layout.sector, &u64::from(input.u8()).to_le_bytes());
        match OpCode(op) {
            OpCode::DISCARD => {
                put(0, &[op, input.u8()]);
                put(layout.discard_nr_sectors, &u64::from(input.u8()).to_le_bytes());
            }
            OpCode::INDIRECT => {
                let nr = input.u16() % 1200;
                put(0, &[op, u8::try_from(input.below(3)).expect("small")]);
                put(layout::INDIRECT_NR_SEGMENTS, &nr.to_le_bytes());
                for n in 0..8 {
                    let gref = self.gref(input.u8());
                    put(layout.indirect_grefs + 4 * n, &gref.0.to_le_bytes());
                }
            }
            _ => {
                let nr = input.below(13);
                put(0, &[op, u8::try_from(nr).expect("small")]);
                for n in 0..nr.min(11) {
                    let segment = self.segment(&mut input);
                    put(layout.segments + 8 * n, &segment.encode());
                }
            }
        }
        slot
    }

    /// Mostly one of the pages.
    fn gref(&self, choice: u8) -> GrantRef {
        let page = self.pages.get(usize::from(choice) % (self.pages.len() + 1));
        page.map_or(GrantRef(choice.into()), |&(_, gref, _)| gref)
    }

    fn segment(&self, input: &mut Input) -> Segment {
        let gref = self.gref(input.u8());
        let [first_sect, last_sect] = match input.u8() {
            // All of the page: the only one that every disk takes.
            0..=127 => [0, 7],
            byte => [byte & 7, (byte >> 3) & 15],
        };
        Segment { gref, first_sect, last_sect }
    }

    fn push(&mut self, slot: &Slot) {
        let len_bytes = self.abi.layout().entry_len_bytes;
        let nr_entries = self.queue.ring.nr_entries();
        let at = layout::RING + (self.req_prod % nr_entries) as usize * len_bytes;
        self.ring.write(at, &slot.0[..len_bytes]);
        self.req_prod = self.req_prod.wrapping_add(1);
        self.ring.store_u32(layout::REQ_PROD, self.req_prod);
    }

    /// Fills a page with segments, for indirect requests.
    fn descriptors(&self) {
        let mut input = self.input.borrow_mut();
        let (page, ..) = &self.pages[input.below(4)];
        let segments: Vec<Segment> =
            (0..input.below(32)).map(|_| self.segment(&mut input)).collect();
        for (n, segment) in segments.iter().cycle().take(512).enumerate() {
            if !segments.is_empty() {
                page.write(n * Segment::LEN_BYTES, &segment.encode());
            }
        }
    }

    /// Revokes a page that was writable, or grants another.
    fn regrant(&mut self) {
        let choice = self.input.borrow_mut().below(8);
        match self.pages.get(choice) {
            Some(&(_, gref, Kind::Writable)) => {
                self.machine.grants().revoke(self.guest, gref);
            }
            _ if self.pages.len() < 32 => self.grant(Kind::Writable),
            _ => {}
        }
    }

    fn turn(&mut self) {
        let mut media = Media {
            disk: &mut self.disk,
            access: self.access,
            discards: self.discards,
            pool: &mut self.pool,
        };
        let turn = self.engine.turn(&mut self.queue, &mut self.platform, &mut media);
        let ledger = self.ledger.borrow();
        ledger.check_turn(self.queue.ring.outstanding());
        assert_eq!(ledger.nr_refused, self.queue.stats.nr_errors, "refused requests");
        match turn {
            Ok(turn) => {
                assert_eq!(turn.lost, None);
                assert!(ledger.nr_unanswered() == 0 || turn.next == blkback::Next::Work);
            }
            Err(overrun) => {
                assert!(overrun.produced.wrapping_sub(overrun.consumed) > overrun.room);
                self.broken = true;
            }
        }
    }

    /// The frontend keeps still; what it asked for is answered, and all is let go.
    fn end(mut self) {
        self.input.borrow_mut().take(usize::MAX);
        self.machine.grants().copy_faults.clear();
        self.machine.grants().map_faults.clear();
        let mut nr_turns = 0;
        while !self.broken && self.ledger.borrow().nr_unanswered() > 0 {
            self.turn();
            nr_turns += 1;
            assert!(nr_turns < 100, "a request is never answered");
        }
        if self.access == Access::ReadOnly {
            assert_eq!(self.pool.nr_free(), self.nr_free, "a read-only disk has pages");
        }
        for (page, _, kind) in &self.pages {
            let bytes = page.bytes(0..PAGE_SIZE);
            if *kind != Kind::Writable {
                assert!(bytes.iter().all(|&byte| byte == UNTOUCHED), "a page for {kind:?} changed");
            }
            let stale = |chunk: &[u8]| chunk.iter().all(|&byte| byte == sim::STALE_BYTE);
            assert!(!bytes.chunks(64).any(stale), "a frame's former contents are read");
        }
        self.platform.let_go(self.queue.into_mappings().0);
        let us = self.platform.domid();
        assert_eq!(self.machine.grants().nr_handles(us), 0, "grant handles");
        assert_eq!(self.machine.grants().nr_active(self.guest), 0, "grants in use");
        let _ = self.disk.clear(&mut self.pool, &mut Steps::new(u32::MAX));
        assert_eq!(self.pool.nr_free(), self.nr_free, "pages of the pool");
    }
}

/// What the frontend does between two accesses of the backend to the ring.
fn frontend(ring: &Page, input: &Rc<RefCell<Input>>) -> impl Fn() + 'static {
    let (ring, input) = (ring.clone(), input.clone());
    move || scribble(&ring, &input)
}

/// Writes up to 7 bytes anywhere in a page, or mostly nothing.
fn scribble(page: &Page, input: &Rc<RefCell<Input>>) {
    // A page's hook may strike while the frontend itself is at work.
    let Ok(mut input) = input.try_borrow_mut() else { return };
    if input.is_empty() {
        return;
    }
    let choice = input.u8();
    if choice < 192 {
        return;
    }
    // Half of it where the indices and the first slots are.
    let mask = if choice & 8 == 0 { 0xff } else { PAGE_SIZE - 1 };
    let at = usize::from(input.u16()) & mask;
    let bytes = input.take(usize::from(choice & 7));
    let bytes = &bytes[..bytes.len().min(PAGE_SIZE - at)];
    page.write(at, bytes);
}
