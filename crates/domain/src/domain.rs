//! The domain's parts and its turn.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use blkback::{Engine, Event, Media, Offer};
use blkif::{MaxIndirectSegments, RingOrder};
use catalog::{CopyRoutine, Namespace, Settings};
use store::{Device, Disk, Images, PagePool, PoolError, Progress, Shared, Steps};
use xen_abi::{DomId, EvtchnPort, Gfn, Instant};
use xenstore::{Client, Notify};

use crate::conversation::{Conversation, Reading};
use crate::disks::{DiskId, Disks, Work};
use crate::ending::Shutdown;
use crate::inbox::Tag;
use crate::platform::{Next, Platform, Resources};
use crate::ports::{PortUser, Ports};
use crate::rings::Lent;
use crate::upstream::{Defined, Granted, Upstreams};
use crate::vbd::{Identity, Opening, Ring, VbdKey};
use crate::vbds::Vbds;

/// Events that one step takes: a peer that sends again as soon as one is taken would never let it
/// go on. What is left is still pending, so that the next step comes at once.
const MAX_EVENTS: usize = 128;

/// Messages from xenstore that one step takes, so that a flood of them holds nobody up.
const MAX_MESSAGES: usize = 16;

/// Pages that one step gives back of disks that are gone.
pub(crate) const MAX_CLEARED: u32 = 1024;

/// A namespace that any number of disks can be on.
type SharedNamespace<P> = Rc<RefCell<Shared<<P as Platform>::Namespace>>>;

/// The driver domain.
pub struct Domain<P: Platform> {
    pub(crate) settings: Settings,
    /// What frontends may ask for.
    pub(crate) offer: Offer,
    pub(crate) xenstore: Xenstore<P::XenstorePage>,
    pub(crate) pool: PagePool<P::Memory>,
    pub(crate) engine: Engine,
    pub(crate) vbds: Vbds<P::Mapping>,
    pub(crate) ports: Ports,
    /// Disks that other domains serve to us.
    pub(crate) upstreams: Upstreams<Granted<P>>,
    /// Namespaces of our own controllers, by name.
    pub(crate) namespaces: Vec<(Namespace, SharedNamespace<P>)>,
    /// Which vbd is the first to look where an upstream disk has news, counted on and on.
    pub(crate) first_ready: usize,
    /// Disks with a name that are on those, but not made yet.
    pub(crate) defined: Vec<Defined>,
    /// What is mapped of rings that were let go, where devices may still access some of it.
    pub(crate) lent: Vec<Lent<P::Mapping>>,
    /// Vbds whose ring may have requests, each once.
    runnable: VecDeque<VbdKey>,
    pub(crate) images: Images,
    pub(crate) disks: Disks,
    /// Disks whose pages are being given back.
    pub(crate) cleared: Vec<Disk>,
    /// Disks that something is being done to.
    pub(crate) worked: Vec<DiskId>,
    /// What dom0 asks and is told.
    pub(crate) conversation: Conversation,
    pub(crate) reading: Reading,
    /// No timer is due earlier.
    deadline: Option<Instant>,
    pub(crate) next_life: u32,
    pub(crate) next_inquiry: u32,
    /// Pages of frontends that may stay mapped for rings yet to come. Each is remembered on the
    /// heap, which is in proportion to the pool.
    pub(crate) mapped_left: usize,
    /// Directories to be listed: domains', and `None` for that of all domains.
    pub(crate) to_list: Vec<Option<DomId>>,
    /// Something found no room in xenstore's queue and is to be tried again.
    pub(crate) stalled: bool,
    /// What `data/usage` says is not true any more.
    pub(crate) usage_changed: bool,
    /// How many watches it says there are.
    pub(crate) told_watches: usize,
    pub(crate) shutdown: Shutdown,
}

/// The connection to xenstore.
pub(crate) struct Xenstore<X> {
    pub(crate) page: X,
    pub(crate) port: EvtchnPort,
    pub(crate) client: Client<Tag>,
    /// There may be messages to read.
    pub(crate) ready: bool,
    /// It broke. What is connected goes on being served.
    pub(crate) broken: bool,
}

/// Why the domain cannot begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartError {
    /// There is too little memory, or more than can be counted.
    #[error("no page pool: {0}")]
    Pool(#[from] PoolError),
    /// No run of frames has room for what requests are read into.
    #[error("no run of {nr_frames} free frames for the engine")]
    Engine {
        /// How many it needs.
        nr_frames: u64,
    },
}

impl<P: Platform> Domain<P> {
    /// Builds the domain and asks xenstore for the devices there are.
    ///
    /// # Errors
    /// [`StartError`] where the memory does not do.
    pub fn new(resources: Resources<'_, P>, platform: &mut P) -> Result<Self, StartError> {
        let Resources {
            memory,
            free_frames,
            modules,
            xenstore: page,
            xenstore_port,
            namespaces,
            command_line,
        } = resources;
        let command_line = str::from_utf8(command_line).unwrap_or_else(|_| {
            platform.log(format_args!("command line ignored: it is not UTF-8"));
            ""
        });
        let settings = Settings::parse(command_line, |error| {
            platform.log(format_args!("command line: {error}"));
        });
        let max_indirect = MaxIndirectSegments::new(settings.max_indirect_segments)
            .unwrap_or(MaxIndirectSegments::MAX);
        let mut runs = free_frames.to_vec();
        let area = take_run(&mut runs, Engine::NR_FRAMES)
            .ok_or(StartError::Engine { nr_frames: Engine::NR_FRAMES })?;
        let mut pool = PagePool::new(memory, &runs)?;
        // A write's pages are new ones until it is committed.
        pool.keep_back(u64::from(max_indirect.get()) + 1);
        platform.log(format_args!(
            "pool of {} pages ({} MiB), {} of them in reserve",
            pool.nr_total(),
            pool.nr_total() >> 8,
            pool.nr_reserve()
        ));
        // Each takes heap, which is in proportion to the pool: 500 where there are 16 MiB.
        let max_disks = usize::try_from(pool.nr_total() / 8).unwrap_or(usize::MAX);
        let mapped_left = usize::try_from(pool.nr_total() / 4).unwrap_or(usize::MAX);
        let client = Client::new(&page);
        let offer = Offer {
            max_ring_order: RingOrder::new(settings.max_ring_order).unwrap_or(RingOrder::MAX),
            max_queues: settings.max_queues,
        };
        let mut domain = Self {
            settings,
            offer,
            xenstore: Xenstore { page, port: xenstore_port, client, ready: true, broken: false },
            pool,
            engine: Engine::new(area, max_indirect),
            vbds: Vbds::new(),
            ports: Ports::default(),
            upstreams: Upstreams::new(),
            namespaces: namespaces.into_iter().map(shared).collect(),
            first_ready: 0,
            defined: Vec::new(),
            lent: Vec::new(),
            runnable: VecDeque::new(),
            images: Images::default(),
            disks: Disks::new(max_disks),
            cleared: Vec::new(),
            worked: Vec::new(),
            conversation: Conversation::default(),
            reading: Reading::default(),
            deadline: None,
            next_life: 0,
            next_inquiry: 0,
            mapped_left,
            to_list: Vec::new(),
            stalled: false,
            usage_changed: true,
            told_watches: 0,
            shutdown: Shutdown::No,
        };
        domain.define(platform, modules, command_line);
        domain.subscribe(platform);
        Ok(domain)
    }

    /// What the command line says that data is to be copied by (`copy=`).
    #[must_use]
    pub const fn copy_routine(&self) -> CopyRoutine {
        self.settings.copy
    }

    /// Does what is at hand, but no more than a bounded amount of it.
    pub fn step(&mut self, platform: &mut P) -> Next {
        for _ in 0..MAX_EVENTS {
            let Some(port) = platform.take_event() else { break };
            self.event(port);
        }
        self.hear(platform);
        self.fire_timers(platform);
        if let Some(&key) = self.runnable.front() {
            self.runnable.pop_front();
            self.serve(platform, key);
        }
        self.pump_upstreams(platform);
        self.unmap_lent(platform);
        self.clear_disks(platform);
        self.tell_usage(platform);
        self.send(platform);
        if let Shutdown::Now(reason) = self.shutdown {
            return Next::Shutdown(reason);
        }
        if self.xenstore.ready || !self.runnable.is_empty() || self.is_clearing() {
            return Next::Now;
        }
        self.deadline.map_or(Next::Idle, Next::At)
    }

    fn event(&mut self, port: EvtchnPort) {
        if port == self.xenstore.port {
            self.xenstore.ready = true;
        } else if let Some(PortUser::Ring(key, ring)) = self.ports.user(port) {
            self.ready(key, ring);
        }
        // Those that serve us are looked at in each step.
    }

    /// Notes that a ring may have requests, and puts its vbd in the queue of those with work.
    pub(crate) fn ready(&mut self, key: VbdKey, ring: usize) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        if let Some(ring) = vbd.rings.get_mut(ring) {
            ring.ready = true;
        }
        self.enqueue(key);
    }

    fn enqueue(&mut self, key: VbdKey) {
        if let Some(vbd) = self.vbds.get_mut(&key)
            && !vbd.queued
        {
            vbd.queued = true;
            self.runnable.push_back(key);
        }
    }

    /// Reads what xenstore has sent.
    fn hear(&mut self, platform: &mut P) {
        if !self.xenstore.ready || self.xenstore.broken {
            self.xenstore.ready = false;
            return;
        }
        for _ in 0..MAX_MESSAGES {
            match self.receive(platform) {
                Ok(true) => {}
                Ok(false) => {
                    self.xenstore.ready = false;
                    break;
                }
                Err(error) => {
                    self.xenstore_broke(platform, error);
                    break;
                }
            }
        }
        if core::mem::take(&mut self.stalled) {
            self.list_more(platform);
            let keys: Vec<VbdKey> = self.vbds.keys().collect();
            for key in keys {
                self.correct_size(platform, key);
                self.proceed(platform, key);
            }
            self.proceed_upstreams(platform);
        }
    }

    /// Sends what is queued for xenstore.
    pub(crate) fn send(&mut self, platform: &mut P) {
        if self.xenstore.broken {
            return;
        }
        match self.xenstore.client.send(&self.xenstore.page) {
            Ok(Notify::Yes) => platform.notify(self.xenstore.port),
            Ok(Notify::No) => {}
            Err(error) => self.xenstore_broke(platform, error),
        }
    }

    fn xenstore_broke(&mut self, platform: &mut P, error: xenstore::ProtocolError) {
        platform.log(format_args!("{error}: connected vbds are served, others are not"));
        self.xenstore.broken = true;
        self.xenstore.ready = false;
    }

    /// Sets when timers are looked at next.
    pub(crate) fn wake_at(&mut self, at: Instant) {
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
    }

    fn fire_timers(&mut self, platform: &mut P) {
        let Some(deadline) = self.deadline else { return };
        let now = platform.now();
        if now < deadline {
            return;
        }
        let mut due = Vec::new();
        if self.conversation.open_until().is_some_and(|at| at <= now) {
            self.give_up(platform, now);
        }
        if self.shutdown.drains_until().is_some_and(|at| at <= now) {
            self.stay(platform);
        }
        self.fire_upstream_timers(platform, now);
        let others = [
            self.conversation.open_until(),
            self.shutdown.drains_until(),
            self.upstream_deadline(),
        ];
        self.deadline = others.into_iter().flatten().min();
        for vbd in self.vbds.iter_mut() {
            if let Opening::Waits(until) = vbd.opening {
                if until <= now {
                    vbd.opening = Opening::Waited;
                    vbd.look = true;
                    due.push(vbd.id.key);
                } else {
                    self.deadline = Some(self.deadline.map_or(until, |at| at.min(until)));
                }
            }
            match vbd.answers_until {
                Some(until) if until <= now => due.push(vbd.id.key),
                Some(until) => {
                    self.deadline = Some(self.deadline.map_or(until, |at| at.min(until)));
                }
                None => {}
            }
            match vbd.timer {
                Some(timer) if timer.at <= now => {
                    vbd.timer = None;
                    vbd.handle(timer.event);
                    due.push(vbd.id.key);
                }
                Some(timer) => {
                    let earlier = self.deadline.map_or(timer.at, |at| at.min(timer.at));
                    self.deadline = Some(earlier);
                }
                None => {}
            }
        }
        for key in due {
            self.proceed(platform, key);
        }
    }

    /// One vbd's turn: one of its rings.
    fn serve(&mut self, platform: &mut P, key: VbdKey) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        vbd.queued = false;
        let Some(at) = vbd.take_ready() else { return };
        let (ring, Identity::Open(device)) = (&mut vbd.rings[at], &mut vbd.identity) else {
            return;
        };
        let Some(entry) = self.disks.get_mut(device.disk) else { return };
        let mut media = Media {
            disk: &mut entry.disk,
            access: device.access,
            discards: device.discards,
            pool: &mut self.pool,
        };
        match self.engine.turn(&mut ring.queue, platform, &mut media) {
            Ok(turn) => {
                ring.ready |= turn.next == blkback::Next::Work;
                ring.next = turn.next;
                if let Some(refused) = turn.refused {
                    vbd.say(platform, format_args!("{refused}"));
                }
                if let Some(status) = turn.lost {
                    platform.log(format_args!("{vbd}: a grant stays mapped: {status}"));
                }
                // What this ring let go of another one may have found busy.
                if turn.next != blkback::Next::Disk {
                    let is_held = |ring: &&mut Ring<_>| ring.next == blkback::Next::Disk;
                    vbd.rings.iter_mut().filter(is_held).for_each(|ring| ring.ready = true);
                }
                let is_closing = vbd.answers_until.is_some();
                if vbd.rings.iter().any(|ring| ring.ready) {
                    self.enqueue(key);
                }
                if is_closing {
                    self.proceed(platform, key);
                }
            }
            Err(error) => {
                self.complain(platform, key, format_args!("ring stopped: {error}"));
                if let Some(vbd) = self.vbds.get_mut(&key) {
                    vbd.handle(Event::Broken);
                }
                // At once: xenstore may take long, and no event of its frontend is of use meanwhile.
                self.disconnect(platform, key);
                self.proceed(platform, key);
            }
        }
    }

    /// Whether pages are on their way back.
    pub(crate) fn is_clearing(&self) -> bool {
        !self.cleared.is_empty() || !self.worked.is_empty()
    }

    /// Gives some pages back of disks that are gone, or that are to have fewer.
    fn clear_disks(&mut self, platform: &mut P) {
        let steps = &mut Steps::new(MAX_CLEARED);
        if let Some(disk) = self.cleared.last_mut() {
            if disk.clear(&mut self.pool, steps) == Progress::Done {
                self.cleared.pop();
                self.usage_changed = true;
            }
        } else if let Some(entry) = self.worked.last().and_then(|&id| self.disks.get_mut(id)) {
            let left = match (&mut entry.disk, entry.work) {
                (Disk::Pages(disk), Some(Work::Empty)) => disk.discard_all(&mut self.pool, steps),
                (Disk::Pages(disk), Some(Work::Shrink(nr_sectors))) => {
                    disk.shrink(&mut self.pool, nr_sectors, steps)
                }
                _ => Ok(Progress::Done),
            };
            if let Err(error) = left {
                let name = entry.name.as_deref().unwrap_or_default();
                platform.log(format_args!("disk {name} keeps its pages: {error}"));
            }
            if left != Ok(Progress::More) {
                entry.work = None;
                self.worked.pop();
                self.usage_changed = true;
            }
        }
    }
}

/// Takes `nr` frames off the first run that has more than that.
fn take_run(runs: &mut [(Gfn, u64)], nr: u64) -> Option<Gfn> {
    let run = runs.iter_mut().find(|run| run.1 > nr)?;
    let first = run.0;
    *run = (first.checked_add(nr)?, run.1 - nr);
    Some(first)
}

/// Has disks share a namespace.
fn shared<D: Device>((name, device): (Namespace, D)) -> (Namespace, Rc<RefCell<Shared<D>>>) {
    let mut shared = Shared::new();
    shared.connect(device);
    (name, Rc::new(RefCell::new(shared)))
}
