//! What the handshakes want done, and how.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use blkback::{Action, Connection, Event, FrontendKeys, Queue, Stats};
use blkif::{BackRing, keys};
use catalog::Target;
use store::{Access, BlockStore, Disk, RamDisk, SECTOR_SIZE, StoreError};
use xen_abi::{DomId, GrantRef, PAGE_SIZE, XenbusState};
use xenstore::{Change, Request, SubmitError};

use crate::domain::{Domain, Dropped};
use crate::inbox::Tag;
use crate::inquiry::{FRONTEND, FRONTEND_ID, Inquiry, Node, STATE, Subject};
use crate::platform::Platform;
use crate::text::Printable;
use crate::vbd::{BACKEND_DIR, Device, Identity, Timer, Vbd, VbdKey};

/// How long state 6 stands before our directory goes: libxl fails a detach that does not see it.
const LINGER: Duration = Duration::from_millis(200);

/// errno numbers as an `error` node begins with.
const EINVAL: u32 = 22;
const ENOMEM: u32 = 12;

/// Whether an action is behind us.
enum Outcome {
    Done,
    /// It waits: for room in xenstore's queue, or for the inquiry under way.
    Later,
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
                _ => Subject::Look,
            };
            if let Outcome::Done = self.inquire(platform, key, subject)
                && let Some(vbd) = self.vbds.get_mut(&key)
            {
                vbd.look = false;
            }
        }
    }

    fn perform(&mut self, platform: &mut P, key: VbdKey, action: Action) -> Outcome {
        match action {
            Action::Publish => self.publish(platform, key),
            Action::Settle => self.set_timer(platform, key, self.settings.settle, Event::Settled),
            Action::Linger => self.set_timer(platform, key, LINGER, Event::Lingered),
            Action::Connect => self.inquire(platform, key, Subject::Ring),
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
    fn queued(
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
    fn inquire(&mut self, platform: &mut P, key: VbdKey, subject: Subject) -> Outcome {
        let Some(vbd) = self.vbds.get_mut(&key) else { return Outcome::Done };
        if vbd.inquiry.is_some() {
            return Outcome::Later;
        }
        self.next_inquiry = self.next_inquiry.wrapping_add(1);
        let mut inquiry = Inquiry::new(subject, self.next_inquiry);
        let mut result = Ok(());
        for (n, node) in subject.nodes().iter().enumerate() {
            let path = match node {
                Node::Backend(name) => vbd.node(name),
                Node::Frontend(name) => {
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

    /// Reads what the toolstack wants, and opens the disk.
    pub(crate) fn identify(&mut self, platform: &mut P, key: VbdKey, inquiry: &Inquiry) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        let [state, frontend, frontend_id, params, mode] =
            core::array::from_fn(|n| inquiry.value(n));
        if state.is_none() && frontend.is_none() {
            vbd.handle(Event::Vanished);
            return;
        }
        let (Some(frontend), Some(frontend_id), Some(params), Some(mode)) =
            (frontend, frontend_id, params, mode)
        else {
            // Half-written: what is still to come makes itself known.
            return;
        };
        let frontend_dir = String::from_utf8_lossy(frontend).into_owned();
        let device = if frontend_id == key.frontend.to_string().as_bytes() {
            self.open(&frontend_dir, params, mode)
        } else {
            let id = Printable(frontend_id);
            Err((EINVAL, format!("{FRONTEND_ID} is {id}, but {FRONTEND} is another domain's")))
        };
        let token = key.to_string();
        let path = format!("{frontend_dir}/{STATE}");
        let id = match self.vbds.get_mut(&key) {
            None => return,
            Some(vbd) => {
                vbd.look = true;
                vbd.id
            }
        };
        match device {
            Ok(device) => {
                let geometry = BlockStore::<P::Memory>::geometry(&device.disk);
                platform.log(format_args!(
                    "vbd {key}: attached {}, {} sectors, {}; its contents end with the vbd",
                    Printable(params),
                    geometry.nr_sectors,
                    match device.access {
                        Access::ReadOnly => "read-only",
                        Access::ReadWrite => "read-write",
                    },
                ));
                if let Some(vbd) = self.vbds.get_mut(&key) {
                    vbd.identity = Identity::Open(device);
                }
            }
            Err((errno, reason)) => {
                let text = format!("cannot serve target={}: {reason}", Printable(params));
                self.tell_error(platform, key, errno, &text);
                if let Some(vbd) = self.vbds.get_mut(&key) {
                    vbd.identity = Identity::Refused { frontend_dir };
                    vbd.handle(Event::Refused);
                }
            }
        }
        self.submit(platform, Request::Watch { path: &path, token: &token }, Tag::Written(id));
    }

    fn open(
        &self,
        frontend_dir: &str,
        params: &[u8],
        mode: &[u8],
    ) -> Result<Device, (u32, String)> {
        let access = match mode {
            b"w" => Access::ReadWrite,
            b"r" => Access::ReadOnly,
            other => return Err((EINVAL, format!("mode `{}`, expected r or w", Printable(other)))),
        };
        let text = str::from_utf8(params).map_err(|_| (EINVAL, "not UTF-8".to_string()))?;
        let target = Target::parse(text).map_err(|error| {
            let word = Printable(error.word.as_bytes());
            (EINVAL, format!("`{word}`: {}", error.problem))
        })?;
        let disk = match target {
            Target::Ram { size_bytes } => {
                let nr_sectors = size_bytes / SECTOR_SIZE as u64;
                let cap_pages = size_bytes.div_ceil(PAGE_SIZE as u64);
                let disk = RamDisk::new(nr_sectors, cap_pages, &self.pool);
                let disk = disk.map_err(|error| match error {
                    StoreError::TooLarge { .. } => (ENOMEM, error.to_string()),
                    error => (EINVAL, error.to_string()),
                })?;
                Disk::Ram(disk)
            }
        };
        Ok(Device { frontend_dir: frontend_dir.into(), disk, access })
    }

    /// Writes what a vbd offers, and that it waits for its frontend. Keys whose value is the
    /// protocol's default are left out: xenstore counts our nodes.
    fn publish(&mut self, platform: &mut P, key: VbdKey) -> Outcome {
        let Some(vbd) = self.vbds.get(&key) else { return Outcome::Done };
        let Identity::Open(device) = &vbd.identity else { return Outcome::Done };
        let geometry = BlockStore::<P::Memory>::geometry(&device.disk);
        let info = match device.access {
            Access::ReadOnly => keys::VdiskInfo::READONLY,
            Access::ReadWrite => keys::VdiskInfo::empty(),
        };
        let mut offer: Vec<(&str, u64)> = alloc::vec![
            (keys::SECTORS, geometry.nr_sectors),
            (keys::SECTOR_SIZE, geometry.logical.bytes().into()),
            (keys::INFO, info.bits().into()),
            (keys::FEATURE_FLUSH_CACHE, 1),
        ];
        if geometry.physical_bytes != geometry.logical.bytes() {
            offer.push((keys::PHYSICAL_SECTOR_SIZE, geometry.physical_bytes.into()));
        }
        let max_indirect = self.engine.max_indirect().get();
        if max_indirect > 0 {
            offer.push((keys::FEATURE_MAX_INDIRECT_SEGMENTS, max_indirect.into()));
        }
        let mut changes: Vec<Change> = offer
            .into_iter()
            .map(|(name, value)| Change::Write(vbd.node(name), value.to_string().into_bytes()))
            .collect();
        let state = XenbusState::InitWait.to_string();
        changes.push(Change::Write(vbd.node(STATE), state.into_bytes()));
        let result = self.xenstore.client.transact(changes, Tag::Published(vbd.id));
        self.queued(platform, key, result)
    }

    /// Maps the frontend's ring and binds its port.
    pub(crate) fn connect(&mut self, platform: &mut P, key: VbdKey, inquiry: &Inquiry) {
        let frontend = FrontendKeys {
            ring_ref: inquiry.value(0),
            event_channel: inquiry.value(1),
            protocol: inquiry.value(2),
        };
        match self.attach_ring(platform, key.frontend, &frontend) {
            Ok(queue) => {
                platform.log(format_args!(
                    "vbd {key}: connected, ring of {} requests",
                    queue.ring.nr_entries()
                ));
                let at = queue.port.0 as usize;
                if self.ports.len() <= at {
                    self.ports.resize(at + 1, None);
                }
                self.ports[at] = Some(key);
                if let Some(vbd) = self.vbds.get_mut(&key) {
                    vbd.queue = Some(queue);
                    vbd.handle(Event::Connected);
                }
                // Requests may have come before the port was ours.
                self.enqueue(key);
                self.usage_changed = true;
            }
            Err(reason) => {
                self.complain(platform, key, format_args!("cannot connect: {reason}"));
                if let Some(vbd) = self.vbds.get_mut(&key) {
                    vbd.handle(Event::NotConnected);
                }
            }
        }
    }

    fn attach_ring(
        &self,
        platform: &mut P,
        peer: DomId,
        frontend: &FrontendKeys<'_>,
    ) -> Result<Queue<P::Mapping>, String> {
        let spec = Connection::parse(frontend).map_err(|error| error.to_string())?;
        let ring: [GrantRef; 1] = [spec.ring_ref];
        let mapping = platform.map(peer, &ring).map_err(|error| error.to_string())?;
        // We mapped as many pages as the ring has, so it fits.
        let ring = BackRing::attach(mapping, spec.abi, self.engine.max_indirect())
            .map_err(|error| error.to_string())?;
        match platform.bind_interdomain(peer, spec.port) {
            Ok(port) => Ok(Queue { ring, port, peer, stats: Stats::default() }),
            Err(error) => {
                unmap(platform, ring.into_memory());
                Err(format!("cannot bind {} {}: {error}", keys::EVENT_CHANNEL, spec.port))
            }
        }
    }

    /// Lets a ring go. Nothing is in flight between turns.
    pub(crate) fn disconnect(&mut self, platform: &mut P, key: VbdKey) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        let Some(queue) = vbd.queue.take() else { return };
        if let Some(place) = self.ports.get_mut(queue.port.0 as usize) {
            *place = None;
        }
        platform.close_port(queue.port);
        unmap(platform, queue.ring.into_memory());
        platform.log(format_args!("vbd {key}: closed after {}", queue.stats));
        self.usage_changed = true;
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
        if let Identity::Open(device) = vbd.identity {
            self.cleared.push(device.disk);
        }
        self.usage_changed = true;
        Outcome::Done
    }

    /// Tells an error that a frontend may cause: on the console as often as is bearable, and in
    /// the vbd's error node.
    pub(crate) fn complain(&mut self, platform: &mut P, key: VbdKey, text: fmt::Arguments<'_>) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        if let Some(dropped) = vbd.lines.allow(platform.now()) {
            let text = format!("{text}{}", Dropped(dropped));
            self.tell_error(platform, key, EINVAL, &text);
        }
    }

    /// Tells an error on the console and in the vbd's error node (`xenbus_dev_error` in Linux:
    /// an errno, a blank, a text).
    fn tell_error(&mut self, platform: &mut P, key: VbdKey, errno: u32, text: &str) {
        platform.log(format_args!("vbd {key}: {text}"));
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        vbd.has_error = true;
        let (node, tag) = (format!("{}/error", vbd.error_dir()), Tag::Written(vbd.id));
        let value = format!("{errno} {text}");
        self.submit(platform, Request::Write(&node, value.as_bytes()), tag);
    }

    /// What to remove with a vbd's error: also the directories above it that hold no other.
    fn error_root(&self, gone: &Vbd<P::Mapping>) -> String {
        let others = || self.vbds.values().filter(|vbd| vbd.has_error).map(|vbd| vbd.id.key);
        if others().next().is_none() {
            "error/backend".into()
        } else if others().all(|key| key.frontend != gone.id.key.frontend) {
            format!("error/{BACKEND_DIR}/{}", gone.id.key.frontend)
        } else {
            gone.error_dir()
        }
    }

    /// Says in `data/usage` what is in use, when that has changed and nothing is on its way back.
    pub(crate) fn tell_usage(&mut self, platform: &mut P) {
        if !self.usage_changed || !self.cleared.is_empty() {
            return;
        }
        self.usage_changed = false;
        let usage = format!(
            "free_pages={} total_pages={} handles={} vbds={} heap_peak_bytes={}",
            self.pool.nr_free(),
            self.pool.nr_total(),
            platform.nr_handles(),
            self.vbds.len(),
            platform.heap_peak_bytes(),
        );
        self.submit(platform, Request::Write("data/usage", usage.as_bytes()), Tag::Usage);
    }
}

/// Unmaps; what Xen keeps is lost, and said.
fn unmap<P: Platform>(platform: &mut P, mapping: P::Mapping) {
    if let Err(status) = platform.unmap(mapping) {
        platform.log(format_args!("a grant stays mapped: {status}"));
    }
}
