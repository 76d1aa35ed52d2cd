//! Several hypercalls in one (`xen.h`).

use core::mem::{offset_of, size_of};

/// One of the hypercalls of a multicall, of two arguments.
#[doc(alias = "multicall_entry")]
#[repr(C)]
pub(crate) struct MulticallEntry {
    op: usize,
    /// Xen's answer.
    result: i64,
    args: [usize; 6],
}

impl MulticallEntry {
    /// The hypercall `op` with its first two arguments.
    pub(crate) fn new(op: usize, first: usize, second: usize) -> Self {
        Self { op, result: 0, args: [first, second, 0, 0, 0, 0] }
    }
}

const _: () = assert!(size_of::<MulticallEntry>() == 64);
const _: () = assert!(offset_of!(MulticallEntry, args) == 16);
