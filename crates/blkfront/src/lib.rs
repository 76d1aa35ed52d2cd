//! The frontend half of a vbd: the [`Handshake`] with the backend, and what the backend says of its
//! [`Disk`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod announcement;
mod disk;
mod handshake;

pub use announcement::announcement;
pub use disk::{Access, DiscardLimits, Disk, Flush, KeyError, SecureDiscard, offered_ring_order};
pub use handshake::{Action, Event, Handshake};
