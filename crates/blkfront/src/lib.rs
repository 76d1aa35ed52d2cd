//! The frontend half of a vbd, so that a disk can be used that another domain serves: the
//! [`Handshake`] with the backend, what the backend says of its [`Disk`], and, once both are agreed,
//! the [`Frontend`] that requests go through: a [`store::Device`].
//!
//! The backend is believed nothing. It can fail requests, and lie about the disk's contents; it
//! cannot make us answer a request twice, reach memory of ours that was not granted to it, or keep a
//! page that we use for something else.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod announcement;
mod disk;
mod frontend;
mod grant_table;
mod granted;
mod handshake;
mod pages;
mod parts;
mod ring;

pub use announcement::announcement;
pub use disk::{DiscardLimits, Disk, Flush, KeyError, offered_ring_order};
pub use frontend::Frontend;
pub use grant_table::{GrantTable, StillInUse};
pub use granted::{OutOfGrants, Retired};
pub use handshake::{Action, Event, Handshake};
pub use ring::{Broken, NoRing, Ring};
