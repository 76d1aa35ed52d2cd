//! Which seeds a test runs with.

use std::env;
use std::ops::Range;

/// The seeds of a test: the one of `SIM_SEED`, or from 0 as many as `SIM_SEEDS` says, or `default`
/// of them.
///
/// # Panics
/// Where either variable is no number.
#[must_use]
pub fn seeds(default: u64) -> Range<u64> {
    let number = |name: &str| {
        let text = env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")))
    };
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(default),
    }
}
