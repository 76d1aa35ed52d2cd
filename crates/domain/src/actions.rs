//! What the handshakes want done, and how.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::time::Duration;

use blkback::{Action, Event};
use xen_abi::XenbusState;
use xenstore::{Error, Request, SubmitError};

use crate::disks::DiskId;
use crate::domain::Domain;
use crate::inbox::Tag;
use crate::inquiry::{Inquiry, Own, STATE, Side, Subject};
use crate::platform::Platform;
use crate::refusal::{EINVAL, ENOSPC};
use crate::vbd::{BACKEND_DIR, Identity, Timer, Vbd, VbdKey};

/// How long state 6 stands before our directory goes: libxl fails a detach that does not see it.
const LINGER: Duration = Duration::from_millis(200);

/// Bytes of xenstore's queue that vbds leave to what cannot wait: answers to dom0, errors.
const KEPT_BYTES: usize = 8 * 1024;

/// Whether an action is behind us.
pub(crate) enum Outcome {
    Done,
    /// It waits: for room in xenstore's queue, for the inquiry under way, or for answers.
    Later,
}

/// What a vbd cannot be served without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Needed {
    /// The nodes that say what it offers.
    Nodes,
    /// The watch on its frontend.
    Watch,
}

impl Needed {
    /// What there is a quota of.
    const fn counted(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Watch => "watches",
        }
    }
}

impl<P: Platform> Domain<P> {
    /// Does what a vbd's handshake wants, as far as that goes now, and looks again where something
    /// has changed.
    pub(crate) fn proceed(&mut self, platform: &mut P, key: VbdKey) {
        while let Some(vbd) = self.vbds.get_mut(&key)
            && let Some(&action) = vbd.todo.front()
        {
            match self.perform(platform, key, action) {
                Outcome::Later => break,
                Outcome::Done => {
                    if let Some(vbd) = self.vbds.get_mut(&key) {
                        vbd.todo.pop_front();
                    }
                }
            }
        }
        let Some(vbd) = self.vbds.get(&key) else { return };
        if vbd.look && vbd.inquiry.is_none() {
            let subject = match vbd.identity {
                Identity::Unknown => Subject::Identity,
                _ => Subject::Look(Own::of(vbd.handshake.is_new())),
            };
            if let Outcome::Done = self.inquire(platform, key, subject)
                && let Some(vbd) = self.vbds.get_mut(&key)
            {
                vbd.look = false;
            }
        }
    }

    /// Whether xenstore's queue has room for what a vbd can wait with. If not, it is tried again.
    pub(crate) fn has_room(&mut self) -> bool {
        let has_room = self.xenstore.client.room_bytes() > KEPT_BYTES;
        self.stalled |= !has_room;
        has_room
    }

    fn perform(&mut self, platform: &mut P, key: VbdKey, action: Action) -> Outcome {
        let asks_xenstore = matches!(
            action,
            Action::Publish | Action::Connect | Action::Write(_) | Action::Linger | Action::Remove
        );
        if asks_xenstore && !self.has_room() {
            return Outcome::Later;
        }
        match action {
            Action::Publish => self.publish(platform, key),
            Action::Settle => self.set_timer(platform, key, self.settings.settle, Event::Settled),
            Action::Linger => self.await_closed(platform, key),
            Action::Connect => self.begin_connect(platform, key),
            Action::Disconnect if self.awaits_answers(platform, key) => Outcome::Later,
            Action::Disconnect => {
                self.disconnect(platform, key);
                Outcome::Done
            }
            Action::Write(state) => self.write_state(platform, key, state),
            Action::Remove => self.remove(platform, key),
            Action::Forget => self.forget(platform, key),
        }
    }

    /// Whether a request was queued. One that never can be is behind us, with a line.
    pub(crate) fn queued(
        &mut self,
        platform: &mut P,
        key: VbdKey,
        result: Result<(), SubmitError>,
    ) -> Outcome {
        match result {
            Ok(()) => Outcome::Done,
            Err(SubmitError::QueueFull { .. }) => {
                self.stalled = true;
                Outcome::Later
            }
            Err(error) => {
                platform.log(format_args!("vbd {key}: {error}"));
                Outcome::Done
            }
        }
    }

    /// Reads the nodes of a subject.
    pub(crate) fn inquire(&mut self, platform: &mut P, key: VbdKey, subject: Subject) -> Outcome {
        if !self.has_room() {
            return Outcome::Later;
        }
        let Some(vbd) = self.vbds.get_mut(&key) else { return Outcome::Done };
        if vbd.inquiry.is_some() {
            return Outcome::Later;
        }
        self.next_inquiry = self.next_inquiry.wrapping_add(1);
        let nodes = subject.nodes();
        let mut inquiry = Inquiry::new(subject, self.next_inquiry, &nodes);
        let mut result = Ok(());
        for (n, (side, name)) in nodes.iter().enumerate() {
            let path = match side {
                Side::Backend => vbd.node(name),
                Side::Frontend => {
                    format!("{}/{name}", vbd.identity.frontend_dir().unwrap_or_default())
                }
            };
            if result.is_ok() {
                let tag = Tag::Node { key, inquiry: inquiry.number, n };
                result = self.xenstore.client.submit(Request::Read(&path), tag);
            }
            if result.is_err() {
                inquiry.answer(n, None);
            }
        }
        // Where the queue was full, the answers to what it took are for an inquiry that is not.
        let outcome = self.queued(platform, key, result);
        if let Outcome::Done = outcome
            && let Some(vbd) = self.vbds.get_mut(&key)
        {
            vbd.inquiry = Some(inquiry);
        }
        outcome
    }

    /// Lets the time that state 6 stands begin when it does: requests are answered in their order.
    fn await_closed(&mut self, platform: &mut P, key: VbdKey) -> Outcome {
        let Some(vbd) = self.vbds.get(&key) else { return Outcome::Done };
        let request = vbd.node(STATE);
        let result = self.xenstore.client.submit(Request::Read(&request), Tag::Closed(vbd.id));
        self.queued(platform, key, result)
    }

    /// State 6 stands in xenstore.
    pub(crate) fn linger(&mut self, platform: &mut P, key: VbdKey) {
        self.set_timer(platform, key, LINGER, Event::Lingered);
    }

    fn set_timer(
        &mut self,
        platform: &mut P,
        key: VbdKey,
        delay: Duration,
        event: Event,
    ) -> Outcome {
        let at = platform.now().after(delay);
        if let Some(vbd) = self.vbds.get_mut(&key) {
            vbd.timer = Some(Timer { at, event });
            self.wake_at(at);
        }
        Outcome::Done
    }

    fn write_state(&mut self, platform: &mut P, key: VbdKey, state: XenbusState) -> Outcome {
        let Some(vbd) = self.vbds.get(&key) else { return Outcome::Done };
        let (node, value) = (vbd.node(STATE), state.to_string());
        let request = Request::Write(&node, value.as_bytes());
        let result = self.xenstore.client.submit(request, Tag::Written(vbd.id));
        self.queued(platform, key, result)
    }

    /// Removes what stands in xenstore for a vbd.
    fn remove(&mut self, platform: &mut P, key: VbdKey) -> Outcome {
        let Some(vbd) = self.vbds.get(&key) else { return Outcome::Done };
        let request = vbd.dir();
        let result = self.xenstore.client.submit(Request::Remove(&request), Tag::Written(vbd.id));
        self.queued(platform, key, result)
    }

    /// Ends a vbd's record; its disk's pages go back to the pool step by step.
    fn forget(&mut self, platform: &mut P, key: VbdKey) -> Outcome {
        let Some(vbd) = self.vbds.remove(&key) else { return Outcome::Done };
        let tag = Tag::Written(vbd.id);
        if let Some(dir) = vbd.identity.frontend_dir() {
            let (path, token) = (format!("{dir}/{STATE}"), vbd.token());
            self.submit(platform, Request::Unwatch { path: &path, token: &token }, tag);
        }
        if vbd.has_error {
            let stale = self.error_root(&vbd);
            self.submit(platform, Request::Remove(&stale), tag);
        }
        if !matches!(vbd.identity, Identity::Unknown) {
            platform.log(format_args!("{vbd}: detached"));
        }
        if let Some(disk) = vbd.disk() {
            self.release(platform, disk, key);
        }
        self.drop_upstreams(platform);
        self.usage_changed = true;
        if vbd.look {
            // It may have been attached again while we still read that it was gone.
            self.look(platform, key);
        }
        Outcome::Done
    }

    /// Lets a vbd's disk go for good.
    fn release(&mut self, platform: &mut P, disk: DiskId, key: VbdKey) {
        self.cleared.extend(self.disks.release(disk, key));
        self.hand_over(platform, disk);
        self.end_if_drained(platform);
    }

    /// xenstore refuses what a vbd needs: it cannot be served.
    pub(crate) fn give_up_vbd(
        &mut self,
        platform: &mut P,
        key: VbdKey,
        needed: Needed,
        error: Error,
    ) {
        let what = needed.counted();
        let text = match error {
            // The last is what xenstored says of watches (Xen 4.20, `do_watch`).
            Error::Enospc | Error::Equota | Error::E2big => {
                format!("cannot be served: Granary's quota of xenstore {what} is used up ({error})")
            }
            _ => format!("cannot be served: xenstore refuses its {what}: {error}"),
        };
        self.tell_error(platform, key, ENOSPC, &text);
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        let disk = vbd.disk();
        let frontend_dir = vbd.identity.frontend_dir().unwrap_or_default().into();
        vbd.identity = Identity::Refused { frontend_dir };
        vbd.handle(Event::Refused);
        // Its state first: with the last disk the domain may end.
        self.proceed(platform, key);
        if let Some(disk) = disk {
            self.release(platform, disk, key);
        }
    }

    /// Tells an error that a frontend may cause: in the vbd's error node, and on the console as
    /// often as is bearable.
    pub(crate) fn complain(&mut self, platform: &mut P, key: VbdKey, text: fmt::Arguments<'_>) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        vbd.say(platform, text);
        self.write_error(platform, key, EINVAL, text);
    }

    /// Tells an error that the toolstack has caused.
    pub(crate) fn tell_error(&mut self, platform: &mut P, key: VbdKey, errno: u32, text: &str) {
        platform.log(format_args!("vbd {key}: {text}"));
        self.write_error(platform, key, errno, format_args!("{text}"));
    }

    /// Writes the vbd's error node (`xenbus_dev_error` in Linux: an errno, a blank, a text).
    fn write_error(&mut self, platform: &mut P, key: VbdKey, errno: u32, text: fmt::Arguments<'_>) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        vbd.has_error = true;
        let node = format!("{}/error", vbd.error_dir());
        let value = format!("{errno} {text}");
        self.submit(platform, Request::Write(&node, value.as_bytes()), Tag::ErrorTold);
    }

    /// What to remove with a vbd's error: also the directories above it that hold no other.
    fn error_root(&self, gone: &Vbd<P::Mapping>) -> String {
        let others = || self.vbds.iter().filter(|vbd| vbd.has_error).map(|vbd| vbd.id.key);
        if others().next().is_none() {
            "error/backend".into()
        } else if others().all(|key| key.frontend != gone.id.key.frontend) {
            format!("error/{BACKEND_DIR}/{}", gone.id.key.frontend)
        } else {
            gone.error_dir()
        }
    }
}
