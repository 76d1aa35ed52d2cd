//! The seam to our own grant table, and to our frames as a peer sees them.

use xen_abi::{DomId, Gfn, GrantRef, SharedMemory};

/// Our own grant table, and the frames that we grant.
pub trait GrantTable {
    /// Frames of ours that a peer can write.
    type Memory: SharedMemory + 'static;

    /// Our frames, one behind the other, as memory that a peer can write.
    fn memory(&mut self, frames: &[Gfn]) -> Self::Memory;

    /// Entries of the table that are not in use.
    fn nr_free(&self) -> usize;

    /// Grants a frame for reading and writing; `None` where no entry is free.
    #[doc(alias = "gnttab_grant_foreign_access")]
    fn grant(&mut self, to: DomId, frame: Gfn) -> Option<GrantRef>;

    /// Takes a grant back: the entry is free again, and the frame is ours alone.
    ///
    /// # Errors
    /// The peer still has it mapped, or a copy is under way: nothing has changed. To clear the entry
    /// in spite of that would leave the peer with a page of ours that we take for our own.
    #[doc(alias = "gnttab_try_end_foreign_access")]
    fn end_access(&mut self, gref: GrantRef) -> Result<(), StillInUse>;
}

/// A grant that the peer has not let go of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("grant {0} is still in use")]
pub struct StillInUse(pub GrantRef);
