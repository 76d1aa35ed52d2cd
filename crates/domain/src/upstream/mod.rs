//! Disks that other domains serve to ours: our own vbds, as their frontend.
//!
//! A device is looked for once a disk's definition or target names it, and from then on as long as the
//! domain lives; what else stands in our `device/vbd` is left alone. What is kept here of one is what
//! it is in xenstore and of Xen; its requests go through a `store::Shared`, which outlives its
//! connections, and so do the disks on it.

mod actions;
mod connection;
mod disks;
mod service;

pub(crate) use actions::Answer;
pub(crate) use disks::Defined;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::time::Duration;

use blkfront::{Event, Frontend, GrantTable, Handshake, Retired, Ring};
use catalog::{Namespace, VirtualDevice};
use store::{Device, Shared};
use xen_abi::{DomId, EvtchnPort, Instant, SharedMemory, XenbusState};

use crate::create::SECTORS_PER_PAGE;
use crate::inquiry::Inquiry;
use crate::platform::Platform;
use crate::text::LineLimit;

/// How long a backend may take for each thing that we wait for at the end: the answers to what is in
/// flight, and its own states. Answers to guests have as long. libxl gives a detach 10 s.
pub(crate) const CLOSING_LIMIT: Duration = Duration::from_secs(5);

/// How long an upstream disk is waited for: by a vbd that is to be attached (libxl waits 10 s for it),
/// and before the console says that it is missing.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(8);

/// When frames are asked for again that a backend still has mapped.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(1);

/// Upstream disks that are kept: each has two watches and what its ring takes.
const MAX_UPSTREAMS: usize = 32;

/// Where the toolstack puts our own vbds, relative to our own directory.
const FRONTEND_DIR: &str = "device/vbd";

/// Memory that a platform grants.
pub(crate) type Granted<P> = <<P as Platform>::GrantTable as GrantTable>::Memory;

/// A disk that another domain serves.
pub(crate) type SharedFrontend<M> = Rc<RefCell<Shared<Frontend<M>>>>;

/// One of our own vbds.
pub(crate) struct Upstream<M: SharedMemory> {
    pub(crate) device: VirtualDevice,
    /// Changes with each directory that is found.
    life: u32,
    /// Who serves it, once that is known.
    peer: Option<Peer>,
    handshake: Handshake,
    /// The backend's state, as it was last seen.
    seen: Option<XenbusState>,
    todo: VecDeque<blkfront::Action>,
    inquiry: Option<Inquiry>,
    /// Something has changed since the last look was begun.
    look: bool,
    /// The ring that was announced, until it is connected.
    ring: Option<Ring<M>>,
    /// Frames for data, until they are connected.
    frames: Vec<xen_abi::Gfn>,
    port: Option<EvtchnPort>,
    /// What the disks on it ask, while it is connected.
    pub(crate) shared: SharedFrontend<M>,
    /// It takes no new requests, and is about to be let go.
    leaving: Option<Frontend<M>>,
    /// The last requests are waited for.
    draining: bool,
    retired: Retired,
    /// Until when the backend has time for what is waited for at the end.
    closing_until: Option<Instant>,
    /// When it is said that it is missing, unless it is connected by then.
    missing_at: Option<Instant>,
    reclaim_at: Option<Instant>,
    /// How many lines its backend may still cause.
    lines: LineLimit,
}

/// The domain that serves an upstream disk, and the directory of its half.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Peer {
    domid: DomId,
    dir: String,
}

impl<M: SharedMemory> Upstream<M> {
    fn new(device: VirtualDevice) -> Self {
        Self {
            device,
            life: 0,
            peer: None,
            handshake: Handshake::new(),
            seen: None,
            todo: VecDeque::new(),
            inquiry: None,
            look: true,
            ring: None,
            frames: Vec::new(),
            port: None,
            shared: Rc::new(RefCell::new(Shared::new())),
            leaving: None,
            draining: false,
            retired: Retired::new(),
            closing_until: None,
            missing_at: None,
            reclaim_at: None,
            lines: LineLimit::new(),
        }
    }

    /// Our directory.
    fn dir(&self) -> String {
        format!("{FRONTEND_DIR}/{}", self.device.number())
    }

    /// One of our nodes.
    fn node(&self, key: &str) -> String {
        format!("{FRONTEND_DIR}/{}/{key}", self.device.number())
    }

    /// What its watches come back with.
    fn token(&self) -> String {
        format!("{TOKEN}{}", self.device.number())
    }

    /// Whether its disk can be used.
    pub(crate) fn is_connected(&self) -> bool {
        self.handshake.is_connected()
    }

    /// Pages that a request may have whose data goes through its buffers, once it was connected. An
    /// overlay may need one more than it was asked for.
    pub(crate) fn max_segments(&self) -> u64 {
        max_segments(&self.shared)
    }

    /// Whether nothing of it is waited for where the domain is to end.
    fn is_closed(&self) -> bool {
        self.peer.is_none() || self.handshake.is_closed()
    }

    /// Says a line that its backend may cause, as often as is bearable.
    fn say<P: Platform>(&mut self, platform: &mut P, text: fmt::Arguments<'_>) {
        let (now, Self { device, lines, .. }) = (platform.now(), self);
        lines.say(now, format_args!("upstream {device}: {text}"), |line| platform.log(line));
    }

    /// Takes the answer for a node of an inquiry.
    pub(crate) fn told(&mut self, number: u32, n: usize, value: Option<&[u8]>) {
        if let Some(inquiry) = self.inquiry.as_mut().filter(|inquiry| inquiry.number == number) {
            inquiry.answer(n, value);
        }
    }

    /// Takes an event; what follows from it is then to be done.
    fn handle(&mut self, event: Event) {
        self.todo.extend(self.handshake.handle(event));
    }
}

/// How an upstream disk is called.
impl<M: SharedMemory> fmt::Display for Upstream<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "upstream {}", self.device)
    }
}

/// Why an upstream disk cannot be used now.
impl<M: SharedMemory> Upstream<M> {
    pub(crate) fn describe_state(&self) -> String {
        match (&self.peer, self.seen) {
            _ if self.is_connected() => "connected".into(),
            (None, _) => format!("there is no {}", self.dir()),
            (Some(Peer { domid, .. }), None) => format!("the backend in domain {domid} is gone"),
            (Some(Peer { domid, .. }), Some(state)) => {
                format!("the backend in domain {domid} is in state {state}")
            }
        }
    }
}

/// As [`Upstream::max_segments`], of any device.
pub(crate) fn max_segments<D: Device>(shared: &RefCell<Shared<D>>) -> u64 {
    (shared.borrow().max_sectors() / SECTORS_PER_PAGE).saturating_sub(1)
}

/// The namespace of this name.
pub(crate) fn find_namespace<D>(namespaces: &[(Namespace, D)], name: Namespace) -> Option<&D> {
    namespaces.iter().find(|(other, _)| *other == name).map(|(_, device)| device)
}

/// All upstream disks that are in use.
pub(crate) struct Upstreams<M: SharedMemory>(Vec<Upstream<M>>);

impl<M: SharedMemory> Upstreams<M> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    // Used all over: one copy of it is enough.
    #[inline(never)]
    pub(crate) fn get(&self, device: VirtualDevice) -> Option<&Upstream<M>> {
        self.0.iter().find(|upstream| upstream.device == device)
    }

    pub(crate) fn get_mut(&mut self, device: VirtualDevice) -> Option<&mut Upstream<M>> {
        self.0.iter_mut().find(|upstream| upstream.device == device)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Upstream<M>> {
        self.0.iter()
    }

    fn devices(&self) -> Vec<VirtualDevice> {
        self.iter().map(|upstream| upstream.device).collect()
    }
}

const TOKEN: &str = "upstream/";

/// Whose watch a token is of.
pub(crate) fn parse_token(token: &str) -> Option<u32> {
    token.strip_prefix(TOKEN)?.parse().ok()
}
