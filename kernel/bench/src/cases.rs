//! What is counted.

use core::hint::black_box;

use crate::lab::{Ask, Kind, Lab, Way};
use crate::linux::say;

/// Rounds of each case before the count begins, and those that are counted.
const NR_WARM: u32 = 4;
const NR_COUNTED: u32 = 16;

struct Case {
    name: &'static str,
    ask: Ask,
    depth: u32,
    nr_pages: u16,
}

const fn case(name: &'static str, ask: Ask, depth: u32, nr_pages: u16) -> Case {
    Case { name, ask, depth, nr_pages }
}

const CASES: [Case; 9] = [
    case("4 KiB read, depth 32", Ask::Read, 32, 1),
    case("4 KiB read, depth 1", Ask::Read, 1, 1),
    case("4 KiB write, depth 32", Ask::Write, 32, 1),
    case("4 KiB write, depth 1", Ask::Write, 1, 1),
    case("128 KiB read, depth 32", Ask::Read, 32, 32),
    case("128 KiB write, depth 32", Ask::Write, 32, 32),
    case("1 MiB read, depth 4", Ask::Read, 4, 256),
    case("1 MiB write, depth 4", Ask::Write, 4, 256),
    case("flush, depth 32", Ask::Flush, 32, 0),
];

/// Runs every case on every kind of disk, either way. A line a case says what was counted: store,
/// way, name, requests, hypercalls.
pub(crate) fn run() {
    for (store, kind) in [("null", Kind::Null), ("RAM", Kind::Ram)] {
        for (grants, way) in [("persistent", Way::Persistent), ("copied", Way::Copied)] {
            let mut lab = Lab::new(kind, way);
            lab.fill();
            for Case { name, ask, depth, nr_pages } in CASES {
                (0..NR_WARM).for_each(|_| lab.round(ask, depth, nr_pages));
                warmed_up();
                let before = lab.guest.nr_hypercalls;
                (0..NR_COUNTED).for_each(|_| lab.round(ask, depth, nr_pages));
                let nr_hypercalls = lab.guest.nr_hypercalls - before;
                counted();
                say(format_args!(
                    "{store}\t{grants}\t{name}\t{}\t{nr_hypercalls}",
                    depth * NR_COUNTED
                ));
            }
        }
    }
}

// Callgrind knows them by their names, so they must not become one function.

/// Callgrind forgets what it has counted.
#[inline(never)]
fn warmed_up() {
    black_box("warmed up");
}

/// Callgrind writes down what it has counted.
#[inline(never)]
fn counted() {
    black_box("counted");
}
