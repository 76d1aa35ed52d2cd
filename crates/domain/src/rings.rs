//! A frontend's rings: found in xenstore, mapped and bound, let go.

use alloc::collections::TryReserveError;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use blkback::{Action, Availability, Event, Next, Persistence, Persistent, Queue, RingKeys, Terms};
use blkif::{BackRing, keys};
use catalog::GrantUse;
use store::Lease;
use xen_abi::DomId;

use crate::actions::Outcome;
use crate::disks::DiskId;
use crate::domain::Domain;
use crate::inquiry::{Inquiry, Subject};
use crate::platform::Platform;
use crate::ports::PortUser;
use crate::upstream::CLOSING_LIMIT;
use crate::vbd::{Ring, Vbd, VbdKey};

impl<P: Platform> Domain<P> {
    /// Asks for the frontend's terms, unless another vbd is connected to the disk, or what an earlier
    /// one wrote may still come.
    pub(crate) fn begin_connect(&mut self, platform: &mut P, key: VbdKey) -> Outcome {
        let disk = self.vbds.get(&key).and_then(Vbd::disk);
        if let Some(disk) = disk
            && let Err(gone) = self.check_connected(disk)
            && let Some(vbd) = self.vbds.get_mut(&key)
        {
            vbd.say(platform, format_args!("waits: {gone}"));
            vbd.handle(Event::Disk(Availability::Taken));
            return Outcome::Done;
        }
        let Some(vbd) = self.vbds.get_mut(&key) else { return Outcome::Done };
        if disk.and_then(|disk| self.disks.get(disk)).is_some_and(|entry| !entry.disk.is_settled())
        {
            vbd.say(platform, format_args!("waits: writes from before are still under way"));
            vbd.handle(Event::Disk(Availability::Taken));
            return Outcome::Done;
        }
        if let Some(disk) = disk
            && let Err(held) = self.disks.connect(disk, key)
        {
            vbd.say(platform, format_args!("waits: {held}"));
            vbd.handle(Event::Disk(Availability::Taken));
            return Outcome::Done;
        }
        self.inquire(platform, key, Subject::Terms)
    }

    /// Lets a vbd's disk go to those that wait for it.
    fn unlink(&mut self, platform: &mut P, key: VbdKey) {
        if let Some(disk) = self.vbds.get(&key).and_then(Vbd::disk) {
            self.disks.disconnect(disk, key);
            self.hand_over(platform, disk);
        }
    }

    /// Tells those that wait for a disk to try again.
    pub(crate) fn hand_over(&mut self, platform: &mut P, disk: DiskId) {
        let holders: Vec<VbdKey> =
            self.disks.get(disk).map_or(Vec::new(), |entry| entry.holders().collect());
        for key in holders {
            if let Some(vbd) = self.vbds.get_mut(&key)
                && vbd.handshake.waits_for_disk()
            {
                vbd.handle(Event::Disk(Availability::Free));
                self.proceed(platform, key);
            }
        }
    }

    /// The frontend's terms are known: its rings are to be read.
    pub(crate) fn read_rings(&mut self, platform: &mut P, key: VbdKey, inquiry: &Inquiry) {
        match Terms::parse(inquiry.first(), &self.offer) {
            Ok(mut terms) => {
                // Linux says it uses them again and again whether that was offered or not.
                if self.vbds.get(&key).and_then(Vbd::grants) == Some(GrantUse::Copy) {
                    terms.persistence = Persistence::PerRequest;
                }
                self.read_next_ring(platform, key, terms, Vec::new());
            }
            Err(error) => self.refuse_frontend(platform, key, &error),
        }
    }

    /// A ring's keys are there; the next ones', or all rings are connected.
    pub(crate) fn read_ring(
        &mut self,
        platform: &mut P,
        key: VbdKey,
        terms: Terms,
        mut known: Vec<RingKeys>,
        inquiry: &Inquiry,
    ) {
        let queue = u32::try_from(known.len()).unwrap_or(u32::MAX);
        match terms.parse_ring(queue, inquiry.values()) {
            Err(error) => self.refuse_frontend(platform, key, &error),
            Ok(ring) => {
                known.push(ring);
                if known.len() < terms.nr_queues as usize {
                    self.read_next_ring(platform, key, terms, known);
                } else {
                    self.connect(platform, key, &terms, &known);
                }
            }
        }
    }

    fn read_next_ring(
        &mut self,
        platform: &mut P,
        key: VbdKey,
        terms: Terms,
        known: Vec<RingKeys>,
    ) {
        // Where xenstore's queue is full, the frontend's terms are read again later.
        if let Outcome::Later = self.inquire(platform, key, Subject::Ring(terms, known))
            && let Some(vbd) = self.vbds.get_mut(&key)
        {
            vbd.todo.push_front(Action::Connect);
        }
    }

    fn refuse_frontend(&mut self, platform: &mut P, key: VbdKey, reason: &dyn fmt::Display) {
        self.complain(platform, key, format_args!("cannot connect: {reason}"));
        if let Some(vbd) = self.vbds.get_mut(&key) {
            vbd.handle(Event::NotConnected);
        }
        self.unlink(platform, key);
    }

    /// Maps the frontend's rings and binds their ports: all or none.
    fn connect(&mut self, platform: &mut P, key: VbdKey, terms: &Terms, rings: &[RingKeys]) {
        if let Err(reason) = self.reserve_lent(rings.len()) {
            return self.refuse_frontend(platform, key, &reason);
        }
        let mut queues = Vec::new();
        let mut left = self.mapped_left;
        for ring in rings {
            // Half of what is left, so that there is some for the next one.
            let max_mapped = (left / 2).min(self.settings.max_persistent.into());
            match self.attach_ring(platform, key.frontend, terms, ring, max_mapped) {
                Ok(queue) => {
                    let max_mapped = if queue.mapped.is_some() { max_mapped } else { 0 };
                    left -= max_mapped;
                    queues.push((queue, max_mapped));
                }
                Err(reason) => {
                    for (queue, _) in queues {
                        platform.close_port(queue.port);
                        // Nothing of it was lent yet.
                        unmap(platform, queue.into_mappings().0);
                    }
                    self.refuse_frontend(platform, key, &reason);
                    return;
                }
            }
        }
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        vbd.say_connected(platform, &Connected(terms));
        vbd.next_ring = 0;
        self.mapped_left = left;
        for (n, (queue, max_mapped)) in queues.into_iter().enumerate() {
            let port = queue.port;
            let next = Next::Event;
            vbd.rings.push(Ring { queue, ready: false, next, max_mapped });
            self.ports.assign(port, PortUser::Ring(key, n));
        }
        vbd.handle(Event::Connected);
        if vbd.disk().is_some_and(|disk| self.check_connected(disk).is_err())
            && let Some(vbd) = self.vbds.get_mut(&key)
        {
            vbd.handle(Event::Withdrawn);
        }
        // Requests may have come before the ports were ours.
        for n in 0..rings.len() {
            self.ready(key, n);
        }
        self.usage_changed = true;
    }

    /// Gets room to remember what is lent of so many more rings when they are let go.
    fn reserve_lent(&mut self, nr_rings: usize) -> Result<(), TryReserveError> {
        let nr_attached: usize = self.vbds.iter().map(|vbd| vbd.rings.len()).sum();
        self.lent.try_reserve(nr_attached + nr_rings)
    }

    /// Unmaps what devices do not access any more.
    pub(crate) fn unmap_lent(&mut self, platform: &mut P) {
        while let Some(at) = self.lent.iter().position(|lent| lent.lease.is_over()) {
            let Lent { mappings, max_mapped, .. } = self.lent.swap_remove(at);
            self.mapped_left += max_mapped;
            unmap(platform, mappings);
            self.usage_changed = true;
        }
    }

    fn attach_ring(
        &self,
        platform: &mut P,
        peer: DomId,
        terms: &Terms,
        keys: &RingKeys,
        max_mapped: usize,
    ) -> Result<Queue<P::Mapping>, String> {
        let mapping = platform.map(peer, &keys.refs).map_err(|error| error.to_string())?;
        // We mapped as many pages as the ring has, so it fits.
        let ring = BackRing::attach(mapping, terms.abi, self.engine.max_indirect())
            .map_err(|error| error.to_string())?;
        let mapped = match terms.persistence {
            Persistence::Persistent if max_mapped > 0 => Some(Persistent::new(max_mapped)),
            _ => None,
        };
        match platform.bind_interdomain(peer, keys.port) {
            Ok(port) => Ok(Queue::new(ring, port, peer, mapped)),
            Err(error) => {
                unmap(platform, alloc::vec![ring.into_memory()]);
                Err(format!("cannot bind {} {}: {error}", keys::EVENT_CHANNEL, keys.port))
            }
        }
    }

    /// Whether there are requests whose answers are to come before a vbd's rings are let go. They have
    /// some time for that.
    pub(crate) fn awaits_answers(&mut self, platform: &P, key: VbdKey) -> bool {
        let now = platform.now();
        let Some(vbd) = self.vbds.get_mut(&key) else { return false };
        let is_busy = |ring: &Ring<_>| ring.ready || ring.queue.ring.nr_in_flight() > 0;
        if !vbd.handshake.takes_answers() || !vbd.rings.iter().any(is_busy) {
            return false;
        }
        let until = *vbd.answers_until.get_or_insert(now.after(CLOSING_LIMIT));
        self.wake_at(until);
        now < until
    }

    /// Lets a vbd's rings go. Its frontend will not hear of what is in flight: discards, and what a
    /// device works on. A write may still be carried out there, and whoever connects to the disk next
    /// waits for it.
    pub(crate) fn disconnect(&mut self, platform: &mut P, key: VbdKey) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        if vbd.rings.is_empty() {
            return;
        }
        vbd.answers_until = None;
        let stats = vbd.stats();
        let mut entry = vbd.disk().and_then(|disk| self.disks.get_mut(disk));
        for Ring { mut queue, max_mapped, .. } in core::mem::take(&mut vbd.rings) {
            if let Some(entry) = &mut entry {
                queue.abandon(&mut entry.disk, &mut self.pool);
            }
            self.ports.release(queue.port);
            platform.close_port(queue.port);
            match queue.into_mappings() {
                (mappings, Some(lease)) => self.lent.push(Lent { mappings, lease, max_mapped }),
                (mappings, None) => {
                    self.mapped_left += max_mapped;
                    unmap(platform, mappings);
                }
            }
        }
        if let Some(vbd) = self.vbds.get_mut(&key) {
            vbd.say_closed(platform, &stats);
        }
        self.unlink(platform, key);
        self.usage_changed = true;
    }
}

/// What is mapped of a ring that was let go while devices may access some of it. Unmapped, the same
/// frames would be another guest's next.
pub(crate) struct Lent<M> {
    mappings: Vec<M>,
    lease: Lease,
    /// Pages that may stay mapped for other rings when it is unmapped.
    max_mapped: usize,
}

/// How a frontend is connected.
struct Connected<'a>(&'a Terms);

impl fmt::Display for Connected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Terms { abi, ring_order, nr_queues, persistence } = self.0;
        let nr_requests = abi.nr_entries(*ring_order);
        let rings = if *nr_queues == 1 { "ring" } else { "rings" };
        let grants = match persistence {
            Persistence::Persistent => "persistent grants",
            Persistence::PerRequest => "grants a request",
        };
        write!(f, "{}, {nr_queues} {rings} of {nr_requests} requests, {grants}", abi.protocol())
    }
}

/// Unmaps; what Xen keeps is lost, and said.
fn unmap<P: Platform>(platform: &mut P, mut mappings: Vec<P::Mapping>) {
    if let Err(status) = platform.unmap_each(&mut mappings) {
        platform.log(format_args!("a grant stays mapped: {status}"));
    }
}
