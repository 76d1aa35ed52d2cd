//! The frontend's half of the xenbus handshake, as a pure state machine.
//!
//! It is level-triggered, as its counterpart in `blkback` is: each look replaces what is known of
//! the backend, and from what is known follows the next step. Two things alone wait for an answer of
//! xenstore, and for those looks are only remembered: the announcement of our ring, and the
//! description of the disk.

use alloc::vec::Vec;

use xen_abi::XenbusState;

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// We looked at the backend's `state` node; `None` where it is gone, or holds no state.
    Looked(Option<XenbusState>),
    /// Our ring stands in xenstore, together with `state` = 3.
    Announced,
    /// There is no ring: the backend's keys are no good, or we could not grant it.
    NotAnnounced,
    /// The disk is described.
    Connected,
    /// What describes the disk cannot be used.
    NotConnected,
    /// The backend broke the ring.
    Broken,
    /// Nothing is in flight any more.
    Drained,
    /// The backend took too long, whatever it is that it should do: it is not waited for.
    TimedOut,
    /// We want to have the device no more.
    Close,
    /// We want to have it anew once it is closed.
    Reopen,
    /// Our own directory is not there any more.
    Vanished,
}

/// Something to do, in the order given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Read [`max-ring-page-order`](blkif::keys::MAX_RING_PAGE_ORDER), grant a ring, write the
    /// [`announcement`](crate::announcement) and `state` = 3, in one transaction; then
    /// [`Event::Announced`] or [`Event::NotAnnounced`].
    Announce,
    /// Read [`Disk::KEYS`](crate::Disk::KEYS); then [`Event::Connected`] or
    /// [`Event::NotConnected`].
    Connect,
    /// Read [`sectors`](blkif::keys::SECTORS) again: it may have changed.
    Resize,
    /// Take no new requests; [`Event::Drained`] once all are answered, or [`Event::TimedOut`].
    Drain,
    /// Nobody answers what is in flight any more: it has failed.
    Abandon,
    /// The backend has let go of the ring, or is not waited for: take back what is granted, close the
    /// port.
    Disconnect,
    /// Write our `state` node.
    Write(XenbusState),
    /// Forget the device; nothing more is asked.
    Forget,
}

/// Where we stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// State 1, at first or again; the backend has not published yet.
    Initialising,
    /// State 1, and the ring is being announced.
    Announcing,
    /// State 3.
    Announced,
    /// State 3, and what describes the disk is being read.
    Connecting,
    /// State 4.
    Connected,
    /// State 4, and the last requests are waited for.
    Draining,
    /// State 5, until the backend follows.
    Closing,
    /// State 6, until the backend has let go of the ring.
    LettingGo,
    /// State 6.
    Closed,
    /// Over.
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ring {
    Granted,
    None,
}

/// What we want the device to be in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    Open,
    Closed,
}

/// What it means at our state 1 that the backend is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    /// It has refused us.
    First,
    /// It has not seen yet that we are at 1 again.
    Again,
}

/// The state machine of one vbd.
#[derive(Debug)]
pub struct Handshake {
    phase: Phase,
    backend: Option<XenbusState>,
    ring: Ring,
    wish: Wish,
    start: Start,
    /// The backend has rewritten its state while the disk's description was being read.
    looked_again: bool,
    /// What the backend does before we are closed is of no interest any more.
    timed_out: bool,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    /// A device whose directory has just been found, in state 1.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            phase: Phase::Initialising,
            backend: Some(XenbusState::Initialising),
            ring: Ring::None,
            wish: Wish::Open,
            start: Start::First,
            looked_again: false,
            timed_out: false,
        }
    }

    /// Whether our `state` is 1: as the toolstack wrote it, or again.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        matches!(self.phase, Phase::Initialising | Phase::Announcing)
    }

    /// Whether requests can be made.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// Whether it has closed, and stays so until [`Event::Reopen`].
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed | Phase::Gone)
    }

    /// Whether the backend is waited for: it may never do what it should, and a time limit is in
    /// place ([`Event::TimedOut`]).
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Draining | Phase::Closing | Phase::LettingGo)
    }

    /// Takes an event and says what to do.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase == Phase::Gone {
            // It was announced while we heard that all is over.
            if event == Event::Announced {
                actions.push(Action::Disconnect);
            }
            return actions;
        }
        match (event, self.phase) {
            (Event::Looked(backend), phase) => {
                self.backend = backend.filter(|&state| state != XenbusState::Unknown);
                self.looked_again |= phase == Phase::Connecting;
                if phase == Phase::Connected && backend == Some(XenbusState::Connected) {
                    actions.push(Action::Resize);
                }
            }
            (Event::Announced, Phase::Announcing) => {
                self.ring = Ring::Granted;
                self.phase = Phase::Announced;
            }
            (Event::Connected, Phase::Connecting)
                if self.backend == Some(XenbusState::Connected) && self.wish == Wish::Open =>
            {
                self.phase = Phase::Connected;
                actions.push(Action::Write(XenbusState::Connected));
                if self.looked_again {
                    actions.push(Action::Resize);
                }
            }
            (Event::NotAnnounced, Phase::Announcing)
            | (Event::Connected | Event::NotConnected, Phase::Connecting)
            | (Event::Drained, Phase::Draining) => self.closing(&mut actions),
            (Event::Broken, Phase::Connected | Phase::Draining) => self.abandon(&mut actions),
            (Event::TimedOut, Phase::Draining | Phase::Closing | Phase::LettingGo) => {
                self.timed_out = true;
            }
            (Event::Close, _) => self.wish = Wish::Closed,
            (Event::Reopen, _) => self.wish = Wish::Open,
            (Event::Vanished, _) => self.forget(&mut actions),
            // Late: what it speaks of is over.
            _ => {}
        }
        self.advance(&mut actions);
        actions
    }

    /// Takes every step that follows from what is known.
    fn advance(&mut self, actions: &mut Vec<Action>) {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialising};
        loop {
            let before = self.phase;
            let backend = if self.timed_out { None } else { self.backend };
            match (self.phase, self.wish, backend) {
                (Phase::Initialising | Phase::Announced, Wish::Closed, _) => self.closing(actions),
                (Phase::Initialising, Wish::Open, Some(InitWait)) => {
                    self.phase = Phase::Announcing;
                    actions.push(Action::Announce);
                }
                // It has a ring that we do not have any more: we began anew without its knowledge.
                (Phase::Initialising, Wish::Open, Some(Connected)) => {
                    self.closing(actions);
                    self.wish = Wish::Open;
                }
                (Phase::Initialising, Wish::Open, Some(Closed)) if self.start == Start::Again => {}
                (
                    Phase::Initialising | Phase::Announced,
                    Wish::Open,
                    Some(Closing | Closed) | None,
                ) => self.closing(actions),
                (Phase::Announced, Wish::Open, Some(Connected)) => {
                    self.phase = Phase::Connecting;
                    self.looked_again = false;
                    actions.push(Action::Connect);
                }

                // Nobody serves the ring any more.
                (
                    Phase::Connected | Phase::Draining,
                    _,
                    Some(Closed | Initialising | InitWait) | None,
                ) => self.abandon(actions),
                (Phase::Connected, _, Some(Closing)) | (Phase::Connected, Wish::Closed, _) => {
                    self.wish = Wish::Closed;
                    self.phase = Phase::Draining;
                    actions.push(Action::Drain);
                }

                // It has followed, or never had a ring, or is not there.
                (Phase::Closing, _, Some(Closing | Closed | Initialising | InitWait) | None) => {
                    self.phase = Phase::LettingGo;
                    actions.push(Action::Write(Closed));
                }
                // A backend in InitWait may be mapping the ring that we announced.
                (Phase::LettingGo, _, Some(InitWait)) if self.ring == Ring::Granted => {}
                (Phase::LettingGo, _, Some(Closed | Initialising | InitWait) | None) => {
                    self.disconnect(actions);
                    self.timed_out = false;
                    self.phase = Phase::Closed;
                }
                (Phase::Closed, Wish::Open, _) => {
                    self.start = Start::Again;
                    self.phase = Phase::Initialising;
                    actions.push(Action::Write(Initialising));
                }
                _ => {}
            }
            if self.phase == before {
                return;
            }
        }
    }

    fn abandon(&mut self, actions: &mut Vec<Action>) {
        actions.push(Action::Abandon);
        self.closing(actions);
    }

    /// Begins to close. What was wished while the last requests were waited for holds.
    fn closing(&mut self, actions: &mut Vec<Action>) {
        if self.phase != Phase::Draining {
            self.wish = Wish::Closed;
        }
        self.phase = Phase::Closing;
        actions.push(Action::Write(XenbusState::Closing));
    }

    fn disconnect(&mut self, actions: &mut Vec<Action>) {
        if self.ring == Ring::Granted {
            self.ring = Ring::None;
            actions.push(Action::Disconnect);
        }
    }

    fn forget(&mut self, actions: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Connected | Phase::Draining) {
            actions.push(Action::Abandon);
        }
        self.disconnect(actions);
        self.phase = Phase::Gone;
        actions.push(Action::Forget);
    }
}
