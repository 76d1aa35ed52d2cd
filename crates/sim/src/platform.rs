//! The driver domain's view of the host: the seams of `blkback` and `domain`.

use std::fmt;

use blkback::{Grants, MapError};
use domain::{HypercallError, Platform, Resources};
use store::{FrameAddr, FrameMemory};
use xen_abi::{
    CopyFlags, CopyPtr, DomId, EvtchnPort, Gfn, GntStatus, GnttabCopy, GrantHandle, GrantRef,
    Instant, PAGE_SIZE, SharedMemory,
};

use crate::{GrantAccess, Iommu, Machine, OwnDevice, OwnFrames, OwnGrants, Page, Region};

/// A platform for one driver domain of a [`Machine`].
#[derive(Debug)]
pub struct SimPlatform {
    machine: Machine,
    domid: DomId,
    frames: OwnFrames,
    xenstore: Region,
    xenstore_port: EvtchnPort,
    nr_mapped_pages: usize,
    own_grants: OwnGrants,
    /// What its lines on the host's one console begin with.
    pub console_prefix: String,
    /// How many pages of peers fit our address space at once.
    pub map_space_pages: usize,
    /// Whether devices reach what is mapped (`XEN_HVM_CPUID_IOMMU_MAPPINGS`), and by what.
    pub iommu: Option<Iommu>,
}

/// A mapping that was dropped without an unmap keeps its handles: the count of them tells.
#[derive(Debug)]
pub struct SimMapping {
    region: Region,
    handles: Vec<GrantHandle>,
    /// Where devices reach it, if it is a page.
    frame: Option<Gfn>,
}

impl SimPlatform {
    /// The platform of `domid`, which has the frames `runs` (first frame, number of frames).
    #[must_use]
    pub fn new(machine: &Machine, domid: DomId, runs: &[(Gfn, u64)]) -> Self {
        let (page, xenstore_port) = machine.connect_xenstore(domid);
        let frames = OwnFrames::new(runs);
        Self {
            machine: machine.clone(),
            domid,
            own_grants: OwnGrants::of(machine, domid, frames.clone()),
            frames,
            xenstore: Region::mapped(vec![page]),
            xenstore_port,
            nr_mapped_pages: 0,
            console_prefix: String::new(),
            map_space_pages: usize::MAX,
            iommu: None,
        }
    }

    /// What the domain starts with.
    #[must_use]
    pub fn resources<'a>(
        &self,
        free_frames: &'a [(Gfn, u64)],
        command_line: &'a [u8],
    ) -> Resources<'a, Self> {
        Resources {
            memory: self.frames.clone(),
            free_frames,
            modules: &[],
            xenstore: self.xenstore.clone(),
            xenstore_port: self.xenstore_port,
            namespaces: Vec::new(),
            command_line,
        }
    }

    /// The domain's own memory.
    #[must_use]
    pub fn frames(&self) -> &OwnFrames {
        &self.frames
    }

    /// The domain's own grant table.
    #[must_use]
    pub const fn own_grants(&mut self) -> &mut OwnGrants {
        &mut self.own_grants
    }

    /// The domain itself.
    #[must_use]
    pub const fn domid(&self) -> DomId {
        self.domid
    }

    fn unmap_one(&mut self, mapping: SimMapping) -> Result<(), GntStatus> {
        let mut result = Ok(());
        for handle in mapping.handles {
            match self.machine.grants().unmap(self.domid, handle) {
                Ok(()) => self.nr_mapped_pages -= 1,
                Err(status) => result = result.and(Err(status)),
            }
        }
        if let (Some(iommu), Some(frame), Ok(())) = (&self.iommu, mapping.frame, result) {
            iommu.unmap(frame);
        }
        result
    }

    /// `gnttab_copy_lock_domain()`.
    fn lock_domain(&self, ptr: &CopyPtr, is_gref: bool) -> Result<(), GntStatus> {
        if ptr.domid == DomId::SELF {
            Ok(())
        } else if !is_gref {
            Err(GntStatus::PERMISSION_DENIED)
        } else if self.machine.has_domain(ptr.domid) {
            Ok(())
        } else {
            Err(GntStatus::BAD_DOMAIN)
        }
    }

    /// `gnttab_copy_claim_buf()`.
    fn claim(&self, ptr: &CopyPtr, is_gref: bool, access: GrantAccess) -> Result<End, GntStatus> {
        if is_gref {
            let peer = if ptr.domid == DomId::SELF { self.domid } else { ptr.domid };
            let page = self.machine.grants().for_copy(self.domid, peer, ptr.gref(), access)?;
            Ok(End::Granted(page))
        } else if self.frames.holds(ptr.gfn()) {
            Ok(End::Own(ptr.gfn()))
        } else {
            Err(GntStatus::BAD_PAGE)
        }
    }

    /// `gnttab_copy_one()`.
    fn copy_one(&mut self, op: &GnttabCopy) -> Result<(), GntStatus> {
        let len = usize::from(op.len_bytes);
        if len == 0 {
            return Ok(());
        }
        let source_is_gref = op.flags.contains(CopyFlags::SOURCE_GREF);
        let dest_is_gref = op.flags.contains(CopyFlags::DEST_GREF);
        self.lock_domain(&op.source, source_is_gref)?;
        self.lock_domain(&op.dest, dest_is_gref)?;
        let source = self.claim(&op.source, source_is_gref, GrantAccess::ReadOnly)?;
        let dest = self.claim(&op.dest, dest_is_gref, GrantAccess::ReadWrite)?;
        let (from, to) = (usize::from(op.source.offset), usize::from(op.dest.offset));
        if from + len > PAGE_SIZE || to + len > PAGE_SIZE {
            return Err(GntStatus::BAD_COPY_ARG);
        }
        let mut bytes = [0; PAGE_SIZE];
        let bytes = &mut bytes[..len];
        match source {
            End::Granted(page) => page.peer_read(from, bytes),
            End::Own(gfn) => {
                self.frames.read(FrameAddr::new(gfn, op.source.offset), bytes);
            }
        }
        match dest {
            End::Granted(page) => page.peer_write(to, bytes),
            End::Own(gfn) => {
                self.frames.write(FrameAddr::new(gfn, op.dest.offset), bytes);
            }
        }
        Ok(())
    }
}

enum End {
    Granted(Page),
    Own(Gfn),
}

impl SharedMemory for SimMapping {
    fn len_bytes(&self) -> usize {
        self.region.len_bytes()
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.region.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        self.region.store_u32(offset, value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.region.read(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.region.write(offset, from);
    }
}

impl Grants for SimPlatform {
    type Mapping = SimMapping;

    fn map(&mut self, peer: DomId, grefs: &[GrantRef]) -> Result<SimMapping, MapError> {
        if let Some(&first) = grefs.first()
            && grefs.len() > self.map_space_pages.saturating_sub(self.nr_mapped_pages)
        {
            return Err(MapError { gref: first, status: GntStatus::NO_SPACE });
        }
        self.machine.count(|counters| {
            counters.map_calls += 1;
            counters.maps += grefs.len() as u64;
        });
        let mut failed = None;
        let mut mapped = Vec::new();
        for &gref in grefs {
            // Xen goes on behind one that fails.
            let mut grants = self.machine.grants();
            match grants.map(self.domid, peer, gref, GrantAccess::ReadWrite) {
                Ok(page) => mapped.push(page),
                Err(status) => failed = failed.or(Some(MapError { gref, status })),
            }
        }
        let (handles, pages): (Vec<_>, Vec<_>) = mapped.into_iter().unzip();
        self.nr_mapped_pages += pages.len();
        let mapping = SimMapping { region: Region::mapped(pages), handles, frame: None };
        match failed {
            None => Ok(mapping),
            Some(error) => {
                let _ = self.unmap(mapping);
                Err(error)
            }
        }
    }

    fn unmap(&mut self, mapping: SimMapping) -> Result<(), GntStatus> {
        self.machine.count(|counters| counters.unmap_calls += 1);
        self.unmap_one(mapping)
    }

    fn map_each(
        &mut self,
        peer: DomId,
        grefs: &[GrantRef],
        mut mapped: impl FnMut(GrantRef, Result<SimMapping, GntStatus>),
    ) {
        self.machine.count(|counters| {
            counters.map_calls += 1;
            counters.maps += grefs.len() as u64;
        });
        for &gref in grefs {
            if self.nr_mapped_pages == self.map_space_pages {
                mapped(gref, Err(GntStatus::NO_SPACE));
                continue;
            }
            let page = self.machine.grants().map(self.domid, peer, gref, GrantAccess::ReadWrite);
            mapped(
                gref,
                page.map(|(handle, page)| {
                    self.nr_mapped_pages += 1;
                    let frame = self.iommu.as_ref().map(|iommu| iommu.map(page.clone()));
                    SimMapping { region: Region::mapped(vec![page]), handles: vec![handle], frame }
                }),
            );
        }
    }

    fn unmap_each(&mut self, mappings: &mut Vec<SimMapping>) -> Result<(), GntStatus> {
        self.machine.count(|counters| counters.unmap_calls += 1);
        let mut result = Ok(());
        for mapping in mappings.drain(..) {
            result = result.and(self.unmap_one(mapping));
        }
        result
    }

    fn frame(&self, mapping: &SimMapping) -> Option<Gfn> {
        mapping.frame
    }

    fn copy_in(&mut self, from: &SimMapping, offset: u16, to: FrameAddr, len_bytes: u16) {
        self.machine.count(|counters| counters.mapped_copies += 1);
        let mut bytes = vec![0; len_bytes.into()];
        from.region.read(offset.into(), &mut bytes);
        self.frames.write(to, &bytes);
    }

    fn copy_out(&mut self, from: FrameAddr, to: &SimMapping, offset: u16, len_bytes: u16) {
        self.machine.count(|counters| counters.mapped_copies += 1);
        let mut bytes = vec![0; len_bytes.into()];
        self.frames.read(from, &mut bytes);
        to.region.write(offset.into(), &bytes);
    }

    fn copy(&mut self, copies: &mut [GnttabCopy]) {
        self.machine.count(|counters| {
            counters.copy_calls += 1;
            counters.copies += copies.len() as u64;
        });
        for op in copies {
            let struck = self.machine.grants().copy_faults.strike();
            let done = struck.map_or_else(|| self.copy_one(op), Err);
            op.status = done.err().unwrap_or(GntStatus::OKAY);
        }
    }

    fn notify(&mut self, port: EvtchnPort) {
        self.machine.count(|counters| counters.sends += 1);
        let _ = self.machine.events().send(self.domid, port);
    }

    fn notify_with_wait(&mut self, port: EvtchnPort) {
        self.machine.count(|counters| counters.sends_with_wait += 1);
        self.notify(port);
    }
}

impl Platform for SimPlatform {
    type Memory = OwnFrames;
    type XenstorePage = Region;
    type Namespace = OwnDevice;
    type GrantTable = OwnGrants;

    fn grant_table(&mut self) -> &mut OwnGrants {
        &mut self.own_grants
    }

    fn now(&self) -> Instant {
        self.machine.now()
    }

    fn bind_interdomain(
        &mut self,
        peer: DomId,
        port: EvtchnPort,
    ) -> Result<EvtchnPort, HypercallError> {
        self.machine.events().bind_interdomain(self.domid, peer, port)
    }

    fn alloc_unbound(&mut self, peer: DomId) -> Result<EvtchnPort, HypercallError> {
        self.machine.events().alloc_unbound(self.domid, peer)
    }

    fn close_port(&mut self, port: EvtchnPort) {
        let closed = self.machine.events().close(self.domid, port);
        closed.unwrap_or_else(|error| panic!("{:?} closed {port:?}: {error}", self.domid));
    }

    fn take_event(&mut self) -> Option<EvtchnPort> {
        self.machine.events().take(self.domid, &mut self.machine.rng())
    }

    fn nr_handles(&self) -> usize {
        self.machine.grants().nr_handles(self.domid)
    }

    fn nr_ports(&self) -> usize {
        self.machine.events().nr_ports(self.domid)
    }

    fn heap_peak_bytes(&self) -> usize {
        0
    }

    fn log(&mut self, line: fmt::Arguments<'_>) {
        self.machine.say(format!("{}{line}", self.console_prefix));
    }
}
