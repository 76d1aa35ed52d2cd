//! The driver domain as one value: it finds the vbds that the toolstack wants, opens their disks,
//! shakes hands with their frontends and serves them, on whatever [`Platform`] it stands.
//!
//! Nothing here blocks. The platform calls [`Domain::step`] whenever an event has arrived or the
//! time that the last step named is over; a step does a bounded amount of work and says when it
//! wants to be called again. xenstore is asked and answers later: what an answer is for stands in
//! the tag that comes back with it.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod actions;
mod control;
mod conversation;
mod create;
mod disks;
mod domain;
mod ending;
mod inbox;
mod inquiry;
mod modules;
mod open;
mod platform;
mod ports;
mod publish;
mod refusal;
mod rings;
mod statistics;
mod text;
mod upstream;
mod vbd;
mod vbds;

pub use catalog::{CopyRoutine, Namespace};
pub use domain::{Domain, StartError};
pub use platform::{HypercallError, Next, Platform, Resources, ShutdownReason};
pub use text::LineLimit;
