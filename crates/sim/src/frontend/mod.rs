//! A well-behaved blkfront, in steps that never wait.

mod buffers;
mod model;
mod negotiated;
mod queue;
mod work;

use std::fmt;

use blkif::{Abi, keys};
use xen_abi::XenbusState;

use crate::toolstack::Device;
use crate::xenstored::Errno;
use crate::{Machine, Rng, Xs};

pub use buffers::GrantUse;
pub use model::Model;
pub use negotiated::Disk;
use negotiated::{NO_OFFER, Offer};
pub use queue::{Answers, Expect, Queue};
use work::Plan;

/// When a frontend publishes its ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// When the backend stands in InitWait (Linux).
    WaitsForInitWait,
    /// At once, without a look at what is offered (GRUB, Mini-OS, OVMF).
    AtOnce,
}

/// Who makes a frontend's requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// The frontend makes random requests while it is asked to, and checks every answer.
    Random,
    /// The test uses the queues by hand; the frontend sees to xenstore alone.
    ByHand,
}

/// What a frontend is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrontendConfig {
    /// The ABI of its ring.
    pub abi: Abi,
    /// Whether it says which; without a word it is the native one.
    pub protocol: Option<&'static str>,
    /// The largest ring that it uses, log2 of pages.
    pub ring_order: u32,
    /// The most queues that it uses.
    pub nr_queues: u32,
    /// How it grants its pages where the backend lets it choose.
    pub grant_use: GrantUse,
    /// When it publishes its ring.
    pub opening: Opening,
    /// The state it publishes its ring with: Initialised, or Connected at once.
    pub announced: XenbusState,
    /// Who makes the requests.
    pub load: Load,
    /// What the backend may answer.
    pub expect: Expect,
}

impl Default for FrontendConfig {
    /// Linux: one page, one queue, persistent grants.
    fn default() -> Self {
        Self {
            abi: Abi::X86_64,
            protocol: Some(Abi::X86_64.protocol()),
            ring_order: 0,
            nr_queues: 1,
            grant_use: GrantUse::Persistent,
            opening: Opening::WaitsForInitWait,
            announced: XenbusState::Initialised,
            load: Load::Random,
            expect: Expect::Success,
        }
    }
}

impl FrontendConfig {
    /// Any frontend of this ABI that there may be.
    #[must_use]
    pub fn random(abi: Abi, rng: &mut Rng) -> Self {
        let native = abi == Abi::NATIVE && rng.one_in(2);
        let at_once = rng.one_in(4);
        Self {
            abi,
            protocol: (!native).then(|| abi.protocol()),
            ring_order: u32::try_from(rng.below(6)).expect("small"),
            nr_queues: u32::try_from(rng.between(1, 4)).expect("small"),
            grant_use: if rng.one_in(2) { GrantUse::Persistent } else { GrantUse::PerRequest },
            opening: if at_once { Opening::AtOnce } else { Opening::WaitsForInitWait },
            announced: if rng.one_in(3) {
                XenbusState::Connected
            } else {
                XenbusState::Initialised
            },
            ..Self::default()
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// State 1, until the backend is ready for a ring.
    Initialising,
    /// The ring is published.
    Announced,
    Connected,
    /// No new requests; the last ones are waited for.
    Draining,
    /// State 5 by our own wish, until the backend follows.
    Closing,
    /// State 6, until the backend has let go of the ring.
    LettingGo,
    Closed,
}

/// A frontend.
pub struct Frontend {
    machine: Machine,
    device: Device,
    xs: Xs,
    config: FrontendConfig,
    phase: Phase,
    seen_generation: Option<u64>,
    queues: Vec<Queue>,
    disk: Option<Disk>,
    model: Option<Model>,
    wanted: u64,
    answers: Answers,
    rng: Rng,
}

impl fmt::Debug for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_flight: Vec<usize> = self.queues.iter().map(Queue::nr_in_flight).collect();
        write!(
            f,
            "frontend of {}: {:?}, in flight {in_flight:?}, {} requests to make, {:?}",
            self.device.frontend_path(),
            self.phase,
            self.wanted,
            self.answers()
        )
    }
}

impl Frontend {
    /// The frontend of `device`. A disk that does not begin with zeroes has a `model`.
    #[must_use]
    pub fn new(
        machine: &Machine,
        device: Device,
        config: FrontendConfig,
        model: Option<Model>,
    ) -> Self {
        let rng = machine.rng().fork();
        Self {
            machine: machine.clone(),
            device,
            xs: machine.xs(device.frontend),
            config,
            phase: Phase::Initialising,
            seen_generation: None,
            queues: Vec::new(),
            disk: None,
            model,
            wanted: 0,
            answers: Answers::default(),
            rng,
        }
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> Device {
        self.device
    }

    /// Whether it is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// Whether it has closed and given everything back.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether nothing is in flight or wanted.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.wanted == 0 && self.queues.iter().all(|queue| queue.nr_in_flight() == 0)
    }

    /// Asks for `count` random requests more.
    pub fn want(&mut self, count: u64) {
        self.wanted += count;
    }

    /// What the backend may answer from now on.
    pub fn expect(&mut self, expect: Expect) {
        self.config.expect = expect;
    }

    /// Requests answered so far.
    #[must_use]
    pub fn answers(&self) -> Answers {
        self.queues.iter().map(Queue::answers).fold(self.answers, |sum, more| Answers {
            okay: sum.okay + more.okay,
            failed: sum.failed + more.failed,
        })
    }

    /// The disk, once connected.
    #[must_use]
    pub const fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// What the disk has to hold, once connected.
    #[must_use]
    pub const fn model(&self) -> Option<&Model> {
        self.model.as_ref()
    }

    /// The queues.
    #[must_use]
    pub fn queues(&mut self) -> &mut [Queue] {
        &mut self.queues
    }

    /// Closes by the guest's own wish, as when its driver is unloaded.
    pub fn close(&mut self) {
        if self.phase == Phase::Connected {
            self.write_state(XenbusState::Closing);
            self.phase = Phase::Closing;
        }
    }

    /// Begins anew after a close.
    pub fn reopen(&mut self) {
        assert_eq!(self.phase, Phase::Closed, "{self:?}");
        self.phase = Phase::Initialising;
        self.seen_generation = None;
        self.write_state(XenbusState::Initialising);
    }

    fn write_state(&self, state: XenbusState) {
        self.write("state", state);
    }

    /// Writes a node of ours; a directory that was taken away is no failure of ours.
    fn write(&self, key: &str, value: impl fmt::Display) {
        let path = format!("{}/{key}", self.device.frontend_path());
        match self.xs.write(&path, value.to_string()) {
            Ok(()) | Err(Errno::Eacces) => {}
            Err(errno) => panic!("writing {path}: {errno}"),
        }
    }

    /// One step. Returns whether there was anything to do.
    pub fn step(&mut self) -> bool {
        let mut busy = self.look();
        if self.config.load == Load::Random && self.phase != Phase::Closed {
            busy |= self.consume();
            busy |= self.produce();
        }
        busy
    }

    /// Reads the backend's state, if anything in xenstore changed.
    fn look(&mut self) -> bool {
        let generation = self.machine.xenstored().generation();
        let drained = self.queues.iter().all(|queue| queue.nr_in_flight() == 0);
        if self.seen_generation == Some(generation) && !(self.phase == Phase::Draining && drained) {
            return false;
        }
        self.seen_generation = Some(generation);
        let backend = self.device.backend_path();
        let text = self.xs.get(&format!("{backend}/state"));
        let state = text.and_then(|text| XenbusState::parse(text.as_bytes()));
        use XenbusState as S;
        match (self.phase, state) {
            (Phase::Initialising, Some(S::InitWait)) => {
                self.announce(Offer::read(&self.xs, &backend));
            }
            (Phase::Initialising, Some(S::Initialising))
                if self.config.opening == Opening::AtOnce =>
            {
                self.announce(NO_OFFER);
            }
            (Phase::Announced, Some(S::Connected)) => self.connect(&backend),
            (Phase::Connected, Some(S::Connected)) => return self.resized(&backend),
            (Phase::Announced | Phase::Connected, Some(S::Closing | S::Closed)) => {
                self.phase = Phase::Draining;
                self.wanted = 0;
            }
            (Phase::Draining, _) if drained || state != Some(S::Closing) => {
                if self.rng.one_in(2) {
                    self.write_state(S::Closing);
                }
                self.write_state(S::Closed);
                self.phase = Phase::LettingGo;
            }
            (Phase::Closing, Some(S::Closing | S::Closed)) => {
                self.phase = Phase::Draining;
                self.wanted = 0;
            }
            (Phase::LettingGo, Some(S::Closed | S::InitWait) | None) => self.let_go(),
            (Phase::Initialising, Some(S::Closing | S::Closed)) => {
                self.write_state(S::Closed);
                self.phase = Phase::LettingGo;
            }
            (_, None) if self.phase != Phase::Closed => self.let_go(),
            _ => return false,
        }
        // What we wrote is to be looked at, too.
        self.seen_generation = None;
        true
    }

    fn announce(&mut self, offer: Offer) {
        let config = self.config;
        let order = config.ring_order.min(offer.max_ring_order);
        let nr_queues = config.nr_queues.min(offer.max_queues).max(1);
        let grant_use = if offer.persistent { config.grant_use } else { GrantUse::PerRequest };
        let (owner, peer) = (self.device.frontend, self.device.backend);
        let queue = |_| Queue::new(&self.machine, owner, peer, config.abi, 1 << order, grant_use);
        self.queues = (0..nr_queues).map(queue).collect();

        let mut nodes: Vec<(String, String)> = Vec::new();
        let mut add = |key: String, value: String| nodes.push((key, value));
        for (n, queue) in (0..).zip(&self.queues) {
            let prefix = if nr_queues > 1 { format!("{}/", keys::Queue(n)) } else { String::new() };
            if order == 0 {
                add(format!("{prefix}{}", keys::RING_REF), queue.grefs()[0].to_string());
            } else {
                for (page, gref) in (0..).zip(queue.grefs()) {
                    add(format!("{prefix}{}", keys::RingRef(page)), gref.to_string());
                }
            }
            add(format!("{prefix}{}", keys::EVENT_CHANNEL), queue.port().to_string());
        }
        if order > 0 {
            add(keys::RING_PAGE_ORDER.into(), order.to_string());
        }
        if nr_queues > 1 {
            add(keys::MULTI_QUEUE_NUM_QUEUES.into(), nr_queues.to_string());
        }
        if let Some(protocol) = config.protocol {
            add(keys::PROTOCOL.into(), protocol.into());
        }
        if grant_use == GrantUse::Persistent {
            add(keys::FEATURE_PERSISTENT.into(), "1".into());
        }
        for (key, value) in nodes {
            self.write(&key, value);
        }
        self.write_state(config.announced);
        self.phase = Phase::Announced;
    }

    fn connect(&mut self, backend: &str) {
        let disk = Disk::read(&self.xs, backend);
        let model = self.model.get_or_insert_with(|| Model::zeroed(disk.nr_sectors));
        assert_eq!(model.nr_sectors(), disk.nr_sectors, "sectors of the disk");
        self.disk = Some(disk);
        self.write_state(XenbusState::Connected);
        self.phase = Phase::Connected;
    }

    /// The backend wrote its state again: perhaps the disk has another size.
    fn resized(&mut self, backend: &str) -> bool {
        let disk = Disk::read(&self.xs, backend);
        if self.disk == Some(disk) {
            return false;
        }
        self.model.as_mut().expect("connected").resize(disk.nr_sectors);
        self.disk = Some(disk);
        true
    }

    fn let_go(&mut self) {
        for queue in self.queues.drain(..) {
            let more = queue.close();
            self.answers.okay += more.okay;
            self.answers.failed += more.failed;
        }
        self.wanted = 0;
        self.disk = None;
        self.phase = Phase::Closed;
    }

    fn consume(&mut self) -> bool {
        let Some(model) = &mut self.model else { return false };
        let mut busy = false;
        for queue in &mut self.queues {
            let limit = if self.rng.one_in(4) { 1 } else { usize::MAX };
            busy |= queue.consume(limit, model, self.config.expect);
        }
        busy
    }

    fn produce(&mut self) -> bool {
        let Some(disk) = self.disk else { return false };
        if self.phase != Phase::Connected
            || self.wanted == 0
            || disk.nr_sectors == 0
            || self.queues.is_empty()
        {
            return false;
        }
        let chosen = self.rng.index(self.queues.len());
        let room = u64::from(self.queues[chosen].free());
        let most = if self.rng.one_in(3) { room.min(1) } else { room };
        let mut made = 0;
        while made < most.min(self.wanted) {
            let plan = Plan::random(&disk, &mut self.rng);
            if !self.queues.iter().all(|queue| queue.leaves(&plan)) {
                break;
            }
            self.queues[chosen].submit(&plan, disk.max_indirect);
            made += 1;
        }
        if made == 0 {
            return false;
        }
        self.wanted -= made;
        self.queues[chosen].publish();
        true
    }
}
