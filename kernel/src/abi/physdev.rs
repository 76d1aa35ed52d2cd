//! Interrupts of devices (`physdev.h`).

use core::mem::size_of;

/// Argument of `PHYSDEVOP_get_free_pirq`.
#[doc(alias = "physdev_get_free_pirq")]
#[repr(C)]
pub(crate) struct GetFreePirq {
    /// `MAP_PIRQ_TYPE_*`.
    pub(crate) kind: i32,
    /// Xen's answer.
    pub(crate) pirq: u32,
}

impl GetFreePirq {
    /// `MAP_PIRQ_TYPE_MSI`.
    pub(crate) const MSI: i32 = 0;
}

const _: () = assert!(size_of::<GetFreePirq>() == 8);
