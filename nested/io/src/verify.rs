//! Random reads and writes, where each read is checked against what was acknowledged.

use std::ops::Range;
use std::thread;
use std::time::Instant;

use crate::Error;
use crate::arguments::Arguments;
use crate::block::{Contents, Stamp};
use crate::bound::Bound;
use crate::device::{BLOCK_BYTES, Buffer, Device};
use crate::latencies::Latencies;
use crate::rng::Rng;

const FLUSH_ONE_IN: u64 = 64;

#[derive(Debug)]
struct Load {
    device: Device,
    seed: u64,
    /// The most blocks of a request.
    extent_blocks: u64,
    depth: u64,
    bound: Bound,
}

pub fn run(mut arguments: Arguments) -> Result<String, Error> {
    let extent_blocks = (arguments.size(64 << 10)? / BLOCK_BYTES) as u64;
    let depth = arguments.number("depth", 1, 1)?;
    let seed = arguments.number("seed", 1, 0)?;
    let device = arguments.device()?;
    let bound = arguments.bound()?;
    arguments.end()?;
    if device.nr_blocks() < depth * extent_blocks {
        return Err(Error::Usage(format!(
            "{} is smaller than --size times --depth",
            device.path()
        )));
    }
    let load = &Load { device, seed, extent_blocks, depth, bound };

    let begin = Instant::now();
    let done: Result<Vec<Done>, Error> = thread::scope(|scope| {
        let workers: Vec<_> = (0..depth)
            .map(|number| scope.spawn(move || Worker::new(load, number).work()))
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no worker panics")).collect()
    });
    let mut all = Done::new();
    for one in &done? {
        all.reads.merge(&one.reads);
        all.writes.merge(&one.writes);
        all.flushes.merge(&one.flushes);
    }
    let [reads, writes, flushes] = [&all.reads, &all.writes, &all.flushes].map(Latencies::json);
    let seconds = begin.elapsed().as_secs_f64();
    Ok(format!(
        r#"{{"reads": {{{reads}}}, "writes": {{{writes}}}, "flushes": {{{flushes}}}, "seconds": {seconds:.6}}}"#
    ))
}

#[derive(Debug)]
struct Done {
    reads: Latencies,
    writes: Latencies,
    flushes: Latencies,
}

impl Done {
    fn new() -> Self {
        Self { reads: Latencies::new(), writes: Latencies::new(), flushes: Latencies::new() }
    }
}

/// One request at a time. Of every `depth` extents one is the worker's own, so nobody else writes
/// what it reads.
struct Worker<'a> {
    load: &'a Load,
    number: u64,
    rng: Rng,
    buffer: Buffer,
    /// The generation of each block of its extents, 0 for zeroes; none before the first read.
    known: Vec<Option<u64>>,
    done: Done,
}

impl<'a> Worker<'a> {
    fn new(load: &'a Load, number: u64) -> Self {
        let nr_extents = load.device.nr_blocks() / load.extent_blocks;
        let own = (nr_extents - number).div_ceil(load.depth) * load.extent_blocks;
        Self {
            load,
            number,
            rng: Rng::new(load.seed.wrapping_add(number << 32)),
            buffer: Buffer::new(
                usize::try_from(load.extent_blocks).expect("was a usize") * BLOCK_BYTES,
            ),
            known: vec![None; usize::try_from(own).expect("a device fits memory's numbers")],
            done: Done::new(),
        }
    }

    fn work(mut self) -> Result<Done, Error> {
        let mut step = || {
            while self.load.bound.next().is_some() {
                self.step()?;
            }
            self.read_all()
        };
        step().inspect_err(|_| self.load.bound.stop())?;
        Ok(self.done)
    }

    fn step(&mut self) -> Result<(), Error> {
        if self.rng.one_in(FLUSH_ONE_IN) {
            return self.done.flushes.time(|| self.load.device.flush());
        }
        let blocks = self.choose();
        // What a block held is known before it is written, so that its generation goes on.
        if self.known[blocks.clone()].contains(&None) || self.rng.one_in(2) {
            self.read(blocks)
        } else {
            self.write(blocks)
        }
    }

    /// Some blocks of an extent, as indices of `known`.
    fn choose(&mut self) -> Range<usize> {
        let extent = usize::try_from(self.load.extent_blocks).expect("was a usize");
        let below = |rng: &mut Rng, bound: usize| {
            usize::try_from(rng.below(bound as u64)).expect("below a usize")
        };
        let start = below(&mut self.rng, extent);
        let len = 1 + below(&mut self.rng, extent - start);
        let first = below(&mut self.rng, self.known.len() / extent) * extent + start;
        first..first + len
    }

    /// Where a block of `known` lies on the device.
    fn block(&self, index: usize) -> u64 {
        let (extent, inside) =
            (index as u64 / self.load.extent_blocks, index as u64 % self.load.extent_blocks);
        (extent * self.load.depth + self.number) * self.load.extent_blocks + inside
    }

    fn read(&mut self, blocks: Range<usize>) -> Result<(), Error> {
        let bytes = blocks.len() * BLOCK_BYTES;
        let first = self.block(blocks.start);
        let (device, buffer) = (&self.load.device, &mut self.buffer[..bytes]);
        self.done.reads.time(|| device.read(first, buffer))?;
        for (index, at) in blocks.zip(0..) {
            let found = Contents::read(&self.buffer[at * BLOCK_BYTES..][..BLOCK_BYTES]);
            self.known[index] = Some(self.check(first + at as u64, self.known[index], found)?);
        }
        Ok(())
    }

    /// The generation that was found, if it is right.
    fn check(&self, block: u64, known: Option<u64>, found: Contents) -> Result<u64, Error> {
        let seed = self.load.seed;
        let generation = match found {
            Contents::Zeroes => Some(0),
            Contents::Written(stamp) => {
                (stamp == Stamp { seed, block, ..stamp }).then_some(stamp.generation)
            }
            Contents::Torn(..) => None,
        };
        match (generation, known) {
            (Some(generation), None) => Ok(generation),
            (Some(generation), Some(known)) if generation == known => Ok(generation),
            _ => {
                let path = self.load.device.path();
                let right = match known {
                    None => format!("zeroes or any generation of seed {seed} block {block}"),
                    Some(0) => Contents::Zeroes.to_string(),
                    Some(generation) => Stamp { seed, block, generation }.to_string(),
                };
                Err(Error::WrongData(format!(
                    "{path}: block {block} holds {found}; it should hold {right}"
                )))
            }
        }
    }

    fn write(&mut self, blocks: Range<usize>) -> Result<(), Error> {
        let bytes = blocks.len() * BLOCK_BYTES;
        let first = self.block(blocks.start);
        for (index, at) in blocks.clone().zip(0..) {
            let generation = self.known[index].unwrap_or(0) + 1;
            let stamp = Stamp { seed: self.load.seed, block: first + at as u64, generation };
            stamp.write(&mut self.buffer[at * BLOCK_BYTES..][..BLOCK_BYTES]);
            self.known[index] = Some(generation);
        }
        let (device, buffer) = (&self.load.device, &self.buffer[..bytes]);
        self.done.writes.time(|| device.write(first, buffer))
    }

    /// Reads every extent in which a block is known.
    fn read_all(&mut self) -> Result<(), Error> {
        let extent = usize::try_from(self.load.extent_blocks).expect("was a usize");
        for first in (0..self.known.len()).step_by(extent) {
            if self.known[first..][..extent].iter().any(Option::is_some) {
                self.read(first..first + extent)?;
            }
        }
        Ok(())
    }
}
