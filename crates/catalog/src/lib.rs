//! Text to typed specs: a disk's `target=` and the domain's command line. Nothing else.
//!
//! Both are read the same way: words, each `key` or `key=value`. What cannot be understood is an
//! [`Error`] that holds the offending word.

#![no_std]
#![forbid(unsafe_code)]

mod settings;
mod size;
mod target;
mod word;

pub use settings::Settings;
pub use size::SizeError;
pub use target::Target;
pub use word::{Error, Problem};
