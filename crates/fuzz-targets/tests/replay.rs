//! Every target over its corpus and over seeded mutations of it.
//!
//! `FUZZ_SEED=n` chooses other mutations, `FUZZ_SECONDS=n` tries as many as that takes for each
//! target instead of a fixed number.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use fuzz_targets::{
    CATALOG, CONTROLLER, IMAGE, REQUEST, RING, START_INFO, TARGETS, Target, UPSTREAM, XENSTORE,
    mutate,
};
use sim::Rng;

/// Files that a corpus has at most, and bytes that one has.
const MAX_FILES: usize = 60;
const MAX_FILE_BYTES: usize = 4096;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name);
    let entries = fs::read_dir(&directory);
    let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let bytes = fs::read(&path);
            let bytes = bytes.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path, bytes)
        })
        .collect();
    files.sort();
    files
}

/// Runs the target, and says what it was given if it panics.
fn try_one(target: &Target, what: &str, bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))) {
        eprintln!("fuzz target {} fails on {what}:\n{bytes:02x?}", target.name);
        resume_unwind(panic);
    }
}

fn replay(target: &Target) {
    let files = corpus(target);
    for (path, bytes) in &files {
        try_one(target, &path.display().to_string(), bytes);
    }
    let corpus: Vec<Vec<u8>> = files.into_iter().map(|(_, bytes)| bytes).collect();
    let seed = number("FUZZ_SEED").unwrap_or(0);
    let mut rng = Rng::new(seed);
    let limit = number("FUZZ_SECONDS").map(Duration::from_secs);
    let begin = Instant::now();
    let mut round = 0;
    while limit.map_or(round < target.nr_rounds, |limit| begin.elapsed() < limit) {
        let bytes = mutate(&corpus, &mut rng);
        try_one(target, &format!("round {round} of FUZZ_SEED={seed}"), &bytes);
        round += 1;
    }
    println!("{}: {round} mutations with FUZZ_SEED={seed} in {:?}", target.name, begin.elapsed());
}

#[test]
fn any_slot_is_a_request_or_says_what_is_wrong() {
    replay(&REQUEST);
}

#[test]
fn any_ring_is_answered_once_and_in_order_or_is_broken() {
    replay(&RING);
}

#[test]
fn a_xenstored_that_says_anything_yields_no_answer_for_nothing() {
    replay(&XENSTORE);
}

#[test]
fn any_text_is_a_target_or_says_what_is_wrong() {
    replay(&CATALOG);
}

#[test]
fn any_memory_holds_a_start_info_or_says_what_is_wrong() {
    replay(&START_INFO);
}

#[test]
fn any_module_is_images_or_says_what_is_wrong() {
    replay(&IMAGE);
}

#[test]
fn any_backend_leaves_each_request_over_once_and_its_pages_ours() {
    replay(&UPSTREAM);
}

#[test]
fn any_controller_leaves_each_request_over_once_and_its_pages_ours() {
    replay(&CONTROLLER);
}

#[test]
fn every_corpus_is_small_and_has_a_target() {
    for target in TARGETS {
        let files = corpus(&target);
        assert!((1..=MAX_FILES).contains(&files.len()), "{}: {} files", target.name, files.len());
        for (path, bytes) in files {
            assert!(bytes.len() <= MAX_FILE_BYTES, "{}: {} bytes", path.display(), bytes.len());
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let mut binaries: Vec<String> = fs::read_dir(root.join("fuzz_targets"))
        .expect("fuzz_targets")
        .map(|entry| entry.expect("an entry").path().file_stem().unwrap().to_string_lossy().into())
        .collect();
    binaries.sort();
    let mut names = TARGETS.map(|target| target.name);
    names.sort_unstable();
    assert_eq!(binaries, names, "a binary for cargo-fuzz each");
}
