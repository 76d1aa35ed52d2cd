//! Many disks in one small pool, against a model of each, with the books counted anew all the time.

#![allow(clippy::unwrap_used, reason = "a test may")]
mod frames;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use frames::{Frames, POISON, SECTOR, audit, fill, gather, image, image_byte, pool, read};
use proptest::prelude::*;
use store::{
    Access, BlockSize, BlockStore, Discard, Extent, OpenRead, OpenWrite, PageDisk, PagePool,
    Progress, SectorRange, Steps, StoreError, Want,
};

const MAX_DISKS: usize = 5;
/// Sectors of a disk at first: three lowest nodes.
const SMALL: u64 = (2 << 13) + 100;
/// And when it has grown: a table of three levels.
const LARGE: u64 = (8 << 20) + 93;
/// Where things happen: at the start, across two lowest nodes, at the small end, at the large end.
const WINDOWS: [Range<u64>; 4] =
    [0..160, (1 << 13) - 40..(1 << 13) + 40, SMALL - 80..SMALL, LARGE - 80..LARGE];

/// What a disk must read as.
#[derive(Clone, Debug)]
struct Model {
    nr_sectors: u64,
    cap_pages: u64,
    over_image: bool,
    access: Access,
    /// All of it is being discarded: it is empty, but some pages have not gone back yet.
    discarding: bool,
    /// The value of each sector that is not the base's.
    sectors: BTreeMap<u64, u8>,
    /// Pages that it has.
    pages: BTreeSet<u64>,
}

impl Model {
    fn bytes(&self, first: u64, nr: u64) -> Vec<u8> {
        (first..first + nr)
            .flat_map(|sector| {
                let start = usize::try_from(sector).unwrap() * SECTOR;
                (start..start + SECTOR).map(move |n| match self.sectors.get(&sector) {
                    Some(&value) => value,
                    None if self.over_image => image_byte(n),
                    None => 0,
                })
            })
            .collect()
    }

    fn write(&mut self, range: SectorRange, value: u8) {
        for sector in range.first()..range.end() {
            self.sectors.insert(sector, value);
            self.pages.insert(sector / 8);
        }
    }

    /// Drops pages: they read as the base has them.
    fn drop_pages(&mut self, pages: Range<u64>) {
        let pages = pages.start..pages.end.max(pages.start);
        let gone: Vec<u64> = self.pages.range(pages).copied().collect();
        for page in gone {
            self.pages.remove(&page);
            (page * 8..page * 8 + 8).for_each(|sector| _ = self.sectors.remove(&sector));
        }
    }

    /// The pages that a discard drops.
    fn discarded(&self, range: SectorRange) -> Range<u64> {
        let end =
            if range.end() == self.nr_sectors { range.end().div_ceil(8) } else { range.end() / 8 };
        range.first().div_ceil(8)..end
    }
}

struct Write {
    disk: u32,
    range: SectorRange,
    value: u8,
    open: OpenWrite,
}

struct Read {
    open: OpenRead,
    extents: Vec<Extent>,
    expected: Vec<u8>,
}

struct Lab {
    pool: PagePool<Frames>,
    /// By a number of their own: their places change.
    disks: Vec<(u32, PageDisk, Model)>,
    next: u32,
    writes: Vec<Write>,
    reads: Vec<Read>,
}

/// Something to do, with disks and open requests picked among those there are.
#[derive(Clone, Debug)]
enum Step {
    /// Copies some of its sectors, all of which are to be kept if it is committed at once.
    Write {
        disk: usize,
        at: Span,
        value: u8,
        end: End,
    },
    EndWrite {
        which: usize,
        commit: bool,
    },
    Read {
        disk: usize,
        at: Span,
        keep_open: bool,
    },
    EndRead {
        which: usize,
    },
    Discard {
        disk: usize,
        at: Span,
        kind: Discard,
        steps: u32,
    },
    DiscardAll {
        disk: usize,
        steps: u32,
    },
    Snapshot {
        disk: usize,
        access: Access,
    },
    Grow {
        disk: usize,
    },
    Drop {
        disk: usize,
        steps: u32,
    },
}

#[derive(Clone, Copy, Debug)]
enum End {
    Commit,
    /// After that many sectors.
    Abort(usize),
    Later,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    window: usize,
    from: u64,
    nr: u64,
    /// Of the whole disk, where it is a discard.
    all: bool,
}

/// Nodes of the largest table with that many pages side by side; fewer than one lowest node holds.
fn nodes_for(nr_pages: u64) -> u64 {
    assert!((1..1024).contains(&nr_pages));
    3
}

impl Lab {
    fn new() -> Self {
        let mut pool = pool(80);
        let image = image(&mut pool);
        let plain = |cap| PageDisk::new(SMALL, BlockSize::B512, cap, &pool).unwrap();
        let mut overlay = PageDisk::overlay(image, Some(24), &pool).unwrap();
        let disks = [plain(30), plain(12)];
        overlay.grow(&mut pool, SMALL, 24).unwrap();
        let mut lab =
            Self { pool, disks: Vec::new(), next: 0, writes: Vec::new(), reads: Vec::new() };
        for (disk, over_image) in disks.into_iter().zip([false, false]).chain([(overlay, true)]) {
            let model = Model {
                nr_sectors: SMALL,
                cap_pages: disk.usage().cap_pages,
                over_image,
                access: Access::ReadWrite,
                discarding: false,
                sectors: BTreeMap::new(),
                pages: BTreeSet::new(),
            };
            lab.add(disk, model);
        }
        lab
    }

    fn add(&mut self, disk: PageDisk, model: Model) {
        self.disks.push((self.next, disk, model));
        self.next += 1;
    }

    fn range(&self, at: usize, span: Span) -> SectorRange {
        let (_, disk, model) = &self.disks[at];
        let geometry = BlockStore::<Frames>::geometry(disk);
        if span.all {
            return SectorRange::on(&geometry, 0, model.nr_sectors).unwrap();
        }
        let window = match &WINDOWS[span.window] {
            window if window.end <= model.nr_sectors => window,
            _ => &WINDOWS[0],
        };
        let first = window.start + span.from % (window.end - window.start);
        let nr = span.nr.min(window.end - first);
        SectorRange::on(&geometry, first, nr).unwrap()
    }

    fn has_writes(&self, disk: u32) -> bool {
        self.writes.iter().any(|write| write.disk == disk)
    }

    fn do_step(&mut self, step: &Step) {
        let nr = self.disks.len();
        match *step {
            Step::Write { disk, at, value, end } => self.write(disk % nr, at, value, end),
            Step::EndWrite { which, commit } => self.end_write(which, commit),
            Step::Read { disk, at, keep_open } => {
                let range = self.range(disk % nr, Span { all: false, ..at });
                let (_, disk, model) = &mut self.disks[disk % nr];
                let mut extents = Vec::new();
                let sink = &mut |extent| extents.push(extent);
                let open = disk.begin_read(&mut self.pool, range, sink).unwrap();
                let expected = model.bytes(range.first(), range.nr());
                assert_eq!(gather(&self.pool, &extents), expected);
                if keep_open && self.reads.len() < 3 {
                    self.reads.push(Read { open, extents, expected });
                } else {
                    disk.end_read(&mut self.pool, open);
                }
            }
            Step::EndRead { which } => self.end_read(which),
            Step::Discard { disk, at, kind, steps } => self.discard(disk % nr, at, kind, steps),
            Step::DiscardAll { disk, steps } => {
                let busy = self.has_writes(self.disks[disk % nr].0);
                let (_, disk, model) = &mut self.disks[disk % nr];
                let result = disk.discard_all(&mut self.pool, &mut Steps::new(steps));
                let expected = if busy {
                    Err(StoreError::Busy)
                } else if model.access == Access::ReadOnly {
                    Err(StoreError::ReadOnly)
                } else {
                    if !model.discarding {
                        model.drop_pages(0..LARGE);
                    }
                    model.discarding = result == Ok(Progress::More);
                    Ok(if model.discarding { Progress::More } else { Progress::Done })
                };
                assert_eq!(result, expected);
            }
            Step::Snapshot { disk, access } if nr < MAX_DISKS => {
                let busy = self.has_writes(self.disks[disk % nr].0);
                let free = self.pool.nr_free();
                let (_, disk, model) = &mut self.disks[disk % nr];
                match disk.snapshot(&mut self.pool, access) {
                    Ok(snapshot) => {
                        assert!(!busy);
                        assert_eq!(self.pool.nr_free(), free);
                        let model = Model { access, discarding: false, ..model.clone() };
                        self.add(snapshot, model);
                    }
                    Err(error) => assert_eq!((error, busy), (StoreError::Busy, true)),
                }
            }
            Step::Grow { disk } => {
                let busy = self.has_writes(self.disks[disk % nr].0);
                let (_, disk, model) = &mut self.disks[disk % nr];
                match disk.grow(&mut self.pool, LARGE, 24) {
                    Err(StoreError::ReadOnly) => assert_eq!(model.access, Access::ReadOnly),
                    Ok(()) => {
                        assert!(!busy && model.access == Access::ReadWrite);
                        model.nr_sectors = LARGE;
                        model.cap_pages = model.cap_pages.max(24);
                    }
                    Err(error) if busy => assert_eq!(error, StoreError::Busy),
                    Err(error) => self.expect_no_memory(error),
                }
            }
            Step::Drop { disk, steps } if nr > 1 && !self.has_writes(self.disks[disk % nr].0) => {
                let (_, mut disk, _) = self.disks.swap_remove(disk % nr);
                let progress = disk.clear(&mut self.pool, &mut Steps::new(steps));
                self.audit(Some(&disk));
                while progress == Progress::More
                    && disk.clear(&mut self.pool, &mut Steps::new(steps)) == Progress::More
                {
                }
            }
            Step::Snapshot { .. } | Step::Drop { .. } => {}
        }
    }

    fn write(&mut self, disk: usize, at: Span, value: u8, end: End) {
        let range = self.range(disk, Span { all: false, ..at });
        let (id, disk, model) = &mut self.disks[disk];
        let id = *id;
        let mut extents = Vec::new();
        let open = match disk.begin_write(&mut self.pool, range, &mut |e| extents.push(e)) {
            Ok(open) => open,
            Err(StoreError::ReadOnly) => return assert_eq!(model.access, Access::ReadOnly),
            Err(StoreError::Busy) => return assert!(self.has_writes(id)),
            Err(StoreError::CapReached { cap_pages }) => {
                assert_eq!(cap_pages, model.cap_pages);
                let mut pages = model.pages.clone();
                for open in self.writes.iter().filter(|write| write.disk == id) {
                    pages.extend(open.range.first() / 8..open.range.end().div_ceil(8));
                }
                pages.extend(range.first() / 8..range.end().div_ceil(8));
                // A page that an open write is to bring counts even if another has brought it.
                let nr_pages = u64::try_from(pages.len()).unwrap();
                // At most two lowest nodes and what is above them come with the write.
                let nr_all = nr_pages + disk.usage().nr_nodes + 4;
                let full = nr_pages > cap_pages || nr_all > cap_pages + nodes_for(cap_pages);
                return assert!(full || self.has_writes(id));
            }
            Err(error) => return self.expect_no_memory(error),
        };
        assert_eq!(model.access, Access::ReadWrite);
        let nr_sectors = usize::try_from(range.nr()).unwrap();
        let nr_copied = match end {
            Abort(nr) => nr.min(nr_sectors),
            Commit | Later => nr_sectors,
        };
        fill(&mut self.pool, &extents, &vec![value; nr_copied * SECTOR]);
        let write = Write { disk: id, range, value, open };
        self.writes.push(write);
        let last = self.writes.len() - 1;
        match end {
            Commit => self.end_write(last, true),
            Abort(_) => self.end_write(last, false),
            Later if self.writes.len() > 3 => self.end_write(0, true),
            Later => {}
        }
    }

    fn end_write(&mut self, which: usize, commit: bool) {
        if self.writes.is_empty() {
            return;
        }
        let write = self.writes.remove(which % self.writes.len());
        let (_, disk, model) = self.disks.iter_mut().find(|(id, _, _)| *id == write.disk).unwrap();
        if commit {
            disk.commit_write(&mut self.pool, write.open).unwrap();
            model.write(write.range, write.value);
        } else {
            disk.abort_write(&mut self.pool, write.open);
        }
    }

    fn end_read(&mut self, which: usize) {
        if self.reads.is_empty() {
            return;
        }
        let read = self.reads.remove(which % self.reads.len());
        assert_eq!(gather(&self.pool, &read.extents), read.expected);
        self.pool.end_read(read.open);
    }

    fn discard(&mut self, at: usize, span: Span, kind: Discard, steps: u32) {
        let range = self.range(at, span);
        let busy = self.has_writes(self.disks[at].0);
        self.audit(None);
        let error = loop {
            let (_, disk, _) = &mut self.disks[at];
            match disk.discard(&mut self.pool, range, kind, &mut Steps::new(steps)) {
                Ok(Progress::Done) => break None,
                Ok(_) => {}
                Err(error) => break Some(error),
            }
        };
        let (_, disk, model) = &mut self.disks[at];
        let pages = model.discarded(range);
        match error {
            None => {
                assert!(!busy && model.access == Access::ReadWrite);
                if kind == Discard::Secure {
                    assert!(!model.over_image);
                    // What stays of the range is zeroes in pages.
                    for sector in range.first()..range.end().min(range.first() + 16) {
                        model.sectors.remove(&sector);
                    }
                    for sector in range.end().saturating_sub(16).max(range.first())..range.end() {
                        model.sectors.remove(&sector);
                    }
                }
                model.drop_pages(pages);
            }
            Some(StoreError::ReadOnly) => assert_eq!(model.access, Access::ReadOnly),
            Some(StoreError::NotSecure) => assert!(model.over_image && kind == Discard::Secure),
            Some(StoreError::Busy) => assert!(busy),
            Some(error) => {
                // Some of it was done: of each page all or nothing.
                let pages = pages.start..pages.end.max(pages.start);
                let numbers: Vec<u64> = model.pages.range(pages).copied().collect();
                for number in numbers {
                    let first = number * 8;
                    let nr = (model.nr_sectors - first).min(8);
                    let seen = read(disk, &mut self.pool, first, nr);
                    if seen != model.bytes(first, nr) {
                        model.drop_pages(number..number + 1);
                        assert_eq!(seen, model.bytes(first, nr));
                    }
                }
                // Which of its pages went while they read the same nobody can tell.
                self.settle(at, range, kind);
                self.expect_no_memory(error);
            }
        }
    }

    /// After a discard that failed: makes the model's pages and edges those of the disk.
    fn settle(&mut self, at: usize, range: SectorRange, kind: Discard) {
        let (_, disk, model) = &mut self.disks[at];
        if kind == Discard::Secure {
            for sector in [range.first() / 8 * 8, (range.end() - 1) / 8 * 8] {
                for sector in sector.max(range.first())..(sector + 8).min(range.end()) {
                    let seen = read(disk, &mut self.pool, sector, 1);
                    if seen != model.bytes(sector, 1) {
                        assert_eq!(seen, [0; SECTOR]);
                        model.sectors.remove(&sector);
                    }
                }
            }
        }
        while disk.usage().nr_pages < model.pages.len() as u64 {
            let mut alike = model.pages.iter().copied().filter(|page| {
                let bare = Model { sectors: BTreeMap::new(), ..model.clone() };
                bare.bytes(page * 8, 8) == model.bytes(page * 8, 8)
            });
            let page = alike.next().expect("a page went that still reads as written");
            model.drop_pages(page..page + 1);
        }
    }

    fn expect_no_memory(&self, error: StoreError) {
        let StoreError::NoMemory { free, total } = error else { panic!("{error}") };
        assert_eq!((free, total), (self.pool.nr_free().min(free), self.pool.nr_total()));
        assert!(free <= self.pool.nr_reserve(), "{free} pages are free");
    }

    fn audit(&self, cleared: Option<&PageDisk>) {
        let disks = self.disks.iter().map(|(_, disk, _)| disk).chain(cleared);
        let writes: Vec<_> = self.writes.iter().map(|write| &write.open).collect();
        audit(&self.pool, disks, &writes).unwrap();
    }

    fn check(&mut self) {
        self.audit(None);
        for (_, disk, model) in &mut self.disks {
            let usage = disk.usage();
            assert_eq!(usage.nr_pages, model.pages.len() as u64);
            assert_eq!(usage.cap_pages, model.cap_pages);
            assert!(usage.nr_pages <= usage.cap_pages);
            let nr_all = usage.nr_pages + usage.nr_nodes;
            assert!(nr_all <= usage.cap_pages + nodes_for(usage.cap_pages));
        }
    }
}

use End::{Abort, Commit, Later};

fn span() -> impl Strategy<Value = Span> {
    let nr = prop_oneof![3 => 1..=16u64, 1 => 1..=96u64];
    (0..4usize, 0..160u64, nr, proptest::bool::weighted(0.15), proptest::bool::ANY).prop_map(
        |(window, from, nr, all, whole)| {
            let (from, nr) =
                if whole { (from / 8 * 8, nr.next_multiple_of(8)) } else { (from, nr) };
            Span { window, from, nr, all }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let disk = || 0..MAX_DISKS;
    let steps = || 1..6u32;
    let value = 1..POISON;
    let kind = prop_oneof![Just(Discard::Plain), Just(Discard::Secure)];
    let access = prop_oneof![2 => Just(Access::ReadWrite), 1 => Just(Access::ReadOnly)];
    let end = prop_oneof![5 => Just(Commit), 2 => (0..97usize).prop_map(Abort), 2 => Just(Later)];
    prop_oneof![
        10 => (disk(), span(), value, end)
            .prop_map(|(disk, at, value, end)| Step::Write { disk, at, value, end }),
        2 => (0..4usize, any::<bool>())
            .prop_map(|(which, commit)| Step::EndWrite { which, commit }),
        4 => (disk(), span(), any::<bool>())
            .prop_map(|(disk, at, keep_open)| Step::Read { disk, at, keep_open }),
        2 => (0..4usize).prop_map(|which| Step::EndRead { which }),
        4 => (disk(), span(), kind, steps())
            .prop_map(|(disk, at, kind, steps)| Step::Discard { disk, at, kind, steps }),
        1 => (disk(), 0..6u32).prop_map(|(disk, steps)| Step::DiscardAll { disk, steps }),
        3 => (disk(), access).prop_map(|(disk, access)| Step::Snapshot { disk, access }),
        1 => disk().prop_map(|disk| Step::Grow { disk }),
        2 => (disk(), steps()).prop_map(|(disk, steps)| Step::Drop { disk, steps }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Plain disks, an overlay, their snapshots and clones in a pool of poisoned pages that runs
    /// dry, with reads and writes left open and copies that fail: each disk equals its model, an
    /// open read keeps its bytes, nobody sees a byte of another's, and after every step the
    /// references counted anew are those in the books and free + used = total.
    #[test]
    fn disks_equal_their_models(steps in proptest::collection::vec(step(), 1..80)) {
        let mut lab = Lab::new();
        let total = lab.pool.nr_total();
        for step in &steps {
            lab.do_step(step);
            lab.check();
        }
        while !lab.writes.is_empty() {
            lab.end_write(0, true);
        }
        while !lab.reads.is_empty() {
            lab.end_read(0);
        }
        for (_, disk, model) in &mut lab.disks {
            for window in WINDOWS.iter().filter(|window| window.end <= model.nr_sectors) {
                let nr = window.end - window.start;
                let seen = read(disk, &mut lab.pool, window.start, nr);
                prop_assert!(seen == model.bytes(window.start, nr));
            }
        }
        for (_, mut disk, _) in core::mem::take(&mut lab.disks) {
            prop_assert_eq!(disk.clear(&mut lab.pool, &mut Steps::new(9999)), Progress::Done);
        }
        prop_assert_eq!(lab.pool.nr_free(), total);
        // All of them can be had again.
        let again = (0..total).filter(|_| lab.pool.take(Want::Exchange).is_ok()).count();
        prop_assert_eq!(again as u64, total);
    }
}
