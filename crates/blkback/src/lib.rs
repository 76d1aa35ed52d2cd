//! The backend half of a vbd: the [`Handshake`] with frontend and toolstack, and the [`Engine`]
//! that serves requests off its ring out of a store.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod batch;
mod connection;
mod descriptors;
mod engine;
mod entry;
mod grants;
mod handshake;
mod persistent;
mod refused;
mod round;
mod stats;

pub use connection::{KeyError, Offer, Persistence, RingKeys, Terms};
pub use engine::{Discards, Engine, Media, Next, Queue, Turn};
pub use grants::{Grants, MapError};
pub use handshake::{Action, Availability, Event, Handshake, Look, Online};
pub use persistent::Persistent;
pub use refused::{Reason, Refused};
pub use stats::{Histogram, Stats};
