//! What things cost the page store, counted; `docs/stores.md` has the numbers.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::cell::Cell;
use std::fmt;

use store::{
    Access, BlockSize, BlockStore, FrameAddr, FrameMemory, PageDisk, PagePool, Progress,
    SectorRange, Steps,
};
use xen_abi::{Gfn, PAGE_SIZE};

const PAGES_PER_GIB: u64 = 1 << 18;

/// What was done to the frames.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Cost {
    /// Words loaded, of tables and the pool's books.
    loads: u32,
    /// Words stored.
    stores: u32,
    /// Pages copied whole.
    copied: u32,
    /// Pages filled with zeroes.
    zeroed: u32,
    /// Pages taken from the pool.
    taken: i64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { loads, stores, copied, zeroed, taken } = self;
        write!(f, "{loads} | {stores} | {copied} | {zeroed} | {taken}")
    }
}

/// Frames that count. Those that are never touched take no memory of the test.
#[derive(Debug)]
struct Counted {
    bytes: Vec<u8>,
    loads: Cell<u32>,
    cost: Cost,
}

impl Counted {
    fn start(at: FrameAddr) -> usize {
        usize::try_from(at.gfn().0).unwrap() * PAGE_SIZE + usize::from(at.offset())
    }
}

impl FrameMemory for Counted {
    fn read(&self, at: FrameAddr, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes[Self::start(at)..][..into.len()]);
    }

    fn write(&mut self, at: FrameAddr, from: &[u8]) {
        self.bytes[Self::start(at)..][..from.len()].copy_from_slice(from);
    }

    fn zero(&mut self, at: FrameAddr, len_bytes: usize) {
        assert_eq!(len_bytes, PAGE_SIZE);
        self.cost.zeroed += 1;
        self.bytes[Self::start(at)..][..len_bytes].fill(0);
    }

    fn copy(&mut self, from: FrameAddr, to: FrameAddr, len_bytes: usize) {
        assert_eq!(len_bytes, PAGE_SIZE);
        self.cost.copied += 1;
        let from = Self::start(from);
        self.bytes.copy_within(from..from + len_bytes, Self::start(to));
    }

    fn load_u32(&self, at: FrameAddr) -> u32 {
        self.loads.set(self.loads.get() + 1);
        u32::from_ne_bytes(*self.bytes[Self::start(at)..].first_chunk().unwrap())
    }

    fn store_u32(&mut self, at: FrameAddr, value: u32) {
        self.cost.stores += 1;
        self.write(at, &value.to_ne_bytes());
    }
}

/// What `work` costs.
fn cost<T>(
    pool: &mut PagePool<Counted>,
    work: impl FnOnce(&mut PagePool<Counted>) -> T,
) -> (Cost, T) {
    pool.memory_mut().cost = Cost::default();
    pool.memory_mut().loads.set(0);
    let before = pool.nr_free();
    let done = work(pool);
    let loads = pool.memory().loads.get();
    let taken = before.cast_signed() - pool.nr_free().cast_signed();
    (Cost { loads, taken, ..pool.memory().cost }, done)
}

/// Begins and commits; the copy between them is the same for every disk.
fn write(disk: &mut PageDisk, pool: &mut PagePool<Counted>, first: u64, nr: u64) {
    let range = SectorRange::on(&BlockStore::<Counted>::geometry(disk), first, nr).unwrap();
    let open = disk.begin_write(pool, range, &mut |_| ()).unwrap();
    disk.commit_write(pool, open).unwrap();
}

fn read(disk: &mut PageDisk, pool: &mut PagePool<Counted>, first: u64, nr: u64) {
    let range = SectorRange::on(&BlockStore::<Counted>::geometry(disk), first, nr).unwrap();
    let open = disk.begin_read(pool, range, &mut |_| ()).unwrap();
    disk.end_read(pool, open);
}

/// A disk of `nr_pages` pages, all written, and the rows of its costs.
fn rows(nr_pages: u64, size: &str) -> (Vec<String>, u64) {
    let nr_frames = nr_pages + nr_pages / 256 + 2000;
    let bytes = vec![0; usize::try_from(nr_frames + 1).unwrap() * PAGE_SIZE];
    let memory = Counted { bytes, loads: Cell::new(0), cost: Cost::default() };
    let mut pool = PagePool::new(memory, &[(Gfn(1), nr_frames)]).unwrap();
    let mut disk = PageDisk::new(nr_pages * 8, BlockSize::B512, nr_pages, &pool).unwrap();
    for first in (0..nr_pages * 8).step_by(1 << 15) {
        write(&mut disk, &mut pool, first, 1 << 15);
    }
    assert_eq!(disk.usage().nr_pages, nr_pages);
    let nr_nodes = disk.usage().nr_nodes;

    let pool = &mut pool;
    let mut rows = Vec::new();
    let mut row = |what: &str, cost: Cost| rows.push(format!("| {what}, {size} | {cost} |"));
    row("read of 4 KiB", cost(pool, |pool| read(&mut disk, pool, 800, 8)).0);
    row("write of 4 KiB", cost(pool, |pool| write(&mut disk, pool, 800, 8)).0);
    row("write of 128 KiB", cost(pool, |pool| write(&mut disk, pool, 800, 256)).0);
    let (taken, mut snapshot) = cost(pool, |pool| disk.snapshot(pool, Access::ReadOnly).unwrap());
    row("snapshot", taken);
    let (taken, mut clone) = cost(pool, |pool| disk.snapshot(pool, Access::ReadWrite).unwrap());
    row("clone", taken);
    row("first write of 4 KiB to a clone", cost(pool, |pool| write(&mut clone, pool, 800, 8)).0);
    row("the next one beside it", cost(pool, |pool| write(&mut clone, pool, 808, 8)).0);
    row("the next one elsewhere", cost(pool, |pool| write(&mut clone, pool, 8 << 11, 8)).0);
    let (dropped, progress) = cost(pool, |pool| snapshot.clear(pool, &mut Steps::new(1)));
    assert_eq!(progress, Progress::Done);
    row("removal of a snapshot", dropped);
    (rows, nr_nodes)
}

#[test]
fn the_documentation_has_what_sharing_costs() {
    let (mut all, _) = rows(1 << 12, "16 MiB");
    let (large, nr_nodes) = rows(PAGES_PER_GIB, "1 GiB");
    all.extend(large);

    // A word for each page and each node, in whole pages.
    let nr_words = (PAGES_PER_GIB + nr_nodes).div_ceil(1024);
    let nr_overhead = nr_nodes + nr_words;
    assert_eq!((nr_nodes, nr_words), (257, 257));
    assert!(nr_overhead * 1000 <= PAGES_PER_GIB * 2, "{nr_overhead} pages are more than 0.2 %");
    all.push(format!(
        "{nr_nodes} pages of nodes and {nr_words} of the pool's words: 0.{:03} %",
        nr_overhead * 100_000 / PAGES_PER_GIB
    ));
    let docs =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/stores.md"))
            .unwrap();
    let missing: Vec<_> = all.iter().filter(|row| !docs.contains(*row)).collect();
    all.iter().for_each(|row| println!("{row}"));
    assert!(missing.is_empty(), "docs/stores.md lacks {missing:#?}");
}
