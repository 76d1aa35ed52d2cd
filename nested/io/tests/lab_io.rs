//! The program as the guests of the lab run it, on files.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

/// A file of zeroes as a device.
fn device(name: &str, blocks: u64) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, b"").unwrap();
    File::options().write(true).open(&path).unwrap().set_len(blocks * 4096).unwrap();
    path
}

/// The exit code and what it said.
fn lab_io(device: &PathBuf, words: &str) -> (i32, String) {
    said(Command::new(env!("CARGO_BIN_EXE_lab-io")), device, words)
}

fn said(mut command: Command, device: &PathBuf, words: &str) -> (i32, String) {
    let mut words = words.split(' ');
    command.arg(words.next().unwrap()).arg("--device").arg(device).args(words);
    let output = command.output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text.replace(&*device.to_string_lossy(), "DEVICE"))
}

/// The same where nothing may be written to a file behind its first `bytes`.
fn lab_io_below(bytes: u64, device: &PathBuf, words: &str) -> (i32, String) {
    let mut command = Command::new("sh");
    // `ulimit` counts in units of 512 bytes.
    let limited = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", bytes / 512);
    command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_lab-io")]);
    said(command, device, words)
}

/// Whether there is io_uring here: a container may forbid it, and an older kernel has less of it. Says
/// so where not.
static HAS_IO_URING: LazyLock<bool> = LazyLock::new(|| {
    let (code, text) = lab_io(&device("io-uring", 1), "latency --op read --depth 2 --count 1");
    let is_refused = ["Operation not permitted", "Function not implemented", "Invalid argument"]
        .iter()
        .any(|why| text.starts_with(&format!("lab-io: io_uring, for a --depth above 1: {why}")));
    if code == 3 && is_refused {
        // Past what the test runner keeps to itself.
        let _ = write!(io::stderr(), "not tested at a --depth above 1: {text}");
        return false;
    }
    true
});

/// A number of the JSON line.
fn member(text: &str, name: &str) -> u64 {
    let rest = text.split_once(&format!(r#""{name}": "#)).unwrap().1;
    rest.split([',', '}']).next().unwrap().parse().unwrap()
}

#[test]
fn what_was_written_is_right_in_this_run_and_the_next() {
    let device = device("right", 256);
    for _ in 0..2 {
        let (code, text) = lab_io(&device, "verify --count 1000 --depth 4 --seed 7");
        assert_eq!(code, 0, "{text}");
        assert!(member(&text, "count") > 400, "{text}");
    }
}

#[test]
fn another_seeds_data_is_wrong() {
    let device = device("seeds", 16);
    assert_eq!(lab_io(&device, "verify --count 200 --seed 7").0, 0);
    let (code, text) = lab_io(&device, "verify --count 200 --seed 8");
    assert_eq!(code, 1, "{text}");
    assert!(text.starts_with("lab-io: DEVICE: block "), "{text}");
    assert!(text.contains(" holds seed 7 block "), "{text}");
    assert!(text.contains("; it should hold zeroes or any generation of seed 8 block "), "{text}");
}

#[test]
fn a_changed_byte_is_found() {
    let device = device("changed", 16);
    assert_eq!(lab_io(&device, "verify --count 500 --size 4096").0, 0);
    File::options().write(true).open(&device).unwrap().write_all_at(b"!", 5 * 4096 + 600).unwrap();
    let (code, text) = lab_io(&device, "verify --count 500 --size 4096");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("DEVICE: block 5 holds no whole block: seed 1 block 5 generation "));
    assert!(text.contains(" up to byte 600; it should hold zeroes or any"), "{text}");
}

#[test]
fn an_older_write_that_comes_back_is_found() {
    let device = device("stale", 1);
    let old = File::options().read(true).write(true).open(&device).unwrap();
    let again = std::env::temp_dir().join(format!("lab-io-{}", std::process::id()));
    fs::write(&again, b"").unwrap();
    let path = device.clone();
    let words = format!("verify --size 4096 --while {}", again.display());
    let load = std::thread::spawn(move || lab_io(&path, &words));
    // The load's own writes come in between, so more than one of these is needed.
    while !load.is_finished() {
        old.write_all_at(&[0; 4096], 0).unwrap();
    }
    fs::remove_file(again).unwrap();
    let (code, text) = load.join().unwrap();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("; it should hold seed 1 block 0 generation"), "{text}");
}

#[test]
fn latencies_are_of_as_many_requests_as_asked_for() {
    let device = device("latency", 64);
    for words in [
        "--op write --pattern sequential --size 65536",
        "--op read --depth 3",
        "--op write --depth 3 --size 65536",
        // More than there are requests.
        "--op read --depth 150",
    ] {
        if words.contains("--depth") && !*HAS_IO_URING {
            continue;
        }
        let (code, text) = lab_io(&device, &format!("latency {words} --count 100"));
        assert_eq!(code, 0, "{text}");
        assert_eq!(member(&text, "count"), 100);
        let [p50, p90, p99, max] =
            ["p50_ns", "p90_ns", "p99_ns", "max_ns"].map(|name| member(&text, name));
        assert!(0 < p50 && p50 <= p90 && p90 <= p99 && p99 <= max, "{text}");
    }
    assert_eq!(fs::metadata(&device).unwrap().len(), 64 * 4096);
}

#[test]
fn requests_made_at_once_go_where_they_should() {
    if !*HAS_IO_URING {
        return;
    }
    let device = device("at-once", 64);
    let words = "latency --op write --pattern sequential --size 8192 --depth 5 --count 31";
    assert_eq!(lab_io(&device, words).0, 0);
    let bytes = fs::read(&device).unwrap();
    let (written, rest) = bytes.split_at(31 * 8192);
    assert!(written.chunks(512).all(|sector| sector.iter().any(|&byte| byte != 0)));
    assert_eq!(rest, [0; 8192]);
    // Each buffer has bytes of its own.
    let mut requests: Vec<_> = written.chunks(8192).collect();
    requests.sort_unstable();
    requests.dedup();
    assert_eq!(requests.len(), 5);
}

#[test]
fn what_fails_is_said_also_when_it_was_cut_short() {
    let depths: &[_] = if *HAS_IO_URING { &[1, 4] } else { &[1] };
    for (&depth, bytes) in depths.iter().flat_map(|depth| [(depth, 65536), (depth, 98304)]) {
        let device = device(&format!("error-{depth}-{bytes}"), 64);
        let words = format!(
            "latency --op write --pattern sequential --size 65536 --depth {depth} --count 2"
        );
        let says =
            "lab-io: DEVICE: write of 65536 bytes at byte 65536: File too large (os error 27)\n";
        assert_eq!(lab_io_below(bytes, &device, &words), (3, says.to_owned()), "{depth} {bytes}");
        let written = fs::read(&device).unwrap();
        assert!(written[usize::try_from(bytes).unwrap()..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn wrong_usage_is_said() {
    let device = device("usage", 1);
    for (words, says) in [
        ("latency --op read", "one of --count N, --seconds N and --while PATH"),
        ("latency --count 1", "--op read or --op write"),
        ("latency --op read --count 1 --size 512", "--size 512"),
        ("latency --op read --count 1 --size 8192", "DEVICE is smaller than --size"),
        ("verify --count 1", "DEVICE is smaller than --size times --depth"),
        ("verify --size 4096 --count 1 --op read", "no option --op here"),
        ("verify --count", "--count has no value"),
        ("verify --count 1 --count 2", "--count stands there twice"),
        ("neither --count 1", "no command neither; try lab-io help"),
    ] {
        assert_eq!(lab_io(&device, words), (2, format!("lab-io: {says}\n")), "{words}");
    }
}
