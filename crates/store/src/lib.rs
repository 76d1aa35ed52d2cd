//! What a disk is: the [`BlockStore`] interface, the page pool, and the stores.
#![no_std]
#![forbid(unsafe_code)]

mod memory;

pub use memory::{FrameAddr, FrameMemory};
