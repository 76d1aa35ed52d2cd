//! Requests of one size, and how long each took.

use std::thread;
use std::time::Instant;

use crate::Error;
use crate::arguments::Arguments;
use crate::bound::Bound;
use crate::device::{BLOCK_BYTES, Buffer, Device};
use crate::latencies::Latencies;
use crate::rng::Rng;

#[derive(Clone, Copy, Debug)]
enum Op {
    Read,
    Write,
}

#[derive(Clone, Copy, Debug)]
enum Pattern {
    Random,
    Sequential,
}

#[derive(Debug)]
struct Load {
    device: Device,
    op: Op,
    pattern: Pattern,
    size_bytes: usize,
    /// How many requests of this size lie side by side on the device.
    nr_places: u64,
    seed: u64,
    bound: Bound,
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
    let load = &Load { device, op, pattern, size_bytes, nr_places, seed, bound };

    let begin = Instant::now();
    let all = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..depth).map(|worker| scope.spawn(move || load.work(worker))).collect();
        workers.into_iter().map(|worker| worker.join().expect("no worker panics")).reduce(merged)
    });
    let latencies = all.expect("there is a worker")?;
    let seconds = begin.elapsed().as_secs_f64();
    let bytes = latencies.count() * size_bytes as u64;
    Ok(format!(r#"{{{}, "bytes": {bytes}, "seconds": {seconds:.6}}}"#, latencies.json()))
}

fn merged(
    all: Result<Latencies, Error>,
    one: Result<Latencies, Error>,
) -> Result<Latencies, Error> {
    let mut all = all?;
    all.merge(&one?);
    Ok(all)
}

impl Load {
    fn work(&self, worker: u64) -> Result<Latencies, Error> {
        let mut rng = Rng::new(self.seed.wrapping_add(worker << 32));
        let mut buffer = Buffer::new(self.size_bytes);
        if let Op::Write = self.op {
            buffer
                .chunks_exact_mut(8)
                .for_each(|word| word.copy_from_slice(&rng.next_u64().to_le_bytes()));
        }
        let mut latencies = Latencies::new();
        while let Some(number) = self.bound.next() {
            let place = match self.pattern {
                Pattern::Random => rng.below(self.nr_places),
                Pattern::Sequential => number % self.nr_places,
            };
            let block = place * (self.size_bytes / BLOCK_BYTES) as u64;
            let done = latencies.time(|| match self.op {
                Op::Read => self.device.read(block, &mut buffer),
                Op::Write => self.device.write(block, &buffer),
            });
            done.inspect_err(|_| self.bound.stop())?;
        }
        Ok(latencies)
    }
}
