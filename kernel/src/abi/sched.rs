//! Scheduler operations (`sched.h`).

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Argument of `SCHEDOP_poll`. Atomic, because the upcall's handler writes it as well.
#[doc(alias = "sched_poll")]
#[repr(C)]
pub(crate) struct Poll {
    /// Address of the ports.
    pub(crate) ports: AtomicU64,
    /// How many there are; Xen takes at most [`Self::MAX_PORTS`].
    pub(crate) nr_ports: AtomicU32,
    /// System time to return at, in nanoseconds; 0 is never.
    pub(crate) timeout_ns: AtomicU64,
}

impl Poll {
    /// How many ports one call takes; it answers -EINVAL to more (`do_poll`,
    /// `xen/common/sched/core.c`).
    pub(crate) const MAX_PORTS: u32 = 128;
}

const _: () = assert!(size_of::<Poll>() == 24);
const _: () = assert!(offset_of!(Poll, nr_ports) == 8);
const _: () = assert!(offset_of!(Poll, timeout_ns) == 16);

/// Argument of `SCHEDOP_shutdown`.
#[doc(alias = "sched_shutdown")]
#[repr(C)]
pub(crate) struct Shutdown {
    pub(crate) reason: ShutdownCode,
}

const _: () = assert!(size_of::<Shutdown>() == 4);

/// What the domain says of its end (`SHUTDOWN_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum ShutdownCode {
    PowerOff = 0,
    Reboot = 1,
    Crash = 3,
}
