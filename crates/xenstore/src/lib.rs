//! A xenstore client over the page that a domain shares with xenstored.
//!
//! [`Client`] queues requests, moves bytes in and out of the two rings of the page, and hands back
//! answers and watch events one message at a time; nothing blocks. Its caller owns the event
//! channel and drives it like this, whenever the channel fired or something was submitted:
//!
//! ```
//! # use xenstore::{Client, Event, Notify, ProtocolError};
//! # use xen_abi::SharedMemory;
//! # fn step(client: &mut Client<u32>, page: &impl SharedMemory) -> Result<(), ProtocolError> {
//! while let Some(event) = client.receive(page)? {
//!     match event {
//!         Event::Reply { tag, result } => { /* the answer to what was submitted with `tag` */ }
//!         Event::Watch { path, token } => { /* look at `path` again */ }
//!         Event::Stray(stray) => { /* log it */ }
//!     }
//! }
//! if client.send(page)? == Notify::Yes { /* signal xenstored's event channel */ }
//! # Ok(())
//! # }
//! ```
//!
//! What xenstored says is checked, and is told apart by how far the damage goes:
//!
//! | What arrives | What becomes of it |
//! |---|---|
//! | an answer of the wrong type or shape | that request's result is [`Error::BadReply`] |
//! | a message that answers nothing, a watch event without path and token | [`Event::Stray`] |
//! | a ring index out of range, a length over 4096 | [`ProtocolError`]: the connection is over |
//!
//! The protocol is `docs/misc/xenstore.txt` and `docs/misc/xenstore-ring.txt` in Xen's sources, its
//! numbers are in `xen/include/public/io/xs_wire.h`.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod client;
mod error;
mod incoming;
mod listing;
mod queue;
mod reply;
mod request;
mod ring;
mod transaction;
mod wire;

pub use client::Client;
pub use error::{Error, ProtocolError, SubmitError};
pub use queue::QUEUE_BYTES;
pub use reply::{Event, Names, Reply, Stray};
pub use request::{Access, Change, Perms, Request};
pub use ring::Notify;
pub use transaction::MAX_TRIES;
