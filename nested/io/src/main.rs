//! A load on a block device, for the guests of the nested lab: `lab-io help` says how to use it.
//!
//! It goes past the page cache, and prints one line of JSON, or one of why not.
#![forbid(unsafe_code)]

mod arguments;
mod block;
mod bound;
mod device;
mod latencies;
mod latency;
mod ring;
mod rng;
mod verify;

use std::io::{self, Write};
use std::process::ExitCode;

use arguments::Arguments;

const HELP: &str = "\
lab-io latency --device PATH --op read|write BOUND
               [--pattern random|sequential] [--size BYTES] [--depth N] [--seed N]
    requests of one size (4096), N of them at once (1); more than one by io_uring of Linux 6.1

lab-io verify  --device PATH BOUND [--size BYTES] [--depth N] [--seed N]
    reads and writes of up to so many bytes (65536) at random places, now and then a flush, and at
    the end a read of all that was touched. A block must be what was last written to it, or, before
    that, zeroes or what an earlier run with the same seed wrote.

BOUND is --count N (requests), --seconds N, or --while PATH (as long as there is such a file).
Sizes are multiples of 4096, and so is the part of the device that is used.

Exit codes: 0 done, 1 wrong data, 2 wrong usage, 3 a request failed.
";

/// Why it ends without a result.
#[derive(Debug)]
enum Error {
    Usage(String),
    Request(String),
    WrongData(String),
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(text) => match writeln!(io::stdout(), "{text}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(3),
        },
        Err(error) => {
            let (code, text) = match error {
                Error::WrongData(text) => (1, text),
                Error::Usage(text) => (2, text),
                Error::Request(text) => (3, text),
            };
            eprintln!("lab-io: {text}");
            ExitCode::from(code)
        }
    }
}

fn run(words: &[String]) -> Result<String, Error> {
    let Some((command, options)) = words.split_first() else {
        return Err(Error::Usage("no command; try lab-io help".to_owned()));
    };
    match command.as_str() {
        "latency" => latency::run(Arguments::parse(options)?),
        "verify" => verify::run(Arguments::parse(options)?),
        "help" | "--help" => Ok(HELP.trim_end().to_owned()),
        other => Err(Error::Usage(format!("no command {other}; try lab-io help"))),
    }
}
