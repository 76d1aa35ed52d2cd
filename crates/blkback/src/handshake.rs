//! The backend's half of the xenbus handshake, as a pure state machine.
//!
//! It is level-triggered: each event replaces what is known of the peer, and from what is known
//! follows the next step. An event that is late, early, lost among others or told twice changes
//! nothing, and so the order in which a frontend goes through its states is no assumption here.

use alloc::vec::Vec;

use xen_abi::XenbusState;

/// Whether the toolstack wants the device to be there (`online`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Online {
    /// It does.
    Yes,
    /// It waits for the device to go.
    No,
}

/// What xenstore says of a device now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// Our `online` node; one that is missing or no number means no.
    pub online: Online,
    /// The frontend's `state` node; `None` where it is gone.
    pub frontend: Option<XenbusState>,
}

/// Whether the disk is there for a frontend to connect to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Availability {
    /// It is.
    Free,
    /// Another vbd is connected to it.
    Taken,
}

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// We looked.
    Looked(Look),
    /// What we offer stands in xenstore, together with `state` = 2.
    Published,
    /// The device cannot be served at all; no frontend will change that.
    Refused,
    /// The time that [`Action::Settle`] asked for is over.
    Settled,
    /// Whether the disk is there has changed. Also an answer to [`Action::Connect`]: it was taken
    /// meanwhile.
    Disk(Availability),
    /// The ring is mapped and its port bound.
    Connected,
    /// The ring could not be had: the frontend's keys or grants are no good.
    NotConnected,
    /// The ring is of no more use: the frontend broke it.
    Broken,
    /// What the disk is on is gone. A frontend that has a ring is to let go of it.
    Withdrawn,
    /// The time that [`Action::Linger`] asked for is over.
    Lingered,
    /// Our directory is not there any more.
    Vanished,
}

/// Something to do, in the order given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Write what we offer and `state` = 2, in one transaction; then [`Event::Published`].
    Publish,
    /// Wait so long that libxl sees us in state 2; then [`Event::Settled`].
    Settle,
    /// Read the frontend's keys, map its ring, bind its port; then [`Event::Connected`],
    /// [`Event::NotConnected`], or [`Event::Disk`] where another vbd has the disk.
    Connect,
    /// Answer what is in flight, where that is [of use](Handshake::takes_answers), unmap the ring,
    /// close the port.
    Disconnect,
    /// Write our `state` node.
    Write(XenbusState),
    /// Wait so long that libxl sees us in state 6; then [`Event::Lingered`].
    Linger,
    /// Remove our directory.
    Remove,
    /// Forget the device; nothing more is asked.
    Forget,
}

/// Where we stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The directory was found; nothing is written yet.
    New,
    /// The transaction that publishes is under way.
    Publishing,
    /// State 2.
    InitWait,
    /// State 2, and the ring is being mapped.
    Connecting,
    /// State 4.
    Connected,
    /// State 5. The ring is there if it was before, and is served until the frontend lets go.
    Closing,
    /// State 6.
    Closed,
    /// State 6, and the toolstack knows that soon the directory goes.
    Lingering,
    /// Over.
    Gone,
}

/// Whether a frontend may come back to a device in state 6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reopen {
    Yes,
    No,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ring {
    Mapped,
    None,
}

/// The state machine of one vbd.
#[derive(Debug)]
pub struct Handshake {
    phase: Phase,
    look: Look,
    ring: Ring,
    reopen: Reopen,
    settled: bool,
    disk: Availability,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    /// A device whose directory has just been found.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            phase: Phase::New,
            look: Look { online: Online::Yes, frontend: None },
            ring: Ring::None,
            reopen: Reopen::Yes,
            settled: false,
            disk: Availability::Free,
        }
    }

    /// Whether a ring is mapped.
    #[must_use]
    pub fn has_ring(&self) -> bool {
        self.ring == Ring::Mapped
    }

    /// Whether it has closed, or is about to: a frontend that has a ring still has to let go of it.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Closed | Phase::Lingering | Phase::Gone)
    }

    /// Whether our `state` is still what the toolstack wrote.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        matches!(self.phase, Phase::New | Phase::Publishing)
    }

    /// Whether our `state` is 4.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// Whether a frontend that has closed may still take answers: it waits for our 6 before it uses its
    /// ring's pages for anything else. Linux goes to 6 with requests in flight, and lets its disk go when
    /// they are answered (`blkfront_closing`, `blkfront_remove`).
    #[must_use]
    pub fn takes_answers(&self) -> bool {
        self.phase != Phase::Gone && self.look.frontend == Some(XenbusState::Closed)
    }

    /// Whether it waits for a disk that another vbd has.
    #[must_use]
    pub fn waits_for_disk(&self) -> bool {
        self.disk == Availability::Taken
    }

    /// Takes an event and says what to do.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase == Phase::Gone {
            return actions;
        }
        match (event, self.phase) {
            (Event::Looked(look), _) => self.look = look,
            (Event::Published, Phase::Publishing) => {
                self.phase = Phase::InitWait;
                actions.push(Action::Settle);
            }
            (Event::Refused, Phase::New | Phase::Publishing) => {
                self.reopen = Reopen::No;
                self.close(&mut actions);
            }
            (Event::Settled, _) => self.settled = true,
            (Event::Disk(disk), _) => {
                self.disk = disk;
                // Another vbd was faster.
                if disk == Availability::Taken && self.phase == Phase::Connecting {
                    self.phase = Phase::InitWait;
                }
            }
            (Event::Connected, Phase::Connecting) => {
                self.ring = Ring::Mapped;
                self.phase = Phase::Connected;
                actions.push(Action::Write(XenbusState::Connected));
            }
            (Event::NotConnected, Phase::Connecting) | (Event::Broken, Phase::Connected) => {
                self.close(&mut actions);
            }
            (Event::Withdrawn, Phase::Connected) => self.closing(&mut actions),
            (Event::Broken, Phase::Closing) => self.disconnect(&mut actions),
            (Event::Lingered, Phase::Lingering) => {
                actions.push(Action::Remove);
                self.forget(&mut actions);
            }
            (Event::Vanished, _) => self.forget(&mut actions),
            // Late: what it speaks of is over.
            _ => {}
        }
        self.advance(&mut actions);
        actions
    }

    /// Takes every step that follows from what is known.
    fn advance(&mut self, actions: &mut Vec<Action>) {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
        loop {
            let before = self.phase;
            let Look { online, frontend } = self.look;
            match (self.phase, online, frontend) {
                (Phase::New, Online::Yes, _) => {
                    self.phase = Phase::Publishing;
                    actions.push(Action::Publish);
                }
                // Detached before we came to it.
                (Phase::New, Online::No, _) => self.close(actions),

                (Phase::InitWait, Online::No, _) | (Phase::InitWait, _, Some(Closing | Closed)) => {
                    self.closing(actions);
                }
                // Some frontends are at 3 or 4 before they have seen us at 2.
                (Phase::InitWait, _, Some(Initialised | Connected))
                    if self.settled && self.disk == Availability::Free =>
                {
                    self.phase = Phase::Connecting;
                    actions.push(Action::Connect);
                }

                (Phase::Connected, Online::No, _)
                | (Phase::Connected, _, Some(Closing | Closed) | None)
                // It starts anew without having closed: another kernel has taken over.
                | (Phase::Connected, _, Some(Initialising | InitWait)) => self.closing(actions),

                // Nobody is there that would need the ring, or still has to hear of our 5.
                (Phase::Closing, _, Some(Closed | Initialising | InitWait) | None) => {
                    self.closed(actions);
                }

                (Phase::Closed, Online::No, _) => {
                    self.phase = Phase::Lingering;
                    actions.push(Action::Linger);
                }
                (Phase::Closed, Online::Yes, Some(Initialising | InitWait))
                    if self.reopen == Reopen::Yes =>
                {
                    self.phase = Phase::InitWait;
                    actions.push(Action::Write(InitWait));
                }
                _ => {}
            }
            if self.phase == before {
                return;
            }
        }
    }

    fn closing(&mut self, actions: &mut Vec<Action>) {
        self.phase = Phase::Closing;
        actions.push(Action::Write(XenbusState::Closing));
    }

    fn closed(&mut self, actions: &mut Vec<Action>) {
        self.disconnect(actions);
        self.phase = Phase::Closed;
        actions.push(Action::Write(XenbusState::Closed));
    }

    /// Through 5 to 6 at once: no frontend skips a state that it waits for.
    fn close(&mut self, actions: &mut Vec<Action>) {
        self.closing(actions);
        self.closed(actions);
    }

    fn disconnect(&mut self, actions: &mut Vec<Action>) {
        if self.ring == Ring::Mapped {
            self.ring = Ring::None;
            actions.push(Action::Disconnect);
        }
    }

    fn forget(&mut self, actions: &mut Vec<Action>) {
        self.disconnect(actions);
        self.phase = Phase::Gone;
        actions.push(Action::Forget);
    }
}
