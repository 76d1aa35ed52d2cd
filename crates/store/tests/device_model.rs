//! Disks on a device against a model, by seed: many requests open at once, completed in any order.
//!
//! `STORE_SEEDS=2000 cargo test -p store --test device_model` runs more of it.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod device;
mod frames;

use device::{Fake, Lab, NR_SECTORS, byte, plenty, range};
use frames::{Frames, SECTOR, audit, fill, gather};
use store::{
    BlockStore, Discard, Disk, Extent, Failure, Naming, OpenRead, OpenWrite, Overlay, Progress,
    SectorRange, StoreError, Token,
};

/// Numbers that a seed gives (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}

/// A disk, and what it must hold.
struct Modelled {
    disk: Disk,
    model: Vec<u8>,
    /// What a discard leaves.
    base: Vec<u8>,
}

/// A request that is not over.
enum Open {
    Read(OpenRead),
    Write(OpenWrite, Vec<u8>),
    /// Committed.
    Written(Token, Vec<u8>),
    Discarded(Token),
    Flushed(Token),
}

struct Request {
    disk: usize,
    range: SectorRange,
    open: Open,
}

impl Request {
    fn reads(&self) -> bool {
        matches!(self.open, Open::Read(_))
    }
}

fn bytes(range: SectorRange) -> std::ops::Range<usize> {
    let byte = |sector| usize::try_from(sector).unwrap() * SECTOR;
    byte(range.first())..byte(range.end())
}

struct Run {
    lab: Lab,
    rng: Rng,
    disks: Vec<Modelled>,
    requests: Vec<Request>,
    nr_busy: u64,
    nr_failed: u64,
    nr_gone: u64,
    nr_done: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let max_requests = [1, 3, 100][rng.index(3)];
        let lab = Lab::with(|fake| fake.max_requests = max_requests);
        let overlay = |offset, nr| Overlay::new(lab.slice(offset, nr), None, &lab.pool).unwrap();
        let disks = vec![
            (Disk::Device(lab.slice(0, 60)), 0, 60),
            (Disk::Device(lab.slice(60, 68)), 60, 68),
            (Disk::Overlay(overlay(128, 93)), 128, 93),
            (Disk::Overlay(overlay(131, 125)), 131, 125),
        ];
        let disks = disks.into_iter().map(|(disk, first, nr): (Disk, usize, usize)| {
            let base: Vec<u8> = (first * SECTOR..(first + nr) * SECTOR).map(byte).collect();
            Modelled { disk, model: base.clone(), base }
        });
        let disks = disks.collect();
        let requests = Vec::new();
        Self { lab, rng, disks, requests, nr_busy: 0, nr_failed: 0, nr_gone: 0, nr_done: 0 }
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..=39 => self.begin(),
            40..=64 => self.finish(),
            65..=67 if !self.requests.is_empty() => {
                let nth = self.rng.index(self.requests.len());
                self.give_up(nth);
            }
            68 if self.rng.below(3) == 0 => self.replace(),
            _ => {
                let _ = self.lab.pump();
                self.go_on();
            }
        }
        let overlays = self.disks.iter().filter_map(|one| match &one.disk {
            Disk::Overlay(overlay) => Some(overlay.pages()),
            _ => None,
        });
        let writes = self.requests.iter().filter_map(|request| match &request.open {
            Open::Write(write, _) => Some(write),
            _ => None,
        });
        audit(&self.lab.pool, overlays, &writes.collect::<Vec<_>>()).unwrap();
    }

    fn begin(&mut self) {
        let disk = self.rng.index(self.disks.len());
        let Modelled { disk: store, .. } = &mut self.disks[disk];
        let nr_sectors = BlockStore::<Frames>::geometry(store).nr_sectors;
        let nr = 1 + self.rng.below(40).min(self.rng.below(40));
        let range = range(store, self.rng.below(nr_sectors - nr + 1), nr);
        let kind = self.rng.below(12);
        let meets = |other: &Request| {
            let meets = other.range.first() < range.end() && range.first() < other.range.end();
            let flushes = kind == 11 || matches!(other.open, Open::Flushed(_));
            other.disk == disk && meets && !(kind < 5 && other.reads()) && !flushes
        };
        if self.requests.iter().any(meets) {
            return;
        }
        let pool = &mut self.lab.pool;
        let mut extents = Vec::new();
        let mut sink = |extent| extents.push(extent);
        let begun = match kind {
            0..=4 => store.begin_read(pool, range, &mut sink).map(Open::Read),
            5..=9 => {
                let mut data = vec![0; usize::try_from(nr).unwrap() * SECTOR];
                data.iter_mut().for_each(|byte| *byte = self.rng.next().to_le_bytes()[0]);
                store.begin_write(pool, range, &mut sink).map(|write| Open::Write(write, data))
            }
            10 => match store.discard(pool, range, Discard::Plain, &mut plenty()) {
                Ok(Progress::Later(token)) => Ok(Open::Discarded(token)),
                Ok(Progress::Done) => {
                    // Whole pages of an overlay, and the last one.
                    let all = nr_sectors;
                    let first = range.first().next_multiple_of(8);
                    let end = if range.end() == all { all } else { range.end() / 8 * 8 };
                    if let Ok(whole) = SectorRange::on(
                        &BlockStore::<Frames>::geometry(store),
                        first,
                        end.saturating_sub(first),
                    ) {
                        let Modelled { model, base, .. } = &mut self.disks[disk];
                        model[bytes(whole)].copy_from_slice(&base[bytes(whole)]);
                    }
                    return;
                }
                Ok(Progress::More) => panic!("steps are plenty"),
                Err(error) => Err(error),
            },
            _ => match store.flush(pool) {
                Ok(Progress::Later(token)) => Ok(Open::Flushed(token)),
                Ok(progress) => return assert_eq!(progress, Progress::Done),
                Err(error) => Err(error),
            },
        };
        match begun {
            Ok(open) => {
                self.requests.push(Request { disk, range, open });
                self.named(self.requests.len() - 1, &extents);
            }
            Err(StoreError::Busy) => self.nr_busy += 1,
            Err(error) => panic!("{error}"),
        }
    }

    /// The extents of a request are named, if they are: what is between begin and end.
    fn named(&mut self, nth: usize, extents: &[Extent]) {
        let Request { disk, range, open } = &mut self.requests[nth];
        let Modelled { disk: store, model, .. } = &mut self.disks[*disk];
        match open {
            Open::Read(read) if read.naming() == Naming::Done => {
                assert_eq!(gather(&self.lab.pool, extents), model[bytes(*range)]);
                let Open::Read(read) = self.requests.swap_remove(nth).open else { unreachable!() };
                store.end_read(&mut self.lab.pool, read);
                self.nr_done += 1;
            }
            Open::Write(write, data) if write.naming() == Naming::Done => {
                fill(&mut self.lab.pool, extents, data);
            }
            _ => assert_eq!(extents, []),
        }
    }

    /// The device carries something out, or fails it.
    fn finish(&mut self) {
        let rng = &mut self.rng;
        self.lab.fake(|fake| {
            if !fake.under_way.is_empty() {
                let result = if rng.below(12) == 0 { Err(Failure::Device) } else { Ok(()) };
                fake.finish(rng.index(fake.under_way.len()), result);
            }
        });
    }

    /// All that can go on does.
    fn go_on(&mut self) {
        let mut nth = 0;
        while nth < self.requests.len() {
            let before = self.requests.len();
            self.go_on_with(nth);
            if self.requests.len() == before {
                nth += 1;
            }
        }
    }

    fn go_on_with(&mut self, nth: usize) {
        let Request { disk, range, open } = &mut self.requests[nth];
        let (disk, range) = (*disk, *range);
        let Modelled { disk: store, model, .. } = &mut self.disks[disk];
        let pool = &mut self.lab.pool;
        let is_ready = |token: Option<&Token>| {
            token.is_none_or(|token| BlockStore::<Frames>::is_ready(store, token))
        };
        let mut extents = Vec::new();
        let mut sink = |extent| extents.push(extent);
        let result = match open {
            Open::Read(read) if is_ready(read.token()) => {
                store.resume_read(pool, read, range, &mut sink)
            }
            Open::Write(write, _) if write.naming() == Naming::Later => {
                if !is_ready(write.token()) {
                    return;
                }
                store.resume_write(pool, write, &mut sink)
            }
            Open::Write(..) if self.rng.below(2) == 0 => {
                let Open::Write(write, data) = self.requests.swap_remove(nth).open else {
                    unreachable!()
                };
                match store.commit_write(pool, write) {
                    Ok(Progress::Done) => model[bytes(range)].copy_from_slice(&data),
                    Ok(Progress::Later(token)) => {
                        let open = Open::Written(token, data);
                        self.requests.push(Request { disk, range, open });
                    }
                    Ok(Progress::More) => panic!("more of a write"),
                    Err(error) => self.failed(error),
                }
                return;
            }
            Open::Written(token, _) | Open::Discarded(token) | Open::Flushed(token)
                if is_ready(Some(token)) =>
            {
                match self.requests.swap_remove(nth).open {
                    Open::Written(token, data) => match store.conclude(pool, token) {
                        Ok(progress) => {
                            assert_eq!(progress, Progress::Done);
                            model[bytes(range)].copy_from_slice(&data);
                        }
                        Err(error) => self.failed(error),
                    },
                    Open::Discarded(token) => match store.conclude(pool, token) {
                        Ok(_) => model[bytes(range)].fill(0),
                        Err(error) => self.failed(error),
                    },
                    Open::Flushed(token) => match store.conclude(pool, token) {
                        Ok(_) => {}
                        Err(error) => self.failed(error),
                    },
                    Open::Read(_) | Open::Write(..) => unreachable!(),
                }
                self.nr_done += 1;
                return;
            }
            _ => return,
        };
        match result {
            Ok(()) => self.named(nth, &extents),
            Err(error) => {
                self.failed(error);
                self.give_up_unfinished(nth);
            }
        }
    }

    fn failed(&mut self, error: StoreError) {
        match error {
            StoreError::Device(Failure::Gone) => self.nr_gone += 1,
            StoreError::Device(Failure::Device) => self.nr_failed += 1,
            other => panic!("{other}"),
        }
    }

    fn give_up_unfinished(&mut self, nth: usize) {
        let Request { disk, open, .. } = self.requests.swap_remove(nth);
        let Modelled { disk: store, .. } = &mut self.disks[disk];
        let pool = &mut self.lab.pool;
        match open {
            Open::Read(read) => store.end_read(pool, read),
            Open::Write(write, _) => store.abort_write(pool, write),
            Open::Written(token, _) | Open::Discarded(token) | Open::Flushed(token) => {
                store.cancel(pool, token);
            }
        }
    }

    /// Nobody waits any more. What changes the disk would leave it in a state that no model knows.
    fn give_up(&mut self, nth: usize) {
        if !matches!(self.requests[nth].open, Open::Written(..) | Open::Discarded(_)) {
            self.give_up_unfinished(nth);
        }
    }

    /// The device goes, and another comes that holds the same.
    fn replace(&mut self) {
        let old = self.lab.device.borrow_mut().disconnect().unwrap();
        let mut new = Fake::new(self.lab.pool.memory());
        (new.disk, new.max_requests) = (old.disk, old.max_requests);
        assert!(self.lab.pump());
        if self.rng.below(2) == 0 {
            self.go_on();
        }
        self.lab.device.borrow_mut().connect(new);
    }

    fn end(mut self) -> (u64, u64, u64, u64) {
        while !self.requests.is_empty() {
            self.lab.fake(Fake::finish_all);
            let _ = self.lab.pump();
            self.go_on();
        }
        self.lab.fake(Fake::finish_all);
        let _ = self.lab.pump();
        assert!(!self.lab.pump());
        for nth in 0..self.disks.len() {
            let Modelled { disk, model, .. } = &mut self.disks[nth];
            for first in (0..model.len() / SECTOR).step_by(30) {
                let nr = (model.len() / SECTOR - first).min(30) as u64;
                let range = range(disk, first as u64, nr);
                let mut extents = Vec::new();
                let mut sink = |extent| extents.push(extent);
                let mut open = disk.begin_read(&mut self.lab.pool, range, &mut sink).unwrap();
                if open.naming() == Naming::Later {
                    self.lab.finish();
                    disk.resume_read(&mut self.lab.pool, &mut open, range, &mut sink).unwrap();
                }
                assert_eq!(gather(&self.lab.pool, &extents), model[bytes(range)]);
                disk.end_read(&mut self.lab.pool, open);
            }
            assert_eq!(disk.clear(&mut self.lab.pool, &mut plenty()), Progress::Done);
        }
        // Nobody wrote below the overlays.
        let below = 128 * SECTOR..usize::try_from(NR_SECTORS).unwrap() * SECTOR;
        self.lab.fake(|fake| {
            assert!(below.clone().all(|n| fake.disk[n] == byte(n)));
        });
        self.lab.assert_clean();
        (self.nr_done, self.nr_busy, self.nr_failed, self.nr_gone)
    }
}

#[test]
fn every_byte_is_as_the_model_has_it() {
    let nr_seeds = std::env::var("STORE_SEEDS").map_or(25, |nr| nr.parse().unwrap());
    let mut sums = (0, 0, 0, 0);
    for seed in 0..nr_seeds {
        println!("seed {seed}");
        let mut run = Run::new(seed);
        for _ in 0..800 {
            run.step();
        }
        let (done, busy, failed, gone) = run.end();
        sums = (sums.0 + done, sums.1 + busy, sums.2 + failed, sums.3 + gone);
    }
    println!("{} done, {} busy, {} failed, {} gone", sums.0, sums.1, sums.2, sums.3);
    assert!(sums.0 > 1000 && sums.1 > 100 && sums.2 > 100 && sums.3 > 0, "{sums:?}");
}
