//! Mapping and copying grants.

use alloc::vec::Vec;
use core::array;
use core::slice;

use blkback::MapError;
use xen_abi::{
    CopyFlags, DomId, Gfn, GntStatus, GnttabCopy, GnttabMapGrantRef, GnttabUnmapGrantRef,
    GrantHandle, GrantRef, MapFlags, PAGE_SHIFT,
};

use crate::frames::Frames;
use crate::hypercall::Hypercalls;
use crate::region::Region;
use crate::window::Window;

/// Operations a hypercall; they lie on the stack.
const BATCH: usize = 32;

/// How often an operation is repeated that Xen answers `GNTST_eagain` to. The peer's page is being
/// paged in then, which another domain has to run for.
const RETRIES: usize = 100;

/// The domain's mappings of grants.
#[derive(Debug)]
pub(crate) struct GrantTable {
    hypercalls: Hypercalls,
    /// The window's first frame.
    base: Gfn,
    window: Window,
}

impl GrantTable {
    /// # Safety
    /// The `nr_frames` frames from `base` on have no memory of their own, nothing else is mapped
    /// there, and their addresses are identity-mapped.
    pub(crate) const unsafe fn new(hypercalls: Hypercalls, base: Gfn, nr_frames: usize) -> Self {
        Self { hypercalls, base, window: Window::new(nr_frames) }
    }

    /// How many grants are mapped now.
    pub(crate) const fn nr_mapped(&self) -> usize {
        self.window.nr_mapped()
    }

    /// As [`blkback::Grants::map`].
    pub(crate) fn map(&mut self, peer: DomId, grefs: &[GrantRef]) -> Result<Region, MapError> {
        let no_space =
            MapError { gref: *grefs.first().unwrap_or(&GrantRef(0)), status: GntStatus::NO_SPACE };
        let first = self.window.take(grefs.len()).ok_or(no_space)?;
        let mut mapped = Ok(());
        for (index, grefs) in grefs.chunks(BATCH).enumerate() {
            let slots = array::from_fn(|nth| first + index * BATCH + nth);
            let statuses = self.map_batch(peer, grefs, &slots);
            let failed = grefs.iter().zip(statuses).find(|(_, status)| !status.is_okay());
            if let Some((&gref, status)) = failed {
                mapped = Err(MapError { gref, status });
                break;
            }
        }
        match mapped.and(self.region(first, grefs.len()).ok_or(no_space)) {
            Ok(region) => Ok(region),
            Err(error) => {
                // The first error is the one to tell.
                let _ = self.release(first..first + grefs.len());
                Err(error)
            }
        }
    }

    /// As [`blkback::Grants::map_each`].
    pub(crate) fn map_each(
        &mut self,
        peer: DomId,
        grefs: &[GrantRef],
        mut mapped: impl FnMut(GrantRef, Result<Region, GntStatus>),
    ) {
        for grefs in grefs.chunks(BATCH) {
            let mut slots = [0; BATCH];
            let mut nr_taken = 0;
            while nr_taken < grefs.len()
                && let Some(slot) = self.window.take(1)
            {
                slots[nr_taken] = slot;
                nr_taken += 1;
            }
            let statuses = self.map_batch(peer, &grefs[..nr_taken], &slots);
            for (nth, &gref) in grefs.iter().enumerate() {
                let status = if nth < nr_taken { statuses[nth] } else { GntStatus::NO_SPACE };
                let region = status.is_okay().then(|| self.region(slots[nth], 1)).flatten();
                if region.is_none() && nth < nr_taken {
                    self.window.give_back(slots[nth]);
                }
                mapped(gref, region.ok_or(status));
            }
        }
    }

    /// As [`blkback::Grants::unmap`].
    pub(crate) fn unmap(&mut self, region: Region) -> Result<(), GntStatus> {
        let (first, nr_pages) = region.into_pages();
        let first = self.slot(first);
        self.release(first..first + nr_pages)
    }

    /// As [`blkback::Grants::unmap_each`].
    pub(crate) fn unmap_each(&mut self, regions: &mut Vec<Region>) -> Result<(), GntStatus> {
        let base = self.base;
        let slots = regions.drain(..).flat_map(|region| {
            let (first, nr_pages) = region.into_pages();
            let first = slot(base, first);
            first..first + nr_pages
        });
        self.release(slots)
    }

    /// As [`blkback::Grants::copy`].
    ///
    /// # Panics
    /// Where an end that is no grant is none of `frames`.
    pub(crate) fn copy(&self, frames: &Frames, copies: &mut [GnttabCopy]) {
        for copy in &mut *copies {
            let ends = [(copy.source, CopyFlags::SOURCE_GREF), (copy.dest, CopyFlags::DEST_GREF)];
            for (end, gref) in ends {
                let ours = copy.flags.contains(gref) || frames.contain(end.gfn(), 1);
                assert!(ours, "a copy between a grant and {}, no frame of the pool", end.gfn());
            }
            // One that Xen never gets to must not keep an old status.
            copy.status = GntStatus::GENERAL_ERROR;
        }
        // Each op tells its own outcome. SAFETY: they write `frames` alone, which hold no Rust
        // object, as was just checked; Xen refuses one that leaves its frame.
        let _ = unsafe { self.hypercalls.copy_grants(copies) };
        for copy in copies.iter_mut().filter(|copy| copy.status == GntStatus::EAGAIN) {
            self.retry(|| {
                // SAFETY: as above.
                let _ = unsafe { self.hypercalls.copy_grants(slice::from_mut(copy)) };
                copy.status
            });
        }
    }

    /// The pages at `nr` slots from `first` on.
    fn region(&self, first: usize, nr: usize) -> Option<Region> {
        // SAFETY: the window is identity-mapped and holds no Rust object. What is mapped there
        // stays until the region is handed back.
        unsafe { Region::new(self.gfn(first), nr) }
    }

    /// Maps up to [`BATCH`] grants, each at its slot, and says what became of each.
    fn map_batch(
        &mut self,
        peer: DomId,
        grefs: &[GrantRef],
        slots: &[usize; BATCH],
    ) -> [GntStatus; BATCH] {
        let mut ops: [_; BATCH] = array::from_fn(|index| GnttabMapGrantRef {
            host_addr: self.gfn(slots[index]).0 << PAGE_SHIFT,
            flags: MapFlags::HOST_MAP,
            gref: *grefs.get(index).unwrap_or(&GrantRef(0)),
            domid: peer,
            status: GntStatus::GENERAL_ERROR,
            handle: GrantHandle(0),
            dev_bus_addr: 0,
        });
        // Each op tells its own outcome. SAFETY: nothing is mapped at slots that were just taken.
        let _ = unsafe { self.hypercalls.map_grants(&mut ops[..grefs.len()]) };
        let mut statuses = [GntStatus::GENERAL_ERROR; BATCH];
        for (index, op) in ops[..grefs.len()].iter_mut().enumerate() {
            if op.status == GntStatus::EAGAIN {
                self.retry(|| {
                    // SAFETY: as above.
                    let _ = unsafe { self.hypercalls.map_grants(slice::from_mut(op)) };
                    op.status
                });
            }
            if op.status.is_okay() {
                self.window.set_mapped(slots[index], op.handle);
            }
            statuses[index] = op.status;
        }
        statuses
    }

    /// Unmaps what is mapped at `slots`, and gives the slots back. Where Xen refuses, the slot
    /// stays taken for good and its handle counted.
    fn release(&mut self, slots: impl Iterator<Item = usize>) -> Result<(), GntStatus> {
        let mut slots = slots.peekable();
        let mut outcome = Ok(());
        while slots.peek().is_some() {
            let mut batch = [0; BATCH];
            let nr =
                batch.iter_mut().zip(slots.by_ref()).map(|(place, slot)| *place = slot).count();
            outcome = outcome.and(self.release_batch(&batch[..nr]));
        }
        outcome
    }

    fn release_batch(&mut self, slots: &[usize]) -> Result<(), GntStatus> {
        let mut ops = [GnttabUnmapGrantRef {
            host_addr: 0,
            dev_bus_addr: 0,
            handle: GrantHandle(0),
            status: GntStatus::GENERAL_ERROR,
            pad: 0,
        }; BATCH];
        let mut nr_ops = 0;
        for &slot in slots {
            if let Some(handle) = self.window.handle(slot) {
                ops[nr_ops].host_addr = self.gfn(slot).0 << PAGE_SHIFT;
                ops[nr_ops].handle = handle;
                nr_ops += 1;
            }
        }
        // Each op tells its own outcome. SAFETY: the mappings' only users were regions, which are
        // gone.
        let _ = unsafe { self.hypercalls.unmap_grants(&mut ops[..nr_ops]) };
        let mut outcome = Ok(());
        for op in &ops[..nr_ops] {
            if op.status.is_okay() {
                self.window.set_unmapped(self.slot(Gfn(op.host_addr >> PAGE_SHIFT)));
            } else {
                outcome = outcome.and(Err(op.status));
            }
        }
        for &slot in slots {
            self.window.give_back(slot);
        }
        outcome
    }

    fn retry(&self, mut again: impl FnMut() -> GntStatus) {
        for _ in 0..RETRIES {
            self.hypercalls.yield_now();
            if again() != GntStatus::EAGAIN {
                break;
            }
        }
    }

    const fn gfn(&self, slot: usize) -> Gfn {
        Gfn(self.base.0 + slot as u64)
    }

    fn slot(&self, gfn: Gfn) -> usize {
        slot(self.base, gfn)
    }
}

/// The slot of a frame of the window that begins at `base`.
fn slot(base: Gfn, gfn: Gfn) -> usize {
    usize::try_from(gfn.0 - base.0).unwrap_or(usize::MAX)
}
