//! A guest that keeps to nothing.

use std::fmt;

use blkif::layout::{REQ_PROD, RING, RSP_EVENT, RSP_PROD};
use blkif::{
    Abi, Indirect, IndirectOp, MAX_INDIRECT_PAGES, MAX_SEGMENTS, MaxIndirectSegments, Operation,
    Request, RequestId, Sector, Segment, Segments, Slot, Transfer, keys,
};
use xen_abi::{DomId, EvtchnPort, GrantRef, PAGE_SIZE};

use crate::toolstack::Device;
use crate::{Access, GrantAccess, Machine, Page, Rng, Xs};

/// What a page is granted for, and what must not become of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lure {
    /// For reading and writing.
    Writable,
    /// For reading alone: it never changes.
    ReadOnly,
    /// To another domain: it never changes.
    ForAnother,
    /// No more, from the start: it never changes.
    Revoked,
    /// No more since a while; it may have been written before.
    Spent,
}

#[derive(Debug)]
struct Bait {
    page: Page,
    gref: GrantRef,
    lure: Lure,
}

const UNTOUCHED: u8 = 0xe1;

/// A frontend that writes what it likes, where it can, whenever it can.
pub struct Hostile {
    machine: Machine,
    device: Device,
    xs: Xs,
    rng: Rng,
    abi: Abi,
    baits: Vec<Bait>,
    ring: Option<Ring>,
    nr_slots: u64,
}

struct Ring {
    page: Page,
    gref: GrantRef,
    port: EvtchnPort,
    req_prod: u32,
}

impl fmt::Debug for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.device.frontend_path();
        write!(f, "hostile frontend of {path}, {} slots written", self.nr_slots)
    }
}

impl Hostile {
    /// A hostile frontend of `device`.
    #[must_use]
    pub fn new(machine: &Machine, device: Device, abi: Abi) -> Self {
        let rng = machine.rng().fork();
        let mut hostile = Self {
            machine: machine.clone(),
            device,
            xs: machine.xs(device.frontend),
            rng,
            abi,
            baits: Vec::new(),
            ring: None,
            nr_slots: 0,
        };
        for lure in [Lure::Writable, Lure::ReadOnly, Lure::ForAnother, Lure::Revoked] {
            for _ in 0..4 {
                hostile.lay_out(lure);
            }
        }
        hostile
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> Device {
        self.device
    }

    /// How many slots it filled so far.
    #[must_use]
    pub const fn nr_slots(&self) -> u64 {
        self.nr_slots
    }

    fn lay_out(&mut self, lure: Lure) {
        let page = Page::new();
        page.fill(UNTOUCHED);
        let (to, access) = match lure {
            Lure::Writable | Lure::Revoked | Lure::Spent => {
                (self.device.backend, GrantAccess::ReadWrite)
            }
            Lure::ReadOnly => (self.device.backend, GrantAccess::ReadOnly),
            Lure::ForAnother => (DomId(0), GrantAccess::ReadWrite),
        };
        let mut grants = self.machine.grants();
        let gref = grants.grant(self.device.frontend, to, &page, access);
        if lure == Lure::Revoked {
            grants.revoke(self.device.frontend, gref);
        }
        drop(grants);
        self.baits.push(Bait { page, gref, lure });
    }

    /// Checks that the backend changed nothing that it was not allowed to.
    ///
    /// # Panics
    /// Where it did.
    pub fn assert_unharmed(&self) {
        let kept = |bait: &&Bait| !matches!(bait.lure, Lure::Writable | Lure::Spent);
        for bait in self.baits.iter().filter(kept) {
            let bytes = bait.page.bytes(0..PAGE_SIZE);
            let whole = bytes.iter().all(|&byte| byte == UNTOUCHED);
            assert!(whole, "a page that was {:?} changed", bait.lure);
        }
    }

    /// Does one thing that no frontend should.
    pub fn step(&mut self) {
        // Mostly requests: what ends a connection at once is rare, so that the others get far.
        match self.rng.below(1000) {
            _ if self.ring.is_none() => self.announce(),
            0..=4 => self.announce(),
            5..=9 => self.write_state(),
            10..=13 => self.write_nonsense(),
            14 if self.rng.one_in(16) => {
                let _ = self.xs.rm(&self.device.frontend_path());
            }
            15..=19 => self.revoke_something(),
            20 => self.close_port(),
            21..=22 => self.jump(),
            23..=99 => self.scribble(),
            _ => self.push_slots(),
        }
    }

    fn write(&self, key: &str, value: impl fmt::Display) {
        let path = format!("{}/{key}", self.device.frontend_path());
        let _ = self.xs.write(&path, value.to_string());
    }

    /// Publishes a new ring, whatever state anybody is in.
    fn announce(&mut self) {
        let (owner, peer) = (self.device.frontend, self.device.backend);
        let page = Page::new();
        let gref = self.machine.grants().grant(owner, peer, &page, GrantAccess::ReadWrite);
        let Ok(port) = self.machine.events().alloc_unbound(owner, peer) else { return };
        if self.rng.one_in(2) {
            let rng = std::cell::RefCell::new(self.rng.fork());
            page.set_hook(move |page, access| mutate(page, access, &mut rng.borrow_mut()));
        }
        // Nonsense that it wrote before would keep it from its ring for good.
        for name in [keys::RING_PAGE_ORDER, keys::NUM_RING_PAGES, keys::MULTI_QUEUE_NUM_QUEUES] {
            if !self.rng.one_in(8) {
                let _ = self.xs.rm(&format!("{}/{name}", self.device.frontend_path()));
            }
        }
        self.write(keys::RING_REF, gref);
        self.write(keys::EVENT_CHANNEL, port);
        self.write(keys::PROTOCOL, self.abi.protocol());
        let persistent = u8::from(self.rng.one_in(2));
        self.write(keys::FEATURE_PERSISTENT, persistent);
        let state = self.rng.between(3, 4);
        self.write("state", state);
        self.ring = Some(Ring { page, gref, port, req_prod: 0 });
    }

    fn write_state(&mut self) {
        let states = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "", "-1", "four"];
        let state = states[self.rng.index(states.len())];
        self.write("state", state);
    }

    fn write_nonsense(&mut self) {
        let names = [
            keys::RING_REF,
            keys::EVENT_CHANNEL,
            keys::PROTOCOL,
            keys::RING_PAGE_ORDER,
            keys::NUM_RING_PAGES,
            keys::MULTI_QUEUE_NUM_QUEUES,
            keys::FEATURE_PERSISTENT,
            "ring-ref0",
            "ring-ref31",
            "queue-0/ring-ref",
        ];
        let values = [
            "",
            "0",
            "1",
            "8",
            "-1",
            "99999999999",
            "4294967295",
            "x",
            "1 ",
            "x86_32-abi",
            "\u{fc}",
        ];
        let name = names[self.rng.index(names.len())];
        if self.rng.one_in(4) {
            let _ = self.xs.rm(&format!("{}/{name}", self.device.frontend_path()));
        } else {
            let value = values[self.rng.index(values.len())];
            self.write(name, value);
        }
    }

    fn revoke_something(&mut self) {
        let n = self.rng.index(self.baits.len());
        let bait = &mut self.baits[n];
        self.machine.grants().revoke(self.device.frontend, bait.gref);
        if bait.lure == Lure::Writable {
            bait.lure = Lure::Spent;
            self.lay_out(Lure::Writable);
        }
        if let Some(ring) = self.ring.as_ref().filter(|_| self.rng.one_in(16)) {
            self.machine.grants().revoke(self.device.frontend, ring.gref);
        }
    }

    fn close_port(&mut self) {
        if let Some(ring) = &self.ring {
            let _ = self.machine.events().close(self.device.frontend, ring.port);
        }
    }

    /// Sets the producer anywhere, mostly near the ring's ends.
    fn jump(&mut self) {
        let any = self.rng.next_u64();
        let Some(ring) = &mut self.ring else { return };
        let near = [0, 1, 32, 33, 64, u32::MAX];
        let by = near[usize::try_from(any % 6).expect("small")];
        let wild = u32::try_from(any >> 32).expect("32 bits");
        let to = if any & 64 == 0 { ring.req_prod.wrapping_add(by) } else { wild };
        ring.page.store_u32(REQ_PROD, to);
        self.notify();
    }

    /// Writes anything anywhere in the ring, the backend's own indices included.
    fn scribble(&mut self) {
        let at = self.rng.index(PAGE_SIZE / 4) * 4;
        let at = match self.rng.below(4) {
            0 => RSP_PROD,
            1 => RSP_EVENT,
            _ => at,
        };
        let value = u32::try_from(self.rng.next_u64() >> 32).expect("32 bits");
        if let Some(ring) = &self.ring
            && at != REQ_PROD
        {
            ring.page.store_u32(at, value);
        }
    }

    fn notify(&self) {
        if let Some(ring) = &self.ring {
            let _ = self.machine.events().send(self.device.frontend, ring.port);
        }
    }

    fn push_slots(&mut self) {
        let Some(mut ring) = self.ring.take() else { return };
        let layout = self.abi.layout();
        let nr_entries = self.abi.nr_entries(blkif::RingOrder::ONE_PAGE);
        // As far as the backend has answered, or so it says.
        let rsp_prod = ring.page.load_u32(RSP_PROD);
        let room = nr_entries.saturating_sub(ring.req_prod.wrapping_sub(rsp_prod));
        for _ in 0..self.rng.below(u64::from(room.min(nr_entries)) + 1) {
            let slot = self.slot();
            let index = (ring.req_prod & (nr_entries - 1)) as usize;
            let at = RING + index * layout.entry_len_bytes;
            ring.page.write(at, &slot.0[..layout.entry_len_bytes]);
            ring.req_prod = ring.req_prod.wrapping_add(1);
            self.nr_slots += 1;
        }
        ring.page.store_u32(REQ_PROD, ring.req_prod);
        self.ring = Some(ring);
        self.notify();
    }

    /// A request with something wrong, perhaps.
    fn slot(&mut self) -> Slot {
        let mut slot = match self.rng.below(8) {
            0 => {
                let mut slot = Slot::ZERO;
                self.rng.fill(&mut slot.0);
                slot
            }
            1 | 2 => self.indirect().encode(self.abi),
            _ => self.direct().encode(self.abi),
        };
        if self.rng.one_in(4) {
            let at = self.rng.index(Slot::LEN_BYTES);
            slot.0[at] = u8::try_from(self.rng.below(256)).expect("a byte");
        }
        slot
    }

    fn direct(&mut self) -> Request {
        let nr = self.rng.index(MAX_SEGMENTS + 1);
        let segments: Vec<Segment> = (0..nr).map(|_| self.segment()).collect();
        let segments = Segments::new(&segments).expect("at most 11");
        let sector = self.sector();
        let transfer = Transfer { sector, segments };
        let op = match self.rng.below(6) {
            0 | 1 => Operation::Read(transfer),
            2 | 3 => Operation::Write(transfer),
            4 => Operation::Flush(transfer),
            _ => {
                let nr_sectors = self.sector().0;
                Operation::Discard { sector, nr_sectors, secure: self.rng.one_in(2) }
            }
        };
        Request { id: RequestId(self.rng.next_u64()), handle: 0, op }
    }

    fn indirect(&mut self) -> Request {
        let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
        for gref in &mut grefs {
            *gref = self.gref();
        }
        // Fill one table that it may read with segments; it changes while it is read.
        let segments: Vec<u8> = (0..512).flat_map(|_| self.segment().encode()).collect();
        let n = self.rng.index(self.baits.len());
        if self.baits[n].lure == Lure::Writable {
            self.baits[n].page.write(0, &segments);
            grefs[0] = self.baits[n].gref;
            if self.rng.one_in(2) {
                let rng = std::cell::RefCell::new(self.rng.fork());
                let page = &self.baits[n].page;
                page.set_hook(move |page, access| mutate(page, access, &mut rng.borrow_mut()));
            }
        }
        let most = if self.rng.one_in(4) { 4096 } else { 256 };
        let nr_segments = u16::try_from(self.rng.between(1, most)).expect("small");
        let op = if self.rng.one_in(2) { IndirectOp::Read } else { IndirectOp::Write };
        let sector = self.sector();
        let indirect = Indirect::new(op, sector, nr_segments, grefs, MaxIndirectSegments::MAX);
        let op = Operation::Indirect(indirect.expect("within the protocol's limits"));
        Request { id: RequestId(self.rng.next_u64()), handle: 0, op }
    }

    fn sector(&mut self) -> Sector {
        let any = self.rng.next_u64();
        Sector(match self.rng.below(8) {
            0 => u64::MAX - any % 8,
            1 => u64::MAX / 512 - any % 8,
            2 => any,
            3 => 2048 - any % 8,
            _ => any % 2048,
        })
    }

    fn segment(&mut self) -> Segment {
        let gref = self.gref();
        let odd = self.rng.one_in(16);
        let mut sect = || u8::try_from(self.rng.below(if odd { 256 } else { 8 })).expect("a byte");
        let (a, b) = (sect(), sect());
        let (first_sect, last_sect) = if odd { (a, b) } else { (a.min(b), a.max(b)) };
        Segment { gref, first_sect, last_sect }
    }

    fn gref(&mut self) -> GrantRef {
        let n = self.rng.index(self.baits.len());
        match self.rng.below(64) {
            0 => GrantRef(u32::MAX),
            1 => GrantRef(0),
            2 => self.ring.as_ref().map_or(GrantRef(1), |ring| ring.gref),
            3..=8 => self.baits[n].gref,
            _ => {
                let bait = self.baits.iter().find(|bait| bait.lure == Lure::Writable);
                bait.expect("there is one always").gref
            }
        }
    }
}

/// Changes what was just read.
fn mutate(page: &Page, access: Access, rng: &mut Rng) {
    if let Access::Fetch { offset, len_bytes } = access
        && len_bytes > 0
        && offset >= RING
    {
        let byte = u8::try_from(rng.below(256)).expect("a byte");
        page.write(offset + rng.index(len_bytes), &[byte]);
    }
}
