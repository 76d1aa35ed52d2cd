//! A frontend that does what its test says and nothing by itself: it writes its keys and states one
//! by one, and makes its requests by hand.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

use std::fmt;

use blkif::{
    Abi, FrontRing, Indirect, IndirectOp, MAX_INDIRECT_PAGES, MAX_SEGMENTS, MaxIndirectSegments,
    Notify, Operation, Request, RequestId, Response, Sector, Segment, Segments, Slot, Status,
    Transfer, keys,
};
use sim::toolstack::Device;
use sim::xenstored::Errno;
use sim::{GrantAccess, GrantUse, Lab, Machine, Model, Page, Region, Rng, Xs};
use xen_abi::{EvtchnPort, GrantRef, PAGE_SIZE, XenbusState};

pub const SECTOR: usize = 512;

/// A ring of the frontend.
pub struct Ring {
    pub front: FrontRing<Region>,
    pub pages: Vec<Page>,
    pub grefs: Vec<GrantRef>,
    pub port: EvtchnPort,
}

/// The frontend.
pub struct ByHand {
    pub machine: Machine,
    pub disk: Device,
    pub xs: Xs,
    pub abi: Abi,
    pub rings: Vec<Ring>,
    /// Whether pages stay granted, as `feature-persistent` says.
    pub grant_use: GrantUse,
    /// Every page granted for data, to be ended with the rings.
    granted: Vec<GrantRef>,
    /// Pages that stay granted and are free.
    free: Vec<(Page, GrantRef)>,
    model: Model,
    rng: Rng,
    next_id: u64,
    seen: Option<XenbusState>,
}

impl ByHand {
    /// The frontend of a disk of `nr_sectors` sectors, all zero.
    pub fn new(lab: &Lab, disk: Device, abi: Abi, nr_sectors: u64) -> Self {
        let machine = lab.machine().clone();
        let rng = machine.rng().fork();
        Self {
            xs: machine.xs(disk.frontend),
            machine,
            disk,
            abi,
            rings: Vec::new(),
            grant_use: GrantUse::PerRequest,
            granted: Vec::new(),
            free: Vec::new(),
            model: Model::zeroed(nr_sectors),
            rng,
            next_id: 0,
            seen: None,
        }
    }

    /// One that is connected as Linux is, with a ring of a page.
    pub fn connected(lab: &mut Lab, disk: Device, abi: Abi, nr_sectors: u64) -> Self {
        let mut guest = Self::new(lab, disk, abi, nr_sectors);
        guest.connect(lab, &[]);
        guest
    }

    /// Connects as Linux does, with one ring of a page and these keys besides.
    pub fn connect(&mut self, lab: &mut Lab, keys: &[(&str, &str)]) {
        self.offer_ring(1);
        self.write(keys::PROTOCOL, self.abi.protocol());
        if self.grant_use == GrantUse::Persistent {
            self.write(keys::FEATURE_PERSISTENT, 1);
        }
        for (key, value) in keys {
            self.write(key, value);
        }
        self.state(3);
        let disk = self.disk;
        lab.run_until("state 4", |lab| state(lab, disk) == Some(XenbusState::Connected));
        self.state(4);
        lab.settle();
    }

    /// Writes a node of its own, unless its directory is gone.
    pub fn write(&self, key: &str, value: impl fmt::Display) {
        let path = format!("{}/{key}", self.disk.frontend_path());
        let written = self.xs.write(&path, value.to_string());
        assert!(matches!(written, Ok(()) | Err(Errno::Eacces)), "{path}: {written:?}");
    }

    /// Reads a node of the backend, as a guest may.
    pub fn backend(&self, key: &str) -> Option<String> {
        self.xs.get(&format!("{}/{key}", self.disk.backend_path()))
    }

    /// Goes to a state.
    pub fn state(&self, state: u8) {
        self.write("state", state);
    }

    /// Grants a new ring to the backend. Its keys are not written.
    pub fn new_ring(&mut self, nr_pages: u32) {
        let (owner, peer) = (self.disk.frontend, self.disk.backend);
        let pages: Vec<Page> = (0..nr_pages).map(|_| Page::new()).collect();
        let grant = |page| self.machine.grants().grant(owner, peer, page, GrantAccess::ReadWrite);
        let grefs = pages.iter().map(grant).collect();
        let front = FrontRing::init(Region::owned(pages.clone()), self.abi).unwrap();
        let port = self.machine.events().alloc_unbound(owner, peer).unwrap();
        self.rings.push(Ring { front, pages, grefs, port });
    }

    /// Grants a new ring, and writes the keys of the only one.
    pub fn offer_ring(&mut self, nr_pages: u32) {
        self.new_ring(nr_pages);
        let ring = self.rings.last().unwrap();
        if nr_pages == 1 {
            self.write(keys::RING_REF, ring.grefs[0]);
        } else {
            for (n, gref) in (0..).zip(&ring.grefs) {
                self.write(&keys::RingRef(n).to_string(), gref);
            }
        }
        self.write(keys::EVENT_CHANNEL, ring.port);
    }

    /// Takes everything back that it granted.
    ///
    /// # Panics
    /// Where the backend has not let go of it.
    pub fn take_back(&mut self) {
        for ring in std::mem::take(&mut self.rings) {
            for &gref in &ring.grefs {
                let ended = self.machine.grants().end_access(self.disk.frontend, gref);
                assert_eq!(ended, Ok(()), "a page of a ring that was let go");
            }
            self.machine.events().close(self.disk.frontend, ring.port).unwrap();
        }
        self.free.clear();
        for gref in std::mem::take(&mut self.granted) {
            let ended = self.machine.grants().end_access(self.disk.frontend, gref);
            assert_eq!(ended, Ok(()), "a data page of a ring that was let go");
        }
    }

    /// The same where ports may be closed and grants revoked already.
    pub fn take_back_if_there(&mut self) {
        for ring in std::mem::take(&mut self.rings) {
            let _ = self.machine.events().close(self.disk.frontend, ring.port);
            for gref in ring.grefs {
                let ended = self.machine.grants().end_access(self.disk.frontend, gref);
                assert_eq!(ended, Ok(()), "a page of a ring that was let go");
            }
        }
    }

    /// Waits until the backend has gone through `states`, in this order and through no others.
    pub fn sees(&mut self, lab: &mut Lab, states: &[u8]) {
        let mut seen = Vec::new();
        let (disk, mut last) = (self.disk, self.seen);
        lab.run_until("the backend's states", |lab| {
            let now = state(lab, disk);
            if now != last {
                seen.extend(now.map(|state| state as u8));
                last = now;
            }
            seen.len() >= states.len()
        });
        assert_eq!(seen, states, "the states of the backend");
        self.seen = last;
    }

    /// A page that the backend may use.
    pub fn page(&mut self, access: GrantAccess) -> (Page, GrantRef) {
        let access = match self.grant_use {
            GrantUse::PerRequest => access,
            GrantUse::Persistent => GrantAccess::ReadWrite,
        };
        if let Some(free) = self.free.pop() {
            return free;
        }
        let page = Page::new();
        let gref = {
            let (owner, peer) = (self.disk.frontend, self.disk.backend);
            self.machine.grants().grant(owner, peer, &page, access)
        };
        self.granted.push(gref);
        (page, gref)
    }

    /// A page of an answered request is not needed any more.
    pub fn end(&mut self, page: Page, gref: GrantRef) {
        if self.grant_use == GrantUse::Persistent {
            self.free.push((page, gref));
            return;
        }
        self.granted.retain(|&other| other != gref);
        let ended = self.machine.grants().end_access(self.disk.frontend, gref);
        assert_eq!(ended, Ok(()), "the page of an answered request");
    }

    /// Pushes a request on the first ring.
    pub fn push(&mut self, op: Operation) -> RequestId {
        let id = self.id();
        let slot = Request { id, handle: 0, op }.encode(self.abi);
        self.push_slot(&slot);
        id
    }

    /// An id that no request has had.
    pub fn id(&mut self) -> RequestId {
        self.next_id += 1;
        RequestId(self.next_id << 32 | 0x5eed)
    }

    pub fn push_slot(&mut self, slot: &Slot) {
        self.rings[0].front.push_slot(slot).unwrap();
    }

    /// Shows what was pushed.
    pub fn publish(&mut self) {
        for ring in &mut self.rings {
            if ring.front.publish() == Notify::Needed {
                self.machine.events().send(self.disk.frontend, ring.port).unwrap();
            }
        }
    }

    /// Takes the responses there are on the first ring.
    pub fn responses(&mut self) -> Vec<Response> {
        let front = &mut self.rings[0].front;
        let _ = front.final_check().unwrap();
        std::iter::from_fn(|| front.consume()).collect()
    }

    /// Has what was pushed on the first ring served: the `nr` responses, which are all.
    pub fn served(&mut self, lab: &mut Lab, nr: usize) -> Vec<Response> {
        self.publish();
        let mut responses = Vec::new();
        lab.run_until("the answers", |_| {
            responses.extend(self.responses());
            responses.len() >= nr
        });
        assert_eq!(responses.len(), nr);
        responses
    }

    /// Has one request served: how it was answered.
    pub fn serve(&mut self, lab: &mut Lab, op: Operation) -> Status {
        let request = Request { id: self.id(), handle: 0, op };
        self.push_slot(&request.encode(self.abi));
        let responses = self.served(lab, 1);
        let status = responses[0].status;
        assert_eq!(responses, [request.response(status)], "the answer to {op:?}");
        status
    }

    /// Writes whole sectors.
    pub fn write_sectors(&mut self, lab: &mut Lab, sector: u64, data: &[u8]) -> Status {
        let (page, gref) = self.page(GrantAccess::ReadOnly);
        page.write(0, data);
        let last_sect = (data.len() / SECTOR - 1) as u8;
        let status =
            self.serve(lab, Operation::Write(transfer(sector, &[segment(gref, 0, last_sect)])));
        if status == Status::OKAY {
            self.model.write(sector, data);
        }
        self.end(page, gref);
        status
    }

    /// Reads whole sectors, at most a page.
    pub fn read_sectors(&mut self, lab: &mut Lab, sector: u64, nr: usize) -> Vec<u8> {
        let (page, gref) = self.page(GrantAccess::ReadWrite);
        let last_sect = (nr - 1) as u8;
        let op = Operation::Read(transfer(sector, &[segment(gref, 0, last_sect)]));
        assert_eq!(self.serve(lab, op), Status::OKAY, "a read of sector {sector}");
        let data = page.bytes(0..nr * SECTOR);
        self.end(page, gref);
        data
    }

    /// The whole disk as it is now.
    pub fn image(&mut self, lab: &mut Lab) -> Vec<u8> {
        let nr_sectors = self.model.nr_sectors() as usize;
        let firsts = (0..nr_sectors).step_by(8);
        firsts.flat_map(|at| self.read_sectors(lab, at as u64, 8.min(nr_sectors - at))).collect()
    }

    /// Writes and reads at random places, `nr` times, and checks what it reads.
    pub fn random_io(&mut self, lab: &mut Lab, nr: usize) {
        for _ in 0..nr {
            let nr_sectors = self.rng.between(1, 8);
            let sector = self.rng.between(0, self.model.nr_sectors() - nr_sectors);
            if self.rng.one_in(2) {
                let mut data = vec![0; nr_sectors as usize * SECTOR];
                self.rng.fill(&mut data);
                assert_eq!(self.write_sectors(lab, sector, &data), Status::OKAY);
            } else {
                let data = self.read_sectors(lab, sector, nr_sectors as usize);
                assert_eq!(self.model.check(sector, &data), Ok(()), "read at {sector}");
            }
        }
    }

    /// An indirect request whose segments stand in pages of ours, and those pages.
    pub fn indirect(
        &mut self,
        op: IndirectOp,
        sector: u64,
        segments: &[Segment],
    ) -> (Operation, Vec<Page>) {
        let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
        let mut tables = Vec::new();
        for (n, segments) in segments.chunks(blkif::SEGMENTS_PER_INDIRECT_PAGE).enumerate() {
            let (table, gref) = self.page(GrantAccess::ReadOnly);
            let bytes: Vec<u8> = segments.iter().flat_map(Segment::encode).collect();
            table.write(0, &bytes);
            grefs[n] = gref;
            tables.push(table);
        }
        let nr = segments.len() as u16;
        let max = MaxIndirectSegments::MAX;
        let indirect = Indirect::new(op, Sector(sector), nr, grefs, max).unwrap();
        (Operation::Indirect(indirect), tables)
    }
}

/// The state of a disk's backend.
pub fn state(lab: &Lab, disk: Device) -> Option<XenbusState> {
    disk.backend_state(lab.machine())
}

pub const fn segment(gref: GrantRef, first_sect: u8, last_sect: u8) -> Segment {
    Segment { gref, first_sect, last_sect }
}

pub fn transfer(sector: u64, segments: &[Segment]) -> Transfer {
    assert!(segments.len() <= MAX_SEGMENTS);
    Transfer { sector: Sector(sector), segments: Segments::new(segments).unwrap() }
}

/// A page of bytes that tell where they belong.
pub fn pattern(seed: u8) -> Vec<u8> {
    (0..PAGE_SIZE).map(|n| seed ^ (n as u8) ^ (n >> 8) as u8).collect()
}
