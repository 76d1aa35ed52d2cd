//! One vbd's record.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use blkback::{Action, Discards, Event, Handshake, Next, Queue, Stats};
use blkif::keys::VdiskInfo;
use catalog::GrantUse;
use store::Access;
use xen_abi::{DomId, Instant};

use crate::disks::DiskId;
use crate::inquiry::Inquiry;
use crate::platform::Platform;
use crate::text::LineLimit;

/// Where the toolstack puts our devices, relative to our own directory.
pub(crate) const BACKEND_DIR: &str = "backend/vbd";

/// Which vbd: the names of its two directories below `backend/vbd`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct VbdKey {
    pub(crate) frontend: DomId,
    pub(crate) devid: u32,
}

/// As it stands in paths: `<frontend>/<devid>`.
impl fmt::Display for VbdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.frontend, self.devid)
    }
}

/// A vbd in one of its lives: a key may be used again, an answer may come late.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VbdId {
    pub(crate) key: VbdKey,
    pub(crate) life: u32,
}

/// Something to happen later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Timer {
    pub(crate) at: Instant,
    pub(crate) event: Event,
}

/// What the toolstack has asked for, once that is known and its disk is open.
#[derive(Debug)]
pub(crate) struct Device {
    /// The frontend's directory.
    pub(crate) frontend_dir: String,
    /// `target=`, as it was last obeyed.
    pub(crate) params: Vec<u8>,
    pub(crate) disk: DiskId,
    /// Its size in sectors, as its frontend is told of it; `None` before it is published.
    pub(crate) published: Option<u64>,
    /// `mode`, as it was read.
    pub(crate) mode: Access,
    /// What its frontend may do: less where its target says so.
    pub(crate) access: Access,
    pub(crate) discards: Discards,
    pub(crate) grants: GrantUse,
    pub(crate) info: VdiskInfo,
}

/// A ring, and whether it may have requests.
pub(crate) struct Ring<M> {
    pub(crate) queue: Queue<M>,
    pub(crate) ready: bool,
    /// What its last turn ended with.
    pub(crate) next: Next,
    /// Pages that may stay mapped for it.
    pub(crate) max_mapped: usize,
}

/// How far our reading of the device's own nodes has come.
#[derive(Debug)]
pub(crate) enum Identity {
    /// Not all there.
    Unknown,
    /// It cannot be served.
    Refused {
        /// The frontend's directory, as far as it is known.
        frontend_dir: String,
    },
    /// Its disk is open.
    Open(Device),
}

impl Identity {
    pub(crate) fn frontend_dir(&self) -> Option<&str> {
        match self {
            Self::Unknown => None,
            Self::Refused { frontend_dir } => Some(frontend_dir),
            Self::Open(device) => Some(&device.frontend_dir),
        }
    }
}

/// Whether a device's disk is waited for, because what it is on is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opening {
    /// It is not.
    AtOnce,
    /// Until then.
    Waits(Instant),
    /// It was, and no longer.
    Waited,
}

/// One vbd.
pub(crate) struct Vbd<M> {
    pub(crate) id: VbdId,
    pub(crate) handshake: Handshake,
    pub(crate) identity: Identity,
    pub(crate) opening: Opening,
    /// The rings, while it is connected.
    pub(crate) rings: Vec<Ring<M>>,
    /// The ring that has its turn next.
    pub(crate) next_ring: usize,
    /// What is being asked of xenstore.
    pub(crate) inquiry: Option<Inquiry>,
    /// Something has changed since the last look was begun.
    pub(crate) look: bool,
    /// What the handshake wants done.
    pub(crate) todo: VecDeque<Action>,
    pub(crate) timer: Option<Timer>,
    /// Until when its rings are kept for answers.
    pub(crate) answers_until: Option<Instant>,
    /// It stands in the queue of those with work.
    pub(crate) queued: bool,
    /// An error node was written.
    pub(crate) has_error: bool,
    /// How many lines its frontend may still cause.
    lines: LineLimit,
    /// It was said that it is connected.
    is_said: bool,
}

impl<M> Vbd<M> {
    pub(crate) fn new(id: VbdId) -> Self {
        Self {
            id,
            handshake: Handshake::new(),
            identity: Identity::Unknown,
            opening: Opening::AtOnce,
            rings: Vec::new(),
            next_ring: 0,
            inquiry: None,
            look: true,
            todo: VecDeque::new(),
            timer: None,
            answers_until: None,
            queued: false,
            has_error: false,
            lines: LineLimit::new(),
            is_said: false,
        }
    }

    /// Our directory.
    pub(crate) fn dir(&self) -> String {
        format!("{BACKEND_DIR}/{}", self.id.key)
    }

    /// One of our nodes.
    pub(crate) fn node(&self, key: &str) -> String {
        format!("{BACKEND_DIR}/{}/{key}", self.id.key)
    }

    /// Where its error is told, in the manner of Linux's xenbus.
    pub(crate) fn error_dir(&self) -> String {
        format!("error/{BACKEND_DIR}/{}", self.id.key)
    }

    /// What its frontend's watch comes back with.
    pub(crate) fn token(&self) -> String {
        format!("{}", self.id.key)
    }

    /// Its disk, once that is open.
    pub(crate) fn disk(&self) -> Option<DiskId> {
        match &self.identity {
            Identity::Open(device) => Some(device.disk),
            _ => None,
        }
    }

    /// How its target wants grants to be used, once its disk is open.
    pub(crate) fn grants(&self) -> Option<GrantUse> {
        match &self.identity {
            Identity::Open(device) => Some(device.grants),
            _ => None,
        }
    }

    /// What was done on its rings since they were connected.
    pub(crate) fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        self.rings.iter().for_each(|ring| sum += ring.queue.stats);
        sum
    }

    /// Takes the next ring that may have requests, round them all.
    pub(crate) fn take_ready(&mut self) -> Option<usize> {
        let nr = self.rings.len();
        let at = (0..nr).map(|n| (self.next_ring + n) % nr).find(|&at| self.rings[at].ready)?;
        self.rings[at].ready = false;
        self.next_ring = (at + 1) % nr;
        Some(at)
    }

    /// Says a line that its frontend may cause, as often as is bearable. Whether it was said.
    pub(crate) fn say<P: Platform>(&mut self, platform: &mut P, text: fmt::Arguments<'_>) -> bool {
        let (now, Self { id, lines, .. }) = (platform.now(), self);
        lines.say(now, format_args!("vbd {}: {text}", id.key), |line| platform.log(line))
    }

    /// Says how it is connected.
    pub(crate) fn say_connected<P: Platform>(&mut self, platform: &mut P, how: &dyn fmt::Display) {
        self.is_said = self.say(platform, format_args!("connected, {how}"));
    }

    /// Says what was done while it was connected: where it was said that it is, whatever else was
    /// said since. Lines of failed requests would hide how many there were.
    pub(crate) fn say_closed<P: Platform>(&mut self, platform: &mut P, stats: &Stats) {
        let text = format_args!("closed after {stats}");
        if core::mem::take(&mut self.is_said) {
            let Self { id, lines, .. } = self;
            lines.say_anyway(format_args!("vbd {}: {text}", id.key), |line| platform.log(line));
        } else if !self.say(platform, text) {
            return;
        }
        let Stats { at_hand, segments, .. } = stats;
        if !at_hand.is_empty() {
            platform.log(format_args!(
                "{self}: requests at hand {at_hand}; segments a request {segments}"
            ));
        }
    }

    /// Takes an event; what follows from it is then to be done.
    pub(crate) fn handle(&mut self, event: Event) {
        self.todo.extend(self.handshake.handle(event));
    }
}

impl<M> fmt::Display for Vbd<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vbd {}", self.id.key)
    }
}
