//! The host: its domains, clock, grants, ports and xenstored.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use xen_abi::{DomId, EvtchnPort, Instant};

use crate::xenstored::DOM0;
use crate::{EventChannels, GrantTables, Page, Rng, Xenstored, Xs};

/// The hypervisor and what runs beside the domains. Clones are the same host.
#[derive(Clone)]
pub struct Machine(Rc<Inner>);

struct Inner {
    seed: u64,
    now_ns: Cell<u64>,
    last_domid: Cell<u16>,
    rng: RefCell<Rng>,
    grants: RefCell<GrantTables>,
    events: RefCell<EventChannels>,
    xenstored: RefCell<Xenstored>,
    rings: RefCell<BTreeMap<DomId, RingEnd>>,
    xenstored_sleeps: Cell<bool>,
    console: RefCell<Vec<String>>,
    counters: RefCell<Counters>,
}

/// xenstored's end of a domain's ring. It looks at the ring only when it has a reason to, so that
/// a domain that forgets to notify is seen to hang.
#[derive(Debug)]
struct RingEnd {
    port: EvtchnPort,
    may_read: bool,
    may_write: bool,
}

/// What the driver domain asked of the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Batched map calls.
    pub map_calls: u64,
    /// Grants mapped.
    pub maps: u64,
    /// Batched unmap calls.
    pub unmap_calls: u64,
    /// Batched copy calls.
    pub copy_calls: u64,
    /// Copies.
    pub copies: u64,
    /// Copies from or to pages that stay mapped: no call at all.
    pub mapped_copies: u64,
    /// Events sent.
    pub sends: u64,
    /// Those among them that may go with the next wait.
    pub sends_with_wait: u64,
}

/// When a host begins: later than the zero of its clock.
const START_NS: u64 = 5_000_000_000;

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine(seed {}, {})", self.0.seed, self.now())
    }
}

impl Machine {
    /// A host with dom0 alone. All its choices follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut grants = GrantTables::new(&mut rng);
        grants.add_domain(DOM0);
        let xenstored = Xenstored::new(&mut rng);
        let mut events = EventChannels::default();
        events.add_domain(DOM0);
        Self(Rc::new(Inner {
            seed,
            now_ns: Cell::new(START_NS),
            last_domid: Cell::new(0),
            rng: RefCell::new(rng),
            grants: RefCell::new(grants),
            events: RefCell::new(events),
            xenstored: RefCell::new(xenstored),
            rings: RefCell::default(),
            xenstored_sleeps: Cell::new(false),
            console: RefCell::default(),
            counters: RefCell::default(),
        }))
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// The host's random choices.
    #[must_use]
    pub fn rng(&self) -> RefMut<'_, Rng> {
        self.0.rng.borrow_mut()
    }

    /// The grant tables.
    #[must_use]
    pub fn grants(&self) -> RefMut<'_, GrantTables> {
        self.0.grants.borrow_mut()
    }

    /// The event channels.
    #[must_use]
    pub fn events(&self) -> RefMut<'_, EventChannels> {
        self.0.events.borrow_mut()
    }

    /// xenstored itself; its clients use [`Machine::xs`].
    #[must_use]
    pub fn xenstored(&self) -> RefMut<'_, Xenstored> {
        self.0.xenstored.borrow_mut()
    }

    /// xenstore with the rights of a domain.
    #[must_use]
    pub fn xs(&self, domid: DomId) -> Xs {
        Xs::new(self.clone(), domid)
    }

    /// Xen's system time.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::from_ns(self.0.now_ns.get())
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let by_ns = u64::try_from(by.as_nanos()).expect("a delay that a test can mean");
        self.0.now_ns.set(self.0.now_ns.get() + by_ns);
    }

    /// Lets time pass up to `at`, if that lies ahead.
    pub fn advance_to(&self, at: Instant) {
        self.0.now_ns.set(self.0.now_ns.get().max(at.as_ns()));
    }

    /// Creates a domain as Xen alone does, without a word in xenstore.
    #[must_use]
    pub fn create_domain(&self) -> DomId {
        let domid = DomId(self.0.last_domid.get() + 1);
        self.0.last_domid.set(domid.0);
        self.grants().add_domain(domid);
        self.events().add_domain(domid);
        self.xenstored().introduce(domid);
        domid
    }

    /// Destroys a domain (`XEN_DOMCTL_destroydomain`): its ports close, its mappings of others go,
    /// xenstored forgets it. Its memory stays as long as others have it mapped.
    pub fn destroy_domain(&self, domid: DomId) {
        self.events().remove_domain(domid);
        self.grants().destroy_domain(domid);
        self.0.rings.borrow_mut().remove(&domid);
        self.xenstored().release(domid);
        self.wake_xenstored();
    }

    /// Whether Xen still has the domain: alive, or a zombie.
    #[must_use]
    pub fn has_domain(&self, domid: DomId) -> bool {
        self.grants().knows(domid)
    }

    /// Connects a domain to xenstored: its page, and its end of the event channel.
    #[must_use]
    pub fn connect_xenstore(&self, domid: DomId) -> (Page, EvtchnPort) {
        let page = Page::new();
        self.xenstored().connect(domid, page.clone());
        let mut events = self.events();
        let port = events.alloc_unbound(domid, DOM0).expect("a domain that lives");
        let end = events.bind_interdomain(DOM0, domid, port).expect("just opened");
        drop(events);
        let ring = RingEnd { port: end, may_read: false, may_write: false };
        self.0.rings.borrow_mut().insert(domid, ring);
        (page, port)
    }

    /// xenstored has something to tell; it sees to it when it runs.
    pub(crate) fn wake_xenstored(&self) {
        for ring in self.0.rings.borrow_mut().values_mut() {
            ring.may_write = true;
        }
    }

    /// From now on xenstored serves no ring. The toolstack and the guests, which use none here, still
    /// read and write.
    pub fn silence_xenstored(&self) {
        self.0.xenstored_sleeps.set(true);
    }

    /// xenstored serves the rings again, from where it was.
    pub fn wake_silent_xenstored(&self) {
        self.0.xenstored_sleeps.set(false);
    }

    /// Lets xenstored serve each ring once, up to a random number of bytes each way. Returns
    /// whether it did anything.
    pub fn step_xenstored(&self) -> bool {
        if self.0.xenstored_sleeps.get() {
            return false;
        }
        let (mut busy, mut any_received) = (false, false);
        for (&domid, ring) in self.0.rings.borrow_mut().iter_mut() {
            if self.events().take_port(DOM0, ring.port) {
                ring.may_read = true;
                ring.may_write = true;
            }
            // Mostly all that there is, now and then a part of a message.
            let max_bytes = {
                let mut rng = self.rng();
                if rng.one_in(4) { rng.between(1, 64) } else { 1024 }
            };
            let max_bytes = usize::try_from(max_bytes).expect("at most 1024");
            let mut xenstored = self.xenstored();
            let sent = ring.may_write && xenstored.send(domid, max_bytes);
            let received = ring.may_read && xenstored.receive(domid, max_bytes);
            drop(xenstored);
            ring.may_write = sent || received;
            ring.may_read = received;
            any_received |= received;
            if sent || received {
                self.events().send(DOM0, ring.port).expect("xenstored's port is open");
                busy = true;
            }
        }
        if any_received {
            // What one writes is told to others that watch it.
            self.wake_xenstored();
        }
        busy
    }

    /// Adds a line to the driver domain's console.
    pub(crate) fn say(&self, line: String) {
        self.0.console.borrow_mut().push(line);
    }

    /// The lines of the driver domain's console.
    #[must_use]
    pub fn console(&self) -> Vec<String> {
        self.0.console.borrow().clone()
    }

    /// What the driver domain asked for so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        *self.0.counters.borrow()
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.0.counters.borrow_mut());
    }
}
