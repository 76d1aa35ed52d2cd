//! An upstream disk's ring and frames: granted, connected, let go.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use blkfront::{Disk, Event, Frontend, GrantTable, Ring, offered_ring_order};
use blkif::RingOrder;
use catalog::{Ground, VirtualDevice};
use store::{Device, Flushing, Geometry, PagePool, Tag, Want};
use xen_abi::Gfn;

use super::{RECLAIM_INTERVAL, Upstream};
use crate::domain::Domain;
use crate::platform::Platform;
use crate::ports::PortUser;

/// The largest ring that we grant: 256 requests, of which a queue of one of our own frontends keeps 64
/// in flight at most.
const MAX_RING_ORDER: u32 = 3;

/// Pages of the pool that carry a disk's data where the command line does not say how many: an eighth
/// of the pool, but room for a request of 1 MiB with its segments, and for no more than four.
fn nr_data_pages(nr_pool_pages: u64) -> u64 {
    (nr_pool_pages / 8).clamp(264, 1024)
}

impl<P: Platform> Domain<P> {
    /// Grants a ring as large as the backend offers, and takes the frames for data, so that what is
    /// announced can also be used.
    pub(super) fn announce(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
        offered: Option<&[u8]>,
    ) {
        self.reclaim_upstream(platform, device);
        match self.grant_ring(platform, device, offered) {
            Ok(ring) => {
                let nodes = ring.announcement();
                if let Some(upstream) = self.upstreams.get_mut(device) {
                    upstream.ring = Some(ring);
                }
                self.usage_changed = true;
                self.write_announcement(platform, device, nodes);
            }
            Err(reason) => {
                let Some(upstream) = self.upstreams.get_mut(device) else { return };
                upstream.say(platform, format_args!("no ring: {reason}"));
                upstream.handle(Event::NotAnnounced);
                self.let_go_upstream(platform, device);
            }
        }
    }

    fn grant_ring(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
        offered: Option<&[u8]>,
    ) -> Result<Ring<super::Granted<P>>, String> {
        let text = |error: &dyn fmt::Display| alloc::format!("{error}");
        let gone = || "there is no backend".into();
        let Some(upstream) = self.upstreams.get_mut(device) else { return Err(gone()) };
        let Some(domid) = upstream.peer.as_ref().map(|peer| peer.domid) else { return Err(gone()) };
        let offered = offered_ring_order(offered).map_err(|error| text(&error))?;
        let nr_ring = offered.get().min(MAX_RING_ORDER);
        let nr_ring = RingOrder::new(nr_ring).map_or(1, RingOrder::nr_pages);
        let nr_data = match self.settings.nr_upstream_pages {
            Some(nr) => nr.into(),
            None => nr_data_pages(self.pool.nr_total()),
        };
        // What a backend keeps is lost: it gets as much once more, and no third time.
        let nr_kept = upstream.retired.nr_frames();
        if nr_kept as u64 > nr_data {
            return Err(alloc::format!("{nr_kept} pages are still mapped by a backend"));
        }
        let ring = take_frames(&mut self.pool, nr_ring.into()).map_err(|error| text(&error))?;
        match take_frames(&mut self.pool, nr_data) {
            Ok(frames) => upstream.frames = frames,
            Err(error) => {
                give_frames(&mut self.pool, ring);
                return Err(text(&error));
            }
        }
        let port = match platform.alloc_unbound(domid) {
            Ok(port) => port,
            Err(error) => {
                give_frames(&mut self.pool, ring);
                return Err(text(&error));
            }
        };
        upstream.port = Some(port);
        let (grants, retired) = (platform.grant_table(), &mut upstream.retired);
        Ring::grant(&ring, domid, port, grants, retired).map_err(|error| text(&error))
    }

    /// The backend is connected: what it says of its disk is checked, and the disk is there.
    pub(super) fn connect_upstream(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
        values: [Option<&[u8]>; Disk::KEYS.len()],
    ) {
        let is_used = self.disks.on(Ground::Vbd(device)).next().is_some();
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        let shared = upstream.shared.borrow();
        let was = shared.geometry().filter(|_| is_used).map(|was| (was, shared.flushing()));
        drop(shared);
        match upstream.connect(platform, values, was) {
            Ok(disk) => {
                let access = match disk.access {
                    store::Access::ReadOnly => ", read-only",
                    store::Access::ReadWrite => "",
                };
                let text = format_args!("connected, {} sectors{access}", disk.nr_sectors);
                upstream.say(platform, text);
                upstream.missing_at = None;
                upstream.handle(Event::Connected);
                if let Some(port) = upstream.port {
                    self.ports.assign(port, PortUser::Upstream(device));
                }
                self.upstream_came(platform, device);
            }
            Err(reason) => {
                upstream.say(platform, format_args!("cannot connect: {reason}"));
                upstream.handle(Event::NotConnected);
            }
        }
    }

    /// The backend may have another size now.
    pub(super) fn resize_upstream(
        &mut self,
        platform: &mut P,
        device: VirtualDevice,
        sectors: Option<&[u8]>,
    ) {
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        let mut shared = upstream.shared.borrow_mut();
        let Some(frontend) = shared.device() else { return };
        let was = frontend.disk().nr_sectors;
        match frontend.disk().parse_sectors(sectors) {
            Ok(nr_sectors) if nr_sectors == was => {}
            Ok(nr_sectors) => {
                frontend.resize(nr_sectors);
                drop(shared);
                upstream.say(platform, format_args!("resized to {nr_sectors} sectors"));
                self.upstream_resized(platform, device);
            }
            Err(error) => {
                drop(shared);
                upstream.say(platform, format_args!("{error}"));
            }
        }
    }

    /// Takes no new requests. What is in flight goes on, and who asked is told how it went, which is
    /// seen at the end of a step.
    pub(super) fn drain_upstream(&mut self, device: VirtualDevice) {
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        upstream.shared.borrow_mut().refuse();
        upstream.draining = true;
    }

    /// Nothing is in flight any more. A flush is the last, since what was acknowledged may not be
    /// durable.
    pub(super) fn flush_upstream(&mut self, platform: &mut P, device: VirtualDevice) {
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        upstream.leave();
        if let Some(frontend) = &mut upstream.leaving {
            if frontend.flushing() == Flushing::Offered {
                // The ring is empty: it is refused where that is broken, which is seen as well.
                let _ = Device::submit(frontend, Tag(u64::MAX), store::Request::Flush);
            }
            if let Some(port) = frontend.publish() {
                platform.notify(port);
            }
        }
        // The answers are taken at the end of the step.
        self.upstream_went(platform, device);
    }

    /// Nobody answers any more.
    pub(super) fn abandon_upstream(&mut self, platform: &mut P, device: VirtualDevice) {
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        upstream.draining = false;
        upstream.leave();
        if let Some(frontend) = &mut upstream.leaving {
            frontend.abandon();
            while Device::complete(frontend).is_some() {}
        }
        self.upstream_went(platform, device);
    }

    /// Takes back what is granted, as far as the backend lets go of it, and closes the port.
    pub(super) fn let_go_upstream(&mut self, platform: &mut P, device: VirtualDevice) {
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        upstream.leave();
        upstream.draining = false;
        if let Some(frontend) = upstream.leaving.take() {
            frontend.retire(&mut upstream.retired);
        }
        if let Some(ring) = upstream.ring.take() {
            ring.retire(&mut upstream.retired);
        }
        give_frames(&mut self.pool, core::mem::take(&mut upstream.frames));
        if let Some(port) = upstream.port.take() {
            platform.close_port(port);
            self.ports.release(port);
        }
        self.usage_changed = true;
        self.reclaim_upstream(platform, device);
    }

    /// Gives frames back to the pool that the backend has let go of. What it keeps is lost until it
    /// does, and asked for again now and then.
    pub(super) fn reclaim_upstream(&mut self, platform: &mut P, device: VirtualDevice) {
        let at = platform.now().after(RECLAIM_INTERVAL);
        let Some(upstream) = self.upstreams.get_mut(device) else { return };
        let was = upstream.retired.nr_frames();
        let pool = &mut self.pool;
        let left = upstream.retired.reclaim(platform.grant_table(), |frame| pool.release(frame));
        if left > 0 && upstream.reclaim_at.is_none() {
            upstream.say(platform, format_args!("{left} pages are still mapped by its backend"));
        }
        upstream.reclaim_at = (left > 0).then_some(at);
        if left > 0 {
            self.wake_at(at);
        }
        self.usage_changed |= left != was;
    }
}

impl<M: xen_abi::SharedMemory> Upstream<M> {
    /// Has the disk described, and connects it.
    fn connect<P>(
        &mut self,
        platform: &mut P,
        values: [Option<&[u8]>; Disk::KEYS.len()],
        was: Option<(Geometry, Flushing)>,
    ) -> Result<Disk, String>
    where
        P: Platform<GrantTable: GrantTable<Memory = M>>,
    {
        let disk = Disk::parse(values).map_err(|error| alloc::format!("{error}"))?;
        let (Some(ring), Some(peer)) = (self.ring.take(), &self.peer) else {
            return Err("there is no ring".into());
        };
        let frames = core::mem::take(&mut self.frames);
        let (grants, retired) = (platform.grant_table(), &mut self.retired);
        let frontend = Frontend::connect(ring, disk, &frames, peer.domid, grants, retired)
            .map_err(|error| alloc::format!("{error}"))?;
        let is = (frontend.geometry(), frontend.flushing());
        if was.is_some_and(|was| !can_follow(was, is)) {
            frontend.retire(retired);
            return Err("it is not the disk that it was, and disks are made of it".into());
        }
        self.shared.borrow_mut().connect(frontend);
        Ok(disk)
    }

    /// Has the disks on it know that it is gone.
    fn leave(&mut self) {
        if let Some(frontend) = self.shared.borrow_mut().disconnect() {
            self.leaving = Some(frontend);
        }
    }
}

/// Whether a disk that is connected again serves those who knew it before: frontends were told of it,
/// also whether they have to flush, and overlays are made of its blocks. It may have become larger.
fn can_follow(was: (Geometry, Flushing), (is, flushing): (Geometry, Flushing)) -> bool {
    let nr_sectors = was.0.nr_sectors;
    (Geometry { nr_sectors, ..is }, flushing) == was && is.nr_sectors >= nr_sectors
}

/// Takes frames out of the pool: all or none.
fn take_frames<M: store::FrameMemory>(
    pool: &mut PagePool<M>,
    nr: u64,
) -> Result<Vec<Gfn>, store::StoreError> {
    let mut frames = Vec::new();
    while (frames.len() as u64) < nr {
        match pool.take(Want::More) {
            Ok(frame) => frames.push(frame),
            Err(error) => {
                give_frames(pool, frames);
                return Err(error);
            }
        }
    }
    Ok(frames)
}

fn give_frames<M: store::FrameMemory>(pool: &mut PagePool<M>, frames: Vec<Gfn>) {
    frames.into_iter().for_each(|frame| pool.release(frame));
}
