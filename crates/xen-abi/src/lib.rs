//! Xen's public ABI, the part of it that Granary speaks.
//!
//! Newtypes for every kind of number that Xen hands out, the ABI structs with their sizes and
//! offsets asserted at compile time, and the seam traits that two or more crates need. No logic
//! lives here. Each item names the header of `xen/include/public` that it mirrors.

#![no_std]
#![forbid(unsafe_code)]

mod grant;
mod ids;
mod seam;
mod time;
pub mod xenbus;

pub use grant::{
    CopyFlags, CopyPtr, GntStatus, GnttabCopy, GnttabMapGrantRef, GnttabUnmapGrantRef, MapFlags,
};
pub use ids::{DomId, EvtchnPort, Gfn, GrantHandle, GrantRef};
pub use seam::SharedMemory;
pub use time::Instant;
pub use xenbus::XenbusState;

/// Size of a page, a frame and a grant, in bytes (`XEN_PAGE_SIZE`).
pub const PAGE_SIZE: usize = 4096;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
