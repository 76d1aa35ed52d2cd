//! A driver for an NVMe controller that is ours: passed through to us, and nobody else's (NVM Express
//! base specification 1.4; sections are its).
//!
//! A [`Controller`] is brought up, reset and shut down by [`Controller::step`], which never waits.
//! Its namespaces are [`Disk`]s, and requests to them go through one queue pair, many at once.
//!
//! The controller is trusted no more than it must be: it can lie about a disk's contents, and write
//! the pages that it was given. What it says of itself is checked; a completion that no controller may
//! send leads to a reset; and no page that it may still write is used for anything else before it is
//! disabled.
//!
//! Why not a driver that is there: `docs/nvme.md`.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod command;
mod completion;
mod controller;
mod device;
mod error;
mod failure;
mod identify;
mod memory;
mod parts;
mod queue;
mod registers;
mod requests;

pub use command::{AdminOpcode, Interrupt};
pub use completion::Status;
pub use controller::{Controller, Namespace, State};
pub use device::NamespaceDevice;
pub use error::Error;
pub use failure::IoError;
pub use identify::{
    CONTROLLER_LEN, Disk, EntrySizes, Identity, NAMESPACE_LEN, NamespaceId, Support, Unusable,
};
pub use memory::{Dma, DmaAddr};
pub use queue::Broken;
pub use registers::{Reg32, Reg64, Registers, Version};
