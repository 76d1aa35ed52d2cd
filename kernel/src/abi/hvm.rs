//! What a PVH domain asks about itself (`hvm/hvm_op.h`, `hvm/params.h`, `memory.h`).

use core::mem::{offset_of, size_of};

use xen_abi::{DomId, Gfn};

/// Which of a domain's parameters (`HVM_PARAM_*`, `hvm/params.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct HvmParam(u32);

impl HvmParam {
    /// How event upcalls reach the domain.
    pub(crate) const CALLBACK_IRQ: Self = Self(0);
    /// Frame of the page shared with xenstore.
    pub(crate) const STORE_PFN: Self = Self(1);
    /// Port of the event channel to xenstore.
    pub(crate) const STORE_EVTCHN: Self = Self(2);
    /// Frame of the page shared with the console daemon.
    pub(crate) const CONSOLE_PFN: Self = Self(17);
    /// Port of the event channel to the console daemon.
    pub(crate) const CONSOLE_EVTCHN: Self = Self(18);
}

/// Argument of `HVMOP_get_param` and `HVMOP_set_param`.
#[doc(alias = "xen_hvm_param")]
#[repr(C)]
pub(crate) struct HvmParamOp {
    pub(crate) domid: DomId,
    pub(crate) pad: u16,
    pub(crate) index: HvmParam,
    pub(crate) value: u64,
}

const _: () = assert!(size_of::<HvmParamOp>() == 16);
const _: () = assert!(offset_of!(HvmParamOp, index) == 4);
const _: () = assert!(offset_of!(HvmParamOp, value) == 8);

/// Argument of `XENMEM_add_to_physmap`.
#[doc(alias = "xen_add_to_physmap")]
#[repr(C)]
pub(crate) struct AddToPhysmap {
    pub(crate) domid: DomId,
    /// Only for ranges.
    pub(crate) size: u16,
    /// What to map (`XENMAPSPACE_*`).
    pub(crate) space: u32,
    /// Which page of it.
    pub(crate) idx: u64,
    /// Where to map it.
    pub(crate) gpfn: Gfn,
}

impl AddToPhysmap {
    /// `XENMAPSPACE_shared_info`.
    pub(crate) const SHARED_INFO: u32 = 0;
    /// `XENMAPSPACE_grant_table`.
    pub(crate) const GRANT_TABLE: u32 = 1;
}

const _: () = assert!(size_of::<AddToPhysmap>() == 24);
const _: () = assert!(offset_of!(AddToPhysmap, idx) == 8);
const _: () = assert!(offset_of!(AddToPhysmap, gpfn) == 16);
