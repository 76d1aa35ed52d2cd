//! The seam to a peer's granted pages.

use alloc::vec::Vec;

use store::FrameAddr;
use xen_abi::{DomId, EvtchnPort, Gfn, GntStatus, GnttabCopy, GrantRef, SharedMemory};

/// Grants of any peer, as the hypervisor hands them out.
pub trait Grants {
    /// Granted pages, mapped one behind the other. Owned: it goes back by [`Grants::unmap`], and
    /// one that is dropped instead leaks its handles.
    type Mapping: SharedMemory;

    /// Maps the pages that `peer` granted, for reading and writing, in the order of `grefs`
    /// (`GNTTABOP_map_grant_ref`). All or nothing: where one fails, the others are unmapped again.
    ///
    /// # Errors
    /// Which grant failed first and what Xen said of it.
    fn map(&mut self, peer: DomId, grefs: &[GrantRef]) -> Result<Self::Mapping, MapError>;

    /// Unmaps it (`GNTTABOP_unmap_grant_ref`).
    ///
    /// # Errors
    /// What Xen said. The handles are then counted as lost, the address range is not used again.
    fn unmap(&mut self, mapping: Self::Mapping) -> Result<(), GntStatus>;

    /// Maps pages that `peer` granted, for reading and writing, each by itself, in one hypercall.
    /// `mapped` is called for each of `grefs`, in order.
    fn map_each(
        &mut self,
        peer: DomId,
        grefs: &[GrantRef],
        mapped: impl FnMut(GrantRef, Result<Self::Mapping, GntStatus>),
    );

    /// Unmaps all of `mappings`, in one hypercall; none is left in it.
    ///
    /// # Errors
    /// What Xen said of the first that it did not unmap; see [`Grants::unmap`].
    fn unmap_each(&mut self, mappings: &mut Vec<Self::Mapping>) -> Result<(), GntStatus>;

    /// Where devices of ours reach a mapped page; `None` where they do not.
    fn frame(&self, _mapping: &Self::Mapping) -> Option<Gfn> {
        None
    }

    /// Copies `len_bytes` bytes at `offset` of a mapped page to frames of ours. Each byte is
    /// fetched once.
    fn copy_in(&mut self, from: &Self::Mapping, offset: u16, to: FrameAddr, len_bytes: u16);

    /// Copies `len_bytes` bytes of frames of ours to `offset` of a mapped page.
    fn copy_out(&mut self, from: FrameAddr, to: &Self::Mapping, offset: u16, len_bytes: u16);

    /// Performs the copies in order (`GNTTABOP_copy`), each of which gets its own status.
    fn copy(&mut self, copies: &mut [GnttabCopy]);

    /// Sends an event (`EVTCHNOP_send`). A port that is gone is no error: its peer is, too.
    fn notify(&mut self, port: EvtchnPort);

    /// As [`Grants::notify`], but it may go with the wait that comes next: for a lone answer, to which an
    /// exit less is one of two.
    fn notify_with_wait(&mut self, port: EvtchnPort) {
        self.notify(port);
    }
}

/// A grant that could not be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot map grant {gref}: {status}")]
pub struct MapError {
    /// The grant.
    pub gref: GrantRef,
    /// What Xen said of it, or [`GntStatus::NO_SPACE`] where we have no address range left.
    pub status: GntStatus,
}
