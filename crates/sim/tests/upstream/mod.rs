//! Granary as the frontend of another Granary: `blkfront` and what its user has to do, against a
//! whole driver domain.

use std::collections::{BTreeMap, VecDeque};

use blkfront::{Action, Disk, Event, Frontend, Handshake, Retired, Ring, offered_ring_order};
use blkif::{RingOrder, keys};
use sim::toolstack::Device;
use sim::{Expect, Machine, Model, OwnGrants, Region, Rng, Xs};
use store::{Access, Buffer, Completion, Device as _, Failure, Refusal, Request, Tag};
use xen_abi::{EvtchnPort, Gfn, PAGE_SIZE, XenbusState};

const SECTOR: usize = 512;
const FIRST: Gfn = Gfn(0x4000);

/// What is asked for, and what must come of it.
#[derive(Debug)]
enum Plan {
    Read { sector: u64, nr_sectors: u64 },
    Write { sector: u64, data: Vec<u8> },
    Discard { sector: u64, nr_sectors: u64 },
    Flush,
}

impl Plan {
    fn range(&self) -> (u64, u64) {
        match self {
            Self::Read { sector, nr_sectors } | Self::Discard { sector, nr_sectors } => {
                (*sector, sector + nr_sectors)
            }
            Self::Write { sector, data } => (*sector, sector + (data.len() / SECTOR) as u64),
            Self::Flush => (0, 0),
        }
    }

    fn conflicts(&self, other: &Self) -> bool {
        let ((from, to), (other_from, other_to)) = (self.range(), other.range());
        let only_read = matches!((self, other), (Self::Read { .. }, Self::Read { .. }));
        from < other_to && other_from < to && !only_read
    }
}

/// What the user of an upstream disk is like.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The largest ring that it uses.
    pub ring_order: RingOrder,
    /// Frames for data.
    pub nr_frames: u64,
    /// Longest read or write in sectors.
    pub max_sectors: u64,
}

/// The user of an upstream disk.
pub struct Upstream {
    machine: Machine,
    device: Device,
    xs: Xs,
    config: Config,
    grants: OwnGrants,
    retired: Retired,
    /// Frames that are ours alone.
    free: Vec<Gfn>,
    handshake: Handshake,
    due: VecDeque<Event>,
    seen_generation: Option<u64>,
    ring: Option<Ring<Region>>,
    frontend: Option<Frontend<Region>>,
    port: Option<EvtchnPort>,
    draining: bool,
    vanished: bool,
    in_flight: BTreeMap<u64, Plan>,
    last_tag: u64,
    rng: Rng,
    /// What the disk must hold.
    pub model: Option<Model>,
    /// What may come of a request.
    pub expect: Expect,
    /// Requests still to be made.
    pub wanted: u64,
    /// Requests that were done, failed upstream, and whose backend went.
    pub okay: u64,
    pub failed: u64,
    pub gone: u64,
}

impl Upstream {
    pub fn new(machine: &Machine, device: Device, config: Config) -> Self {
        let nr_frames = config.nr_frames + u64::from(config.ring_order.nr_pages());
        Self {
            machine: machine.clone(),
            device,
            xs: machine.xs(device.frontend),
            config,
            grants: OwnGrants::new(machine, device.frontend, FIRST, nr_frames),
            retired: Retired::new(),
            free: (0..nr_frames).map(|n| Gfn(FIRST.0 + n)).collect(),
            handshake: Handshake::new(),
            due: VecDeque::new(),
            seen_generation: None,
            ring: None,
            frontend: None,
            port: None,
            draining: false,
            vanished: false,
            in_flight: BTreeMap::new(),
            last_tag: 0,
            rng: machine.rng().fork(),
            model: None,
            expect: Expect::Success,
            wanted: 0,
            okay: 0,
            failed: 0,
            gone: 0,
        }
    }

    pub fn is_connected(&self) -> bool {
        self.handshake.is_connected()
    }

    pub fn is_closed(&self) -> bool {
        self.handshake.is_closed()
    }

    pub fn is_drained(&self) -> bool {
        self.wanted == 0 && self.in_flight.is_empty()
    }

    pub fn disk(&self) -> Option<&Disk> {
        self.frontend.as_ref().map(Frontend::disk)
    }

    pub fn tell(&mut self, event: Event) {
        self.due.push_back(event);
    }

    /// Nothing of it is granted or bound any more, and every frame is there.
    pub fn assert_clean(&mut self) {
        assert_eq!(self.reclaim(), 0, "grants that the backend keeps");
        assert_eq!(self.machine.grants().nr_grants(self.device.frontend), 0);
        assert_eq!(self.port, None);
        let nr_frames = self.config.nr_frames + u64::from(self.config.ring_order.nr_pages());
        self.free.sort_unstable();
        self.free.dedup();
        assert_eq!(self.free.len() as u64, nr_frames, "frames are lost, or there twice");
        assert!(self.in_flight.is_empty(), "{:?} are never over", self.in_flight);
    }

    fn reclaim(&mut self) -> usize {
        let free = &mut self.free;
        self.retired.reclaim(&mut self.grants, |frame| free.push(frame))
    }

    fn node(&self, key: &str) -> Option<Vec<u8>> {
        self.xs.get(&format!("{}/{key}", self.device.backend_path())).map(String::into_bytes)
    }

    fn write(&self, key: &str, value: Option<String>) {
        let path = format!("{}/{key}", self.device.frontend_path());
        // The directory may have been taken away.
        let _ = match value {
            Some(value) => self.xs.write(&path, value),
            None => self.xs.rm(&path),
        };
    }

    /// One step.
    pub fn step(&mut self) {
        let generation = self.machine.xenstored().generation();
        // A watch tells late.
        if self.seen_generation != Some(generation) && self.rng.one_in(4) {
            self.seen_generation = Some(generation);
            let ours = self.xs.exists(&format!("{}/state", self.device.frontend_path()));
            let state = self.node("state").and_then(|text| XenbusState::parse(&text));
            self.tell(Event::Looked(state));
            if !ours && !self.vanished {
                self.vanished = true;
                self.tell(Event::Vanished);
            }
        }
        if let Some(event) = self.due.pop_front() {
            for action in self.handshake.handle(event) {
                self.act(action);
            }
        }
        self.serve();
        if self.draining && self.in_flight.is_empty() {
            self.draining = false;
            self.tell(Event::Drained);
        }
        self.reclaim();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Announce => {
                let event = self.announce().map_or(Event::NotAnnounced, |()| Event::Announced);
                self.tell(event);
            }
            Action::Connect => {
                let event = self.connect().map_or(Event::NotConnected, |()| Event::Connected);
                self.tell(event);
            }
            Action::Resize => {
                let sectors = self.node(keys::SECTORS);
                let frontend = self.frontend.as_mut().expect("connected");
                if let Ok(nr_sectors) = frontend.disk().parse_sectors(sectors.as_deref()) {
                    frontend.resize(nr_sectors);
                    self.model.as_mut().expect("connected").resize(nr_sectors);
                }
            }
            Action::Drain => {
                self.wanted = 0;
                self.draining = true;
            }
            Action::Abandon => {
                self.wanted = 0;
                self.draining = false;
                let mut frontend = self.frontend.take().expect("connected");
                frontend.abandon();
                self.take(&mut frontend);
                self.frontend = Some(frontend);
            }
            Action::Disconnect => {
                assert!(self.in_flight.is_empty(), "requests are never over");
                if let Some(frontend) = self.frontend.take() {
                    frontend.retire(&mut self.retired);
                }
                if let Some(ring) = self.ring.take() {
                    ring.retire(&mut self.retired);
                }
                let port = self.port.take().expect("a ring has a port");
                self.machine.events().close(self.device.frontend, port).expect("our port");
            }
            Action::Write(state) => self.write("state", Some(state.to_string())),
            Action::Forget => {}
        }
    }

    fn announce(&mut self) -> Option<()> {
        let offered = offered_ring_order(self.node(keys::MAX_RING_PAGE_ORDER).as_deref());
        let order = offered.ok()?.min(self.config.ring_order);
        let nr_pages = order.nr_pages() as usize;
        assert!(self.free.len() >= nr_pages, "frames of the last ring are not back");
        let frames = self.free.split_off(self.free.len() - nr_pages);
        let (us, backend) = (self.device.frontend, self.device.backend);
        let port = self.machine.events().alloc_unbound(us, backend).ok()?;
        let ring = Ring::grant(&frames, backend, port, &mut self.grants, &mut self.retired).ok()?;
        for (key, value) in ring.announcement() {
            self.write(&key, value);
        }
        self.write("state", Some(XenbusState::Initialised.to_string()));
        (self.ring, self.port) = (Some(ring), Some(port));
        Some(())
    }

    fn connect(&mut self) -> Option<()> {
        let values = Disk::KEYS.map(|key| self.node(key));
        let disk = Disk::parse(values.each_ref().map(|value| value.as_deref())).ok()?;
        match &mut self.model {
            Some(model) => model.resize(disk.nr_sectors),
            None => self.model = Some(Model::zeroed(disk.nr_sectors)),
        }
        let ring = self.ring.take()?;
        let nr_frames = usize::try_from(self.config.nr_frames).expect("small");
        let frames: Vec<Gfn> = self.free.drain(..nr_frames).collect();
        let (grants, retired) = (&mut self.grants, &mut self.retired);
        let connected =
            Frontend::connect(ring, disk, &frames, self.device.backend, grants, retired);
        self.frontend = Some(connected.ok()?);
        Some(())
    }

    fn serve(&mut self) {
        let Some(mut frontend) = self.frontend.take() else { return };
        // Nothing is looked at unless an event says so: none may be lost.
        let us = self.device.frontend;
        let told = self.port.is_some_and(|port| self.machine.events().take_port(us, port));
        if told {
            self.take(&mut frontend);
        }
        for _ in 0..self.rng.below(8) {
            if self.wanted > 0 && self.handshake.is_connected() {
                self.ask(&mut frontend);
            }
        }
        if let Some(port) = frontend.publish() {
            // A backend that is gone has no port.
            let _ = self.machine.events().send(us, port);
        }
        self.frontend = Some(frontend);
    }

    fn take(&mut self, frontend: &mut Frontend<Region>) {
        while let Some(completion) = frontend.complete() {
            self.over(frontend, completion);
        }
        assert_eq!(frontend.broken(), None);
    }

    fn ask(&mut self, frontend: &mut Frontend<Region>) {
        let disk = *frontend.disk();
        let block = disk.logical.sectors();
        let nr_blocks = disk.nr_sectors / block;
        let longest = (self.config.max_sectors / block).clamp(1, nr_blocks);
        let longest = longest.min(frontend.max_sectors() / block);
        let most = if self.rng.one_in(4) { longest } else { longest.min(8) };
        let nr = self.rng.between(1, most);
        let sector = self.rng.below(nr_blocks - nr + 1) * block;
        let nr_sectors = nr * block;
        let writes = disk.access == Access::ReadWrite;
        let plan = match self.rng.below(20) {
            0 => Plan::Flush,
            1 if writes && disk.discard.is_some() => Plan::Discard { sector, nr_sectors },
            2..=10 if writes => {
                let mut data = vec![0; usize::try_from(nr_sectors).expect("small") * SECTOR];
                self.rng.fill(&mut data);
                Plan::Write { sector, data }
            }
            _ => Plan::Read { sector, nr_sectors },
        };
        if self.in_flight.values().any(|other| plan.conflicts(other)) {
            return;
        }
        let mut buffer = || frontend.reserve(u32::try_from(nr_sectors).expect("small"));
        let request = match &plan {
            Plan::Read { .. } => {
                let Some(buffer) = buffer() else { return };
                Request::Read { sector, buffer }
            }
            Plan::Write { data, .. } => {
                let Some(buffer) = buffer() else { return };
                let mut chunks = data.chunks(PAGE_SIZE);
                frontend.frames(&buffer, &mut |frame| {
                    self.grants.page(frame).write(0, chunks.next().expect("as many"));
                });
                Request::Write { sector, buffer }
            }
            Plan::Discard { .. } => Request::Discard { sector, nr_sectors },
            Plan::Flush => Request::Flush,
        };
        match frontend.submit(Tag(self.last_tag), request) {
            Ok(()) => {
                self.in_flight.insert(self.last_tag, plan);
                self.last_tag += 1;
                self.wanted -= 1;
            }
            Err(refused) => {
                assert!(matches!(refused.reason, Refusal::Full { .. }), "{refused:?}");
                if let Some(buffer) = refused.request.into_buffer() {
                    frontend.give_back(buffer);
                }
            }
        }
    }

    fn over(&mut self, frontend: &mut Frontend<Region>, completion: Completion<Buffer>) {
        let Completion { tag, result, buffer } = completion;
        let plan = self.in_flight.remove(&tag.0).expect("a request is over twice");
        let model = self.model.as_mut().expect("connected");
        match (result, &plan) {
            (Ok(()), Plan::Read { sector, nr_sectors }) => {
                let buffer = buffer.as_ref().expect("of a read");
                let mut data = Vec::new();
                frontend.frames(buffer, &mut |frame| {
                    data.extend(self.grants.page(frame).bytes(0..PAGE_SIZE));
                });
                data.truncate(usize::try_from(*nr_sectors).expect("small") * SECTOR);
                if let Err(wrong) = model.check(*sector, &data) {
                    panic!("sector {wrong} holds what it should not, read at {sector}");
                }
            }
            (Ok(()), Plan::Write { sector, data }) => model.write(*sector, data),
            (Ok(()), Plan::Discard { sector, nr_sectors }) => model.discard(*sector, *nr_sectors),
            (Ok(()), Plan::Flush) => {}
            (Err(Failure::Gone), _) => {}
            (Err(failure), _) => {
                assert_eq!((failure, self.expect), (Failure::Device, Expect::Failures));
            }
        }
        match result {
            Ok(()) => self.okay += 1,
            Err(Failure::Gone) => self.gone += 1,
            Err(_) => self.failed += 1,
        }
        if let Some(buffer) = buffer {
            frontend.give_back(buffer);
        }
    }
}
