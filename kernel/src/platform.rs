//! Xen, as the driver domain sees it.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use blkback::{Grants, MapError};
use blkfront::StillInUse;
use domain::{HypercallError, Platform};
use store::FrameAddr;
use xen_abi::{DomId, EvtchnPort, Gfn, GntStatus, GnttabCopy, GrantRef, Instant};

use crate::console;
use crate::events::Events;
use crate::frames::Frames;
use crate::grants::GrantTable;
use crate::heap;
use crate::hypercall::Hypercalls;
use crate::machine::Machine;
use crate::own_grants::OwnGrants;
use crate::region::Region;
use crate::scattered::Scattered;
use crate::time::Clock;

/// Everything that a hypercall stands behind.
pub(crate) struct Xen<M> {
    pub(crate) hypercalls: Hypercalls,
    pub(crate) clock: Clock,
    pub(crate) events: Events,
    /// What is mapped of peers'.
    pub(crate) grants: GrantTable,
    /// What peers may map of ours.
    pub(crate) own_grants: OwnGrants,
    /// What copies may touch of our own.
    pub(crate) frames: Frames,
    /// The console's port; its events are answered here.
    pub(crate) console_port: EvtchnPort,
    /// Whether devices of ours reach what is mapped.
    pub(crate) devices_reach_grants: bool,
    /// What kind of domain it is.
    pub(crate) machine: PhantomData<M>,
}

impl<M: Machine> Xen<M> {
    /// Our frames, one behind the other, as memory that a peer or a device can write.
    ///
    /// # Panics
    /// Where one of `frames` is none of the pool's.
    pub(crate) fn scattered(&self, frames: &[Gfn]) -> Scattered {
        let page = |&frame| {
            assert!(self.frames.contain(frame, 1), "frame {frame} is not the pool's");
            // SAFETY: RAM that is mapped for good, and no Rust object lies in it.
            unsafe { Region::new(frame, 1) }
        };
        Scattered::new(frames.iter().filter_map(page).collect())
    }

    /// Waits for a port of ours that was just opened.
    pub(crate) fn listen(&mut self, port: EvtchnPort) -> Result<EvtchnPort, HypercallError> {
        /// -ENOSPC (`errno.h`).
        const NO_SPACE: HypercallError = HypercallError(-28);
        if self.events.add(port).is_err() {
            // Xen gives no port past the ABI's last.
            self.close_port(port);
            return Err(NO_SPACE);
        }
        Ok(port)
    }
}

impl<M: Machine> Grants for Xen<M> {
    type Mapping = Region;

    fn map(&mut self, peer: DomId, grefs: &[GrantRef]) -> Result<Region, MapError> {
        self.grants.map(peer, grefs)
    }

    fn unmap(&mut self, mapping: Region) -> Result<(), GntStatus> {
        self.grants.unmap(mapping)
    }

    fn map_each(
        &mut self,
        peer: DomId,
        grefs: &[GrantRef],
        mapped: impl FnMut(GrantRef, Result<Region, GntStatus>),
    ) {
        self.grants.map_each(peer, grefs, mapped);
    }

    fn unmap_each(&mut self, mappings: &mut Vec<Region>) -> Result<(), GntStatus> {
        self.grants.unmap_each(mappings)
    }

    fn frame(&self, mapping: &Region) -> Option<Gfn> {
        self.devices_reach_grants.then(|| mapping.first())
    }

    #[inline]
    fn copy_in(&mut self, from: &Region, offset: u16, to: FrameAddr, len_bytes: u16) {
        self.frames.copy_in(from, offset.into(), to, len_bytes.into());
    }

    #[inline]
    fn copy_out(&mut self, from: FrameAddr, to: &Region, offset: u16, len_bytes: u16) {
        self.frames.copy_out(from, to, offset.into(), len_bytes.into());
    }

    fn copy(&mut self, copies: &mut [GnttabCopy]) {
        self.grants.copy(&self.frames, copies);
    }

    fn notify(&mut self, port: EvtchnPort) {
        let _ = self.hypercalls.send(port);
    }

    fn notify_with_wait(&mut self, port: EvtchnPort) {
        self.events.notify_with_wait(port);
    }
}

impl<M: Machine> blkfront::GrantTable for Xen<M> {
    type Memory = Scattered;

    fn memory(&mut self, frames: &[Gfn]) -> Scattered {
        self.scattered(frames)
    }

    fn nr_free(&self) -> usize {
        self.own_grants.nr_free()
    }

    fn grant(&mut self, to: DomId, frame: Gfn) -> Option<GrantRef> {
        // Who may write a frame of ours can write all that Rust has there.
        assert!(self.frames.contain(frame, 1), "frame {frame} is not the pool's");
        self.own_grants.grant(to, frame)
    }

    fn end_access(&mut self, gref: GrantRef) -> Result<(), StillInUse> {
        self.own_grants.end_access(gref)
    }
}

impl<M: Machine> Platform for Xen<M> {
    type Memory = Frames;
    type XenstorePage = Region;
    type GrantTable = Self;
    type Namespace = M::Namespace;

    fn grant_table(&mut self) -> &mut Self {
        self
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn bind_interdomain(
        &mut self,
        peer: DomId,
        port: EvtchnPort,
    ) -> Result<EvtchnPort, HypercallError> {
        let local = self.hypercalls.bind_interdomain(peer, port)?;
        self.listen(local)
    }

    fn alloc_unbound(&mut self, peer: DomId) -> Result<EvtchnPort, HypercallError> {
        let local = self.hypercalls.alloc_unbound(peer)?;
        self.listen(local)
    }

    fn close_port(&mut self, port: EvtchnPort) {
        // It fails for a port that is not open: nothing is left to do.
        let _ = self.events.close(port);
    }

    fn take_event(&mut self) -> Option<EvtchnPort> {
        loop {
            let port = self.events.take()?;
            if port != self.console_port {
                return Some(port);
            }
            console::on_event();
        }
    }

    fn nr_handles(&self) -> usize {
        self.grants.nr_mapped()
    }

    fn nr_ports(&self) -> usize {
        self.events.nr_ports()
    }

    fn heap_peak_bytes(&self) -> usize {
        heap::peak_bytes()
    }

    fn log(&mut self, line: fmt::Arguments<'_>) {
        console::line(line);
    }
}
