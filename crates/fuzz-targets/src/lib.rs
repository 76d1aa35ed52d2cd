//! What is fuzzed: plain functions over any bytes, each of which asserts properties and panics
//! where one does not hold.
//!
//! `tests/replay.rs` runs them on the pinned toolchain over the corpora in `fuzz/corpus` and seeded
//! mutations of them; `scripts/fuzz` drives the same functions with cargo-fuzz.

#![forbid(unsafe_code)]

mod catalog_text;
mod controller;
mod image;
mod input;
mod mutate;
mod request;
mod ring;
mod start_info;
mod upstream;
mod xenstore_wire;

pub use mutate::mutate;

/// A function over any bytes, under the name of its corpus.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As in `fuzz/corpus` and `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Panics where a property does not hold.
    pub run: fn(&[u8]),
    /// How many mutations `cargo test` tries: a few seconds' worth without optimisation.
    pub nr_rounds: u64,
}

/// A request as it comes off the ring, of both ABIs.
pub const REQUEST: Target = Target { name: "request", run: request::run, nr_rounds: 60_000 };
/// A frontend that writes its ring and its pages between any two fetches.
pub const RING: Target = Target { name: "ring", run: ring::run, nr_rounds: 2_000 };
/// A xenstored that says anything.
pub const XENSTORE: Target = Target { name: "xenstore", run: xenstore_wire::run, nr_rounds: 6_000 };
/// A disk's `target=`, the command line, control requests.
pub const CATALOG: Target = Target { name: "catalog", run: catalog_text::run, nr_rounds: 20_000 };
/// A loader's record in any memory.
pub const START_INFO: Target =
    Target { name: "start_info", run: start_info::run, nr_rounds: 20_000 };
/// A boot module with images.
pub const IMAGE: Target = Target { name: "image", run: image::run, nr_rounds: 4_000 };

/// A backend of which we are the frontend.
pub const UPSTREAM: Target = Target { name: "upstream", run: upstream::run, nr_rounds: 4_000 };

/// An NVMe controller.
pub const CONTROLLER: Target =
    Target { name: "controller", run: controller::run, nr_rounds: 4_000 };

/// All of them.
pub const TARGETS: [Target; 8] =
    [REQUEST, RING, XENSTORE, CATALOG, START_INFO, IMAGE, UPSTREAM, CONTROLLER];
