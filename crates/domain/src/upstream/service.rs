//! What an upstream disk's events and its time come to.

use alloc::vec::Vec;

use blkfront::Event;
use catalog::{Ground, VirtualDevice};
use xen_abi::Instant;

use crate::disks::DiskId;
use crate::domain::Domain;
use crate::platform::Platform;
use crate::vbd::{Opening, VbdKey};

impl<P: Platform> Domain<P> {
    /// Takes what upstream disks have answered and has those look again who wait for it, then sends
    /// what was submitted: after each turn, so that what a turn asks for takes one event.
    pub(crate) fn pump_upstreams(&mut self, platform: &mut P) {
        for at in 0..self.upstreams.0.len() {
            if let Some(upstream) = self.upstreams.0.get(at).filter(|up| up.port.is_some()) {
                self.pump_upstream(platform, upstream.device);
            }
        }
        // Those of one controller share its buffers: what one lets go of, or does not wait for any more,
        // another may wait for.
        let nr = self.namespaces.len();
        let mut nr_left = nr * nr.min(2);
        for at in (0..nr).cycle() {
            if nr_left == 0 {
                break;
            }
            nr_left -= 1;
            let (namespace, shared) = &self.namespaces[at];
            let (ground, mut shared) = (Ground::Namespace(*namespace), shared.borrow_mut());
            let (has_news, has_settled) = (shared.pump(), shared.take_settled());
            drop(shared);
            if has_news {
                nr_left = nr_left.max(nr - 1);
                self.ready_upstream(ground);
            }
            if has_settled {
                self.hand_over_settled(platform, ground);
            }
        }
    }

    fn pump_upstream(&mut self, platform: &mut P, device: VirtualDevice) {
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        if let Some(frontend) = &mut upstream.leaving {
            while store::Device::complete(frontend).is_some() {}
            // What had to wait for slots.
            if let Some(port) = frontend.publish() {
                platform.notify(port);
            }
            if !upstream.draining {
                return;
            }
            let broken = frontend.broken();
            if broken.is_none() && frontend.nr_in_flight() > 0 {
                return;
            }
            upstream.draining = false;
            if let Some(broken) = broken {
                upstream.say(platform, format_args!("{broken}"));
            }
            upstream.handle(broken.map_or(Event::Drained, |_| Event::Broken));
            self.proceed_upstream(platform, device);
            return;
        }
        let mut shared = upstream.shared.borrow_mut();
        let (has_news, has_settled) = (shared.pump(), shared.take_settled());
        let mut broken = None;
        if let Some(frontend) = shared.device() {
            if let Some(port) = frontend.publish() {
                platform.notify(port);
            }
            broken = frontend.broken();
        }
        let is_over = upstream.draining && shared.nr_open() == 0;
        drop(shared);
        if let Some(broken) = broken.filter(|_| upstream.is_connected() || upstream.draining) {
            upstream.say(platform, format_args!("{broken}"));
            upstream.handle(Event::Broken);
            self.proceed_upstream(platform, device);
        } else if is_over {
            self.flush_upstream(platform, device);
        } else if has_news {
            self.ready_upstream(Ground::Vbd(device));
        }
        if has_settled {
            self.hand_over_settled(platform, Ground::Vbd(device));
        }
    }

    /// Tells those that wait for writes of before on a device to try again.
    fn hand_over_settled(&mut self, platform: &mut P, device: Ground) {
        let disks: Vec<DiskId> = self.disks.on(device).collect();
        for id in disks {
            if self.disks.get(id).is_some_and(|entry| entry.disk.is_settled()) {
                self.hand_over(platform, id);
            }
        }
    }

    /// Has every ring look again that waits for a device, those of another vbd first each time: what has
    /// become free may be enough for one alone. On the way of a request: nothing is allocated.
    fn ready_upstream(&mut self, device: Ground) {
        let nr = self.vbds.len();
        self.first_ready = self.first_ready.wrapping_add(1);
        for n in 0..nr {
            let at = self.first_ready.wrapping_add(n) % nr;
            let Some(vbd) = self.vbds.nth(at).filter(|vbd| self.is_on(vbd.disk(), device)) else {
                continue;
            };
            let (key, nr_rings) = (vbd.id.key, vbd.rings.len());
            for ring in 0..nr_rings {
                let vbd = self.vbds.nth(at);
                if vbd.is_some_and(|vbd| vbd.rings[ring].queue.nr_in_flight() > 0) {
                    self.ready(key, ring);
                }
            }
        }
    }

    /// The vbds of the disks on a device.
    fn vbds_on(&self, device: VirtualDevice) -> Vec<VbdKey> {
        let on_it = self.vbds.iter().filter(|vbd| self.is_on(vbd.disk(), Ground::Vbd(device)));
        on_it.map(|vbd| vbd.id.key).collect()
    }

    fn is_on(&self, disk: Option<DiskId>, device: Ground) -> bool {
        let extent = disk.and_then(|disk| self.disks.get(disk)?.extent);
        extent.is_some_and(|extent| extent.device == device)
    }

    /// The disk is there: those made of it that are not yet, and those that wait for it.
    pub(super) fn upstream_came(&mut self, platform: &mut P, device: VirtualDevice) {
        self.make_defined(platform, device);
        let disks: Vec<DiskId> = self.disks.on(Ground::Vbd(device)).collect();
        for id in disks {
            self.hand_over(platform, id);
        }
        self.upstream_resized(platform, device);
        let waiting: Vec<VbdKey> = self
            .vbds
            .iter()
            .filter(|vbd| vbd.opening != Opening::AtOnce)
            .map(|vbd| vbd.id.key)
            .collect();
        for key in waiting {
            self.look(platform, key);
        }
        self.usage_changed = true;
    }

    /// The size of the disk may have changed.
    pub(super) fn upstream_resized(&mut self, platform: &mut P, device: VirtualDevice) {
        for key in self.vbds_on(device) {
            self.correct_size(platform, key);
        }
    }

    /// The disk is gone: the vbds on it close, and what they have in flight or ask meanwhile fails.
    pub(super) fn upstream_went(&mut self, platform: &mut P, device: VirtualDevice) {
        for key in self.vbds_on(device) {
            let Some(vbd) = self.vbds.get_mut(&key) else { continue };
            if vbd.handshake.is_connected() {
                self.complain(platform, key, format_args!("upstream {device} is gone"));
            }
            if let Some(vbd) = self.vbds.get_mut(&key) {
                vbd.handle(blkback::Event::Withdrawn);
            }
            self.proceed(platform, key);
        }
        self.ready_upstream(Ground::Vbd(device));
        self.usage_changed = true;
    }

    /// When something of an upstream disk is due.
    pub(crate) fn upstream_deadline(&self) -> Option<Instant> {
        let mut earliest: Option<Instant> = None;
        for upstream in self.upstreams.iter() {
            for at in [upstream.closing_until, upstream.missing_at, upstream.reclaim_at] {
                earliest = at.map(|at| earliest.map_or(at, |other| other.min(at))).or(earliest);
            }
        }
        earliest
    }

    /// Goes on with what found no room in xenstore's queue.
    pub(crate) fn proceed_upstreams(&mut self, platform: &mut P) {
        for device in self.upstreams.devices() {
            self.proceed_upstream(platform, device);
        }
    }

    /// Does what is due.
    pub(crate) fn fire_upstream_timers(&mut self, platform: &mut P, now: Instant) {
        for device in self.upstreams.devices() {
            let Some(upstream) = self.upstreams.get_mut(device) else { continue };
            if upstream.missing_at.is_some_and(|at| at <= now) {
                upstream.missing_at = None;
                let state = upstream.describe_state();
                platform.log(format_args!("{upstream} is not connected: {state}"));
            }
            if upstream.closing_until.is_some_and(|at| at <= now) {
                upstream.closing_until = None;
                upstream.say(platform, format_args!("its backend is not waited for any more"));
                upstream.handle(Event::TimedOut);
                self.proceed_upstream(platform, device);
            }
            let Some(upstream) = self.upstreams.get(device) else { continue };
            if upstream.reclaim_at.is_some_and(|at| at <= now) {
                self.reclaim_upstream(platform, device);
            }
        }
    }

    /// Has all upstream disks closed: what was written to them is made durable first.
    pub(crate) fn close_upstreams(&mut self, platform: &mut P) {
        for device in self.upstreams.devices() {
            if let Some(upstream) = self.upstreams.get_mut(device) {
                upstream.handle(Event::Close);
            }
            self.proceed_upstream(platform, device);
        }
    }

    /// Whether no upstream disk is waited for at the end.
    pub(crate) fn has_closed_upstreams(&self) -> bool {
        self.upstreams.iter().all(super::Upstream::is_closed)
    }
}
