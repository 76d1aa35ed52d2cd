//! Our own grant table: what peers may map of ours.

use core::ptr;

use blkfront::StillInUse;
use xen_abi::{DomId, Gfn, GrantRef, PAGE_SHIFT};

use crate::grant_entries::{Entries, EntryFrame};
use crate::hypercall::Hypercalls;

/// The domain's grant table, version 1. Nothing of it is mapped before the first grant.
///
/// `GNTTABOP_setup_table` tells machine frames, of use to PV domains alone: here
/// `XENMEM_add_to_physmap` puts the table's frames where we want them, and has the table grow.
#[derive(Debug)]
pub(crate) struct OwnGrants {
    hypercalls: Hypercalls,
    /// Where its first frame goes.
    base: Gfn,
    entries: Entries,
}

impl OwnGrants {
    /// As many frames as the table is given room for: 32,760 grants, what Xen lets a domain have
    /// that xl.cfg's `max_grant_frames` says nothing of.
    pub(crate) const MAX_FRAMES: u32 = 64;

    /// # Safety
    /// The [`Self::MAX_FRAMES`] frames from `base` on have no memory of their own, nothing is
    /// mapped there but by this, and their addresses are identity-mapped.
    pub(crate) unsafe fn new(hypercalls: Hypercalls, base: Gfn) -> Self {
        let max_frames = hypercalls.max_grant_frames().unwrap_or(0).min(Self::MAX_FRAMES);
        Self { hypercalls, base, entries: Entries::new(max_frames) }
    }

    /// As [`blkfront::GrantTable::nr_free`].
    pub(crate) fn nr_free(&self) -> usize {
        self.entries.nr_free()
    }

    /// As [`blkfront::GrantTable::grant`].
    pub(crate) fn grant(&mut self, to: DomId, frame: Gfn) -> Option<GrantRef> {
        let Self { hypercalls, base, entries } = self;
        entries.grant(to, frame, |index| {
            let gfn = Gfn(base.0 + u64::from(index));
            let address = usize::try_from(gfn.0 << PAGE_SHIFT).ok()?;
            // SAFETY: `new`'s caller answers for the frame.
            unsafe { hypercalls.map_grant_table(index, gfn) }.ok()?;
            // SAFETY: Xen's page is mapped there now for good. It is all atomics, and any bits are
            // good in them.
            Some(unsafe { &*ptr::with_exposed_provenance::<EntryFrame>(address) })
        })
    }

    /// As [`blkfront::GrantTable::end_access`].
    pub(crate) fn end_access(&mut self, gref: GrantRef) -> Result<(), StillInUse> {
        self.entries.end_access(gref)
    }
}
