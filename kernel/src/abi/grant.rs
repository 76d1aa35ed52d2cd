//! What is asked about our own grant table (`grant_table.h`).

use core::mem::{offset_of, size_of};

use xen_abi::{DomId, GntStatus};

/// Argument of `GNTTABOP_query_size`.
#[doc(alias = "gnttab_query_size")]
#[repr(C)]
pub(crate) struct QuerySize {
    pub(crate) dom: DomId,
    /// Xen's answer: how many frames it has.
    pub(crate) nr_frames: u32,
    /// Xen's answer: how many it may have.
    pub(crate) max_nr_frames: u32,
    /// Xen's answer.
    pub(crate) status: GntStatus,
}

const _: () = assert!(size_of::<QuerySize>() == 16);
const _: () = assert!(offset_of!(QuerySize, max_nr_frames) == 8);
const _: () = assert!(offset_of!(QuerySize, status) == 12);
