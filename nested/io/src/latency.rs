//! Requests of one size, and how long each took.

use std::time::Instant;

use crate::Error;
use crate::arguments::Arguments;
use crate::bound::Bound;
use crate::device::{BLOCK_BYTES, Buffer, Device, Op};
use crate::latencies::Latencies;
use crate::ring;
use crate::rng::Rng;

#[derive(Clone, Copy, Debug)]
enum Pattern {
    Random,
    Sequential,
}

/// Says which requests to make.
#[derive(Debug)]
struct Load {
    pattern: Pattern,
    /// How many requests lie side by side on the device, and how long each is.
    nr_places: u64,
    size_bytes: usize,
    bound: Bound,
    rng: Rng,
}

pub fn run(mut arguments: Arguments) -> Result<String, Error> {
    let op = match arguments.take("op").as_deref() {
        Some("read") => Op::Read,
        Some("write") => Op::Write,
        _ => return Err(Error::Usage("--op read or --op write".to_owned())),
    };
    let pattern = match arguments.take("pattern").as_deref() {
        None | Some("random") => Pattern::Random,
        Some("sequential") => Pattern::Sequential,
        Some(other) => return Err(Error::Usage(format!("--pattern {other}"))),
    };
    let size_bytes = arguments.size(BLOCK_BYTES)?;
    let depth: u64 = arguments.number("depth", 1, 1)?;
    let seed = arguments.number("seed", 1, 0)?;
    let device = arguments.device()?;
    let bound = arguments.bound()?;
    arguments.end()?;
    let nr_places = device.nr_blocks() / (size_bytes / BLOCK_BYTES) as u64;
    if nr_places == 0 {
        return Err(Error::Usage(format!("{} is smaller than --size", device.path())));
    }
    let mut load = Load { pattern, nr_places, size_bytes, bound, rng: Rng::new(seed) };

    let begin = Instant::now();
    let latencies = if depth == 1 {
        one_at_a_time(&device, op, load.buffer(op), || load.next())?
    } else {
        let buffers = (0..depth).map(|_| load.buffer(op)).collect();
        ring::run(device, op, buffers, || load.next())?
    };
    let seconds = begin.elapsed().as_secs_f64();
    let bytes = latencies.count() * size_bytes as u64;
    Ok(format!(r#"{{{}, "bytes": {bytes}, "seconds": {seconds:.6}}}"#, latencies.json()))
}

impl Load {
    /// What every request of one slot reads into or writes.
    fn buffer(&mut self, op: Op) -> Buffer {
        let mut buffer = Buffer::new(self.size_bytes);
        if let Op::Write = op {
            buffer
                .chunks_exact_mut(8)
                .for_each(|word| word.copy_from_slice(&self.rng.next_u64().to_le_bytes()));
        }
        buffer
    }

    /// The first block of the next request, if there is one.
    fn next(&mut self) -> Option<u64> {
        let number = self.bound.next()?;
        let place = match self.pattern {
            Pattern::Random => self.rng.below(self.nr_places),
            Pattern::Sequential => number % self.nr_places,
        };
        Some(place * (self.size_bytes / BLOCK_BYTES) as u64)
    }
}

fn one_at_a_time(
    device: &Device,
    op: Op,
    mut buffer: Buffer,
    mut next: impl FnMut() -> Option<u64>,
) -> Result<Latencies, Error> {
    let mut latencies = Latencies::new();
    while let Some(block) = next() {
        latencies.time(|| device.request(op, block, &mut buffer))?;
    }
    Ok(latencies)
}
