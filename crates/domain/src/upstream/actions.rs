//! What the frontends' handshakes want done, and how: the counterpart of the backends'.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use blkfront::{Action, Event};
use blkif::keys;
use catalog::{Ground, VirtualDevice};
use xen_abi::{DomId, XenbusState};
use xenstore::{Change, Request, SubmitError};

use super::{CLOSING_LIMIT, CONNECT_LIMIT, MAX_UPSTREAMS, Peer, Upstream};
use crate::actions::Outcome;
use crate::domain::Domain;
use crate::inbox::{Tag, is_gone};
use crate::inquiry::{About, Inquiry, Own, STATE, Side, Subject};
use crate::platform::Platform;
use crate::refusal::Refusal;
use crate::text::Printable;
use crate::vbd::Opening;

/// What an answer of xenstore is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// Node number `n` of an inquiry.
    Node { inquiry: u32, n: usize },
    /// The ring of that life was announced.
    Announced { life: u32 },
    /// A node was written, or a watch set or ended.
    Written,
}

impl<P: Platform> Domain<P> {
    /// Has a device looked for, if it is not yet.
    pub(crate) fn want_upstream(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
    ) -> Result<(), Refusal> {
        if self.upstreams.get(device).is_some() {
            return Ok(());
        }
        if self.upstreams.0.len() >= MAX_UPSTREAMS {
            return Err(Refusal::TooManyUpstreams(MAX_UPSTREAMS));
        }
        let mut upstream = Upstream::new(device);
        let missing_at = platform.now().after(CONNECT_LIMIT);
        upstream.missing_at = Some(missing_at);
        let (path, token) = (upstream.dir(), upstream.token());
        self.upstreams.0.push(upstream);
        self.wake_at(missing_at);
        let tag = Tag::Upstream(device, Answer::Written);
        self.submit(platform, Request::Watch { path: &path, token: &token }, tag);
        Ok(())
    }

    /// A watch of a device has told something.
    pub(crate) fn upstream_changed(&mut self, platform: &mut P, device: u32, path: &str) {
        let upstream = self.upstreams.0.iter_mut().find(|up| up.device.number() == device);
        let Some(upstream) = upstream else { return };
        // What else changes in our directory is our own writing.
        if path.ends_with("/state") || path.ends_with("/backend") || path == upstream.dir() {
            upstream.look = true;
            let device = upstream.device;
            self.proceed_upstream(platform, device);
        }
    }

    /// xenstore has answered.
    pub(crate) fn upstream_answered(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
        answer: Answer,
        result: Result<(), xenstore::Error>,
    ) {
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        match answer {
            Answer::Node { .. } => {
                let over = upstream.inquiry.take_if(|inquiry| inquiry.is_over());
                let Some(inquiry) = over else { return };
                self.conclude_upstream(platform, device, &inquiry);
            }
            Answer::Announced { life } if life == upstream.life => {
                if let Err(error) = result {
                    upstream.say(platform, format_args!("cannot announce a ring: {error}"));
                    upstream.handle(Event::NotAnnounced);
                    self.let_go_upstream(platform, device);
                } else {
                    upstream.handle(Event::Announced);
                }
            }
            Answer::Announced { .. } => return,
            Answer::Written => {
                // Where our directory is gone meanwhile, the look will tell.
                upstream.look |= result.is_err();
                if let Err(error) = result
                    && !is_gone(error)
                {
                    platform.log(format_args!("{upstream}: xenstore refuses: {error}"));
                }
            }
        }
        self.proceed_upstream(platform, device);
    }

    /// Does what a handshake wants, as far as that goes now, and looks again where something has
    /// changed.
    pub(crate) fn proceed_upstream(&mut self, platform: &mut P, device: VirtualDevice) {
        while let Some(upstream) = self.upstreams.get_mut(device)
            && let Some(&action) = upstream.todo.front()
        {
            match self.perform_upstream(platform, device, action) {
                Outcome::Later => break,
                Outcome::Done => {
                    if let Some(upstream) = self.upstreams.get_mut(device) {
                        upstream.todo.pop_front();
                    }
                }
            }
        }
        let now = platform.now();
        // One that vanished may be looked for no longer, and have been the last.
        let Some(upstream) = self.upstreams.get_mut(device) else {
            return self.end_if_drained(platform);
        };
        if !upstream.handshake.is_closing() {
            upstream.closing_until = None;
        } else if upstream.closing_until.is_none() {
            let until = now.after(CLOSING_LIMIT);
            upstream.closing_until = Some(until);
            self.wake_at(until);
        }
        let Some(upstream) = self.upstreams.get(device) else { return };
        if upstream.look && upstream.inquiry.is_none() {
            let own = Own::of(upstream.handshake.is_new());
            let about = if upstream.peer.is_some() { About::State(own) } else { About::Peer };
            if let Outcome::Done = self.inquire_upstream(platform, device, about)
                && let Some(upstream) = self.upstreams.get_mut(device)
            {
                upstream.look = false;
            }
        }
        self.end_if_drained(platform);
    }

    fn perform_upstream(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
        action: Action,
    ) -> Outcome {
        match action {
            Action::Announce => self.inquire_upstream(platform, device, About::Order),
            Action::Connect => self.inquire_upstream(platform, device, About::Disk),
            Action::Resize => self.inquire_upstream(platform, device, About::Size),
            Action::Write(state) => self.write_upstream_state(platform, device, state),
            Action::Drain => {
                self.drain_upstream(device);
                Outcome::Done
            }
            Action::Abandon => {
                self.abandon_upstream(platform, device);
                Outcome::Done
            }
            Action::Disconnect => {
                self.let_go_upstream(platform, device);
                Outcome::Done
            }
            Action::Forget => {
                self.forget_upstream(platform, device);
                Outcome::Done
            }
        }
    }

    /// Whether a request was queued; one that was not is tried again.
    fn upstream_queued(&mut self, platform: &mut P, result: Result<(), SubmitError>) -> Outcome {
        match result {
            Ok(()) => Outcome::Done,
            Err(SubmitError::QueueFull { .. }) => {
                self.stalled = true;
                Outcome::Later
            }
            Err(error) => {
                platform.log(format_args!("upstream: {error}"));
                Outcome::Done
            }
        }
    }

    fn inquire_upstream(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
        about: About,
    ) -> Outcome {
        if !self.has_room() {
            return Outcome::Later;
        }
        let Some(upstream) = self.upstreams.get_mut(device) else { return Outcome::Done };
        if upstream.inquiry.is_some() {
            return Outcome::Later;
        }
        self.next_inquiry = self.next_inquiry.wrapping_add(1);
        let subject = Subject::Upstream(about);
        let nodes = subject.nodes();
        let mut inquiry = Inquiry::new(subject, self.next_inquiry, &nodes);
        let mut result = Ok(());
        for (n, (side, name)) in nodes.iter().enumerate() {
            let path = match (side, &upstream.peer) {
                (Side::Backend, Some(peer)) => format!("{}/{name}", peer.dir),
                _ => upstream.node(name),
            };
            if result.is_ok() {
                let answer = Answer::Node { inquiry: inquiry.number, n };
                let tag = Tag::Upstream(device, answer);
                result = self.xenstore.client.submit(Request::Read(&path), tag);
            }
            if result.is_err() {
                inquiry.answer(n, None);
            }
        }
        // Where the queue was full, the answers to what it took are for an inquiry that is not.
        let outcome = self.upstream_queued(platform, result);
        if let Outcome::Done = outcome
            && let Some(upstream) = self.upstreams.get_mut(device)
        {
            upstream.inquiry = Some(inquiry);
        }
        outcome
    }

    /// The last answer of an inquiry is there.
    fn conclude_upstream(&mut self, platform: &mut P, device: VirtualDevice, inquiry: &Inquiry) {
        match inquiry.subject {
            Subject::Upstream(About::Peer) => self.meet_peer(platform, device, inquiry.first()),
            Subject::Upstream(About::State(own)) => {
                let Some(upstream) = self.upstreams.get_mut(device) else { return };
                let [ours, dir, theirs] = inquiry.first();
                let is_another = upstream.peer.as_ref().map(|peer| peer.dir.as_bytes()) != dir
                    || own.is_another(ours);
                if ours.is_none() || is_another {
                    upstream.handle(Event::Vanished);
                    return;
                }
                let state =
                    theirs.map(|text| XenbusState::parse(text).unwrap_or(XenbusState::Unknown));
                let was = core::mem::replace(&mut upstream.seen, state);
                upstream.handle(Event::Looked(state));
                let began_anew =
                    matches!(was, None | Some(XenbusState::Closing | XenbusState::Closed))
                        && matches!(state, Some(XenbusState::Initialising | XenbusState::InitWait));
                if began_anew && upstream.handshake.is_closed() && self.shutdown.keeps_upstreams() {
                    self.reopen_upstream(platform, device);
                }
            }
            Subject::Upstream(About::Order) => self.announce(platform, device, inquiry.value(0)),
            Subject::Upstream(About::Disk) => {
                self.connect_upstream(platform, device, inquiry.first());
            }
            Subject::Upstream(About::Size) => {
                self.resize_upstream(platform, device, inquiry.value(0));
            }
            _ => {}
        }
    }

    /// The backend waits for us again. One that holds frames of ours gets no more.
    fn reopen_upstream(&mut self, platform: &mut P, device: VirtualDevice) {
        self.reclaim_upstream(platform, device);
        let upstream = self.upstreams.get_mut(device);
        if let Some(upstream) = upstream.filter(|upstream| upstream.retired.nr_frames() == 0) {
            upstream.handle(Event::Reopen);
        }
    }

    /// Our directory was read for the first time, or is still not there.
    fn meet_peer(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
        [dir, domid, state]: [Option<&[u8]>; 3],
    ) {
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        let dir = dir.and_then(|dir| str::from_utf8(dir).ok()).filter(|dir| !dir.is_empty());
        let domid = domid.and_then(keys::number).map(DomId);
        let (Some(dir), Some(domid), Some(_)) = (dir, domid, state) else { return };
        // Nobody would close it again.
        if !self.shutdown.keeps_upstreams() {
            return;
        }
        platform.log(format_args!("{upstream}: {}", Printable(dir.as_bytes())));
        upstream.life = upstream.life.wrapping_add(1);
        upstream.peer = Some(Peer { domid, dir: dir.into() });
        upstream.handshake = blkfront::Handshake::new();
        upstream.todo.clear();
        upstream.look = true;
        let (path, token) = (format!("{dir}/{STATE}"), upstream.token());
        let tag = Tag::Upstream(device, Answer::Written);
        self.submit(platform, Request::Watch { path: &path, token: &token }, tag);
    }

    fn write_upstream_state(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
        state: XenbusState,
    ) -> Outcome {
        if !self.has_room() {
            return Outcome::Later;
        }
        let Some(upstream) = self.upstreams.get(device) else { return Outcome::Done };
        let (node, value) = (upstream.node(STATE), state.to_string());
        let tag = Tag::Upstream(device, Answer::Written);
        let request = Request::Write(&node, value.as_bytes());
        let result = self.xenstore.client.submit(request, tag);
        self.upstream_queued(platform, result)
    }

    /// Writes a ring's announcement and our state 3.
    pub(super) fn write_announcement(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
        nodes: Vec<(String, Option<String>)>,
    ) {
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        let mut changes = Vec::new();
        for (key, value) in nodes {
            let node = upstream.node(&key);
            changes.push(match value {
                Some(value) => Change::Write(node, value.into_bytes()),
                None => Change::Remove(node),
            });
        }
        let state = XenbusState::Initialised.to_string();
        changes.push(Change::Write(upstream.node(STATE), state.into_bytes()));
        let tag = Tag::Upstream(device, Answer::Announced { life: upstream.life });
        if let Err(error) = self.xenstore.client.transact(changes, tag) {
            upstream.say(platform, format_args!("cannot announce a ring: {error}"));
            upstream.handle(Event::NotAnnounced);
            self.let_go_upstream(platform, device);
        }
    }

    /// The toolstack has taken our directory away: it may come again, with another backend.
    fn forget_upstream(&mut self, platform: &mut P, device: VirtualDevice) {
        self.let_go_upstream(platform, device);
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        platform.log(format_args!("{upstream}: detached"));
        upstream.seen = None;
        upstream.look = true;
        let Some(peer) = upstream.peer.take() else { return };
        let (path, token) = (format!("{}/{STATE}", peer.dir), upstream.token());
        let tag = Tag::Upstream(device, Answer::Written);
        self.submit(platform, Request::Unwatch { path: &path, token: &token }, tag);
        self.drop_upstreams(platform);
    }

    /// Looks no longer for devices that nobody serves and nobody asks for.
    pub(crate) fn drop_upstreams(&mut self, platform: &mut P) {
        if self.vbds.iter().any(|vbd| vbd.opening != Opening::AtOnce) {
            return;
        }
        for device in self.upstreams.devices() {
            let is_used = self.disks.on(Ground::Vbd(device)).next().is_some()
                || self.defined.iter().any(|defined| defined.disk.device == Ground::Vbd(device));
            let idle = |up: &&Upstream<_>| up.peer.is_none() && up.retired.nr_frames() == 0;
            if is_used {
                continue;
            }
            let Some(upstream) = self.upstreams.get(device).filter(idle) else { continue };
            let (path, token) = (upstream.dir(), upstream.token());
            let tag = Tag::Upstream(device, Answer::Written);
            self.submit(platform, Request::Unwatch { path: &path, token: &token }, tag);
            self.upstreams.0.retain(|upstream| upstream.device != device);
        }
    }
}
