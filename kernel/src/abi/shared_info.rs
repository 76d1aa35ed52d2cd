//! The page that Xen shares with the domain (`struct shared_info`, `xen.h`), 64-bit layout.

use core::cell::UnsafeCell;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU64};

/// The page's part that is used. Xen writes it at any moment, hence the atomics.
#[doc(alias = "shared_info")]
#[repr(C)]
pub(crate) struct SharedInfo {
    pub(crate) vcpu_info: [VcpuInfo; 32],
    /// Ports that an event arrived at, a bit each.
    pub(crate) evtchn_pending: [AtomicU64; 64],
    /// Ports that make no upcall, a bit each.
    pub(crate) evtchn_mask: [AtomicU64; 64],
}

const _: () = assert!(offset_of!(SharedInfo, evtchn_pending) == 2048);
const _: () = assert!(offset_of!(SharedInfo, evtchn_mask) == 2560);

/// A vCPU's part (`struct vcpu_info`).
#[doc(alias = "vcpu_info")]
#[repr(C)]
pub(crate) struct VcpuInfo {
    /// Not 0: an upcall is due.
    pub(crate) evtchn_upcall_pending: AtomicU8,
    /// For PV domains.
    evtchn_upcall_mask: AtomicU8,
    /// Words of `evtchn_pending` to look at, a bit each.
    pub(crate) evtchn_pending_sel: AtomicU64,
    arch: [u64; 2],
    /// Written by Xen alone, under its version.
    pub(crate) time: UnsafeCell<VcpuTimeInfo>,
}

const _: () = assert!(size_of::<VcpuInfo>() == 64);
const _: () = assert!(offset_of!(VcpuInfo, evtchn_pending_sel) == 8);
const _: () = assert!(offset_of!(VcpuInfo, time) == 32);

/// How the vCPU's TSC becomes system time (`struct vcpu_time_info`).
#[doc(alias = "vcpu_time_info")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct VcpuTimeInfo {
    /// Odd while Xen writes; another one after it wrote.
    pub(crate) version: u32,
    pub(crate) pad0: u32,
    /// TSC at the last update.
    pub(crate) tsc_timestamp: u64,
    /// Nanoseconds since the host's boot at the last update.
    pub(crate) system_time: u64,
    /// Nanoseconds a shifted TSC tick, in units of 2⁻³².
    pub(crate) tsc_to_system_mul: u32,
    /// Shifts ticks to the left, or to the right where it is negative.
    pub(crate) tsc_shift: i8,
    pub(crate) flags: u8,
    pub(crate) pad1: [u8; 2],
}

const _: () = assert!(size_of::<VcpuTimeInfo>() == 32);
const _: () = assert!(offset_of!(VcpuTimeInfo, system_time) == 16);
const _: () = assert!(offset_of!(VcpuTimeInfo, tsc_shift) == 28);

// SAFETY: the only plain memory is `time`, which Rust code reads by volatile copies alone.
unsafe impl Sync for SharedInfo {}
