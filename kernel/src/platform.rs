//! Xen, as the driver domain sees it.

use alloc::vec::Vec;
use core::fmt;

use blkback::{Grants, MapError};
use domain::{HypercallError, Platform};
use store::FrameAddr;
use xen_abi::{DomId, EvtchnPort, GntStatus, GnttabCopy, GrantRef, Instant};

use crate::console;
use crate::events::Events;
use crate::frames::Frames;
use crate::grants::GrantTable;
use crate::heap;
use crate::hypercall::Hypercalls;
use crate::region::Region;
use crate::time::Clock;

/// Everything that a hypercall stands behind.
pub(crate) struct Xen {
    pub(crate) hypercalls: Hypercalls,
    pub(crate) clock: Clock,
    pub(crate) events: Events,
    pub(crate) grants: GrantTable,
    /// What copies may touch of our own.
    pub(crate) frames: Frames,
    /// The console's port; its events are answered here.
    pub(crate) console_port: EvtchnPort,
}

impl Grants for Xen {
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
}

impl Platform for Xen {
    type Memory = Frames;
    type XenstorePage = Region;

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn bind_interdomain(
        &mut self,
        peer: DomId,
        port: EvtchnPort,
    ) -> Result<EvtchnPort, HypercallError> {
        /// -ENOSPC (`errno.h`).
        const NO_SPACE: HypercallError = HypercallError(-28);
        let local = self.hypercalls.bind_interdomain(peer, port)?;
        if self.events.add(local).is_err() {
            // Xen gives no port past the ABI's last.
            self.close_port(local);
            return Err(NO_SPACE);
        }
        Ok(local)
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
