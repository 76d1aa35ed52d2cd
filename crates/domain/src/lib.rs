//! The driver domain as one value.
//!
//! The platform creates a `Domain::new(resources, &mut platform)` and calls
//! `domain.step(&mut platform) -> Next` for ever.
#![no_std]
#![forbid(unsafe_code)]

mod platform;

pub use platform::{HypercallError, Next, Platform, Resources, ShutdownReason};
