//! Text to typed specs: the command line, a disk's `target=` and dom0's control requests. Nothing
//! else.
//!
//! All are read the same way: words, each `key` or `key=value`. What cannot be understood is an
//! [`Error`] that holds the offending word.

#![no_std]
#![forbid(unsafe_code)]

mod control;
mod definition;
mod disk_type;
mod ground;
mod name;
mod options;
mod settings;
mod size;
mod target;
mod virtual_device;
mod word;

pub use control::{Ask, Command, ControlRequest, Id};
pub use definition::{Defined, Definition, ImageFormat, definitions};
pub use disk_type::{Cow, DiskType, Overlay, Slice, Upstream};
pub use ground::{Ground, Namespace};
pub use name::Name;
pub use settings::{CopyRoutine, Settings};
pub use size::SizeError;
pub use target::{Access, GrantUse, Handover, Served, Target};
pub use virtual_device::VirtualDevice;
pub use word::{Error, Expected, Problem};
