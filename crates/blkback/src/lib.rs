//! The backend half of a vbd.
#![no_std]
#![forbid(unsafe_code)]

mod grants;

pub use grants::{Grants, MapError};
