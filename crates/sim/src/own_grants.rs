//! The driver domain's own grant table: the seam of `blkfront`.

use blkfront::{GrantTable, StillInUse};
use xen_abi::{DomId, Gfn, GrantRef};

use crate::{GrantAccess, Machine, OwnFrames, Page, Region};

/// The grant table of a domain, and those of its frames that it can grant.
///
/// What the domain does in its frames is seen by their hooks as if a peer did it: a test of a
/// hostile backend acts between any two of its accesses.
#[derive(Debug)]
pub struct OwnGrants {
    machine: Machine,
    domid: DomId,
    frames: OwnFrames,
    /// Entries of the table that it can use.
    pub max_grants: usize,
}

impl OwnGrants {
    /// The table of `domid`, which has `nr_frames` frames from `first` on. They hold
    /// [`STALE_BYTE`](crate::STALE_BYTE)s.
    #[must_use]
    pub fn new(machine: &Machine, domid: DomId, first: Gfn, nr_frames: u64) -> Self {
        Self::of(machine, domid, OwnFrames::new(&[(first, nr_frames)]))
    }

    /// The table of `domid`, which has these frames.
    #[must_use]
    pub fn of(machine: &Machine, domid: DomId, frames: OwnFrames) -> Self {
        Self { machine: machine.clone(), domid, frames, max_grants: usize::MAX }
    }

    /// The page in a frame.
    ///
    /// # Panics
    /// Where there is no such frame.
    #[must_use]
    pub fn page(&self, frame: Gfn) -> &Page {
        self.frames.page(frame)
    }
}

impl GrantTable for OwnGrants {
    type Memory = Region;

    fn memory(&mut self, frames: &[Gfn]) -> Region {
        Region::mapped(frames.iter().map(|&frame| self.page(frame).clone()).collect())
    }

    fn nr_free(&self) -> usize {
        self.max_grants.saturating_sub(self.machine.grants().nr_grants(self.domid))
    }

    fn grant(&mut self, to: DomId, frame: Gfn) -> Option<GrantRef> {
        if self.nr_free() == 0 {
            return None;
        }
        let page = self.page(frame).clone();
        Some(self.machine.grants().grant(self.domid, to, &page, GrantAccess::ReadWrite))
    }

    fn end_access(&mut self, gref: GrantRef) -> Result<(), StillInUse> {
        self.machine.grants().end_access(self.domid, gref).map_err(|_| StillInUse(gref))
    }
}
