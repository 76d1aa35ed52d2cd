//! Random requests to a random controller that fails now and then, against a model of its disks.
//!
//! `SIM_SEED=n` runs one history, `SIM_SEEDS=n` so many.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

mod simulated;

use std::collections::BTreeMap;
use std::time::Duration;

use nvme::{NamespaceId, State, Support};
use sim::{Page, Rng, seeds};
use simulated::{Act, Bad, CAP, Lab, SimNamespace, device};
use store::{Buffer, Completion, Failure, Flushing, Refusal, Request, Tag};
use xen_abi::{Gfn, PAGE_SIZE};

const NR_PAGES: u64 = 60;

/// A change of a sector. They never overlap in time.
#[derive(Clone, Copy, Debug)]
struct Change {
    stamp: u64,
    /// When it was done; `None` where it failed, or is under way.
    done: Option<u64>,
}

#[derive(Clone, Debug)]
enum Op {
    Read,
    Write,
    Flush,
    Zeroes,
}

#[derive(Clone, Debug)]
struct Open {
    nsid: NamespaceId,
    op: Op,
    first: u64,
    nr: u64,
    begun: u64,
    /// The pages that it was lent for.
    lent: Lent,
}

/// Pages that are not the controller's, if a buffer is made of such.
type Lent = Option<Vec<(Gfn, Page)>>;

struct Model {
    lab: Lab,
    rng: Rng,
    /// Of each sector of each namespace, oldest first.
    sectors: BTreeMap<NamespaceId, Vec<Vec<Change>>>,
    /// When the last flush that was done had begun.
    flushed: BTreeMap<NamespaceId, u64>,
    open: BTreeMap<u64, Open>,
    /// Counts everything that happens.
    clock: u64,
    stamp: u64,
    nr: [u32; 4],
    nr_lent: u32,
}

/// A whole sector of one stamp; 0 is what it holds at first.
fn stamp_of(bytes: &[u8]) -> u64 {
    let words = bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word));
    let first = words.clone().next().unwrap();
    assert!(words.clone().all(|word| word == first), "a torn sector");
    first
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let bus = device(rng.next_u64(), NR_PAGES);
        {
            let mut device = bus.device();
            device.namespaces = vec![
                SimNamespace::new(1, 9, 700),
                SimNamespace::new(2, 12, 90),
                SimNamespace::new(9, 9, 64),
            ];
            let entries = [1, 3, 7, 31, 63, 1023][rng.index(6)];
            device.cap = CAP & !0xffff | entries;
            device.mdts = [0, 1, 2, 5][rng.index(4)];
            device.oncs = [0b1100, 0b1100, 0b0100, 0][rng.index(4)];
            device.vs = [0x0001_0400, 0x0002_0000][rng.index(2)];
            if device.vs == 0x0002_0000 {
                device.discard_limits = [(0, 0), (3, 0), (0, 5), (7, 2)][rng.index(4)];
            }
            device.vwc = u8::from(!rng.one_in(4));
            device.ready_delay = rng.below(5) as u32;
            device.manual = true;
        }
        let lab = Lab::new(bus);
        let disks = lab.controller.namespaces().iter();
        let sectors = disks
            .map(|found| {
                let nr_sectors = found.disk.unwrap().geometry.nr_sectors as usize;
                (found.nsid, vec![vec![Change { stamp: 0, done: Some(0) }]; nr_sectors])
            })
            .collect();
        let mut trouble = rng.fork();
        lab.device().act = Box::new(move |sqe| match trouble.below(400) {
            _ if sqe.queue == 0 => Act::Do,
            0..10 => Act::Fail(Bad(2, 0x81, false)),
            10..13 => Act::Fail(Bad(0, 0x06, true)),
            13 => Act::Hang,
            14 => Act::DoInSilence,
            _ => Act::Do,
        });
        let (flushed, open) = (BTreeMap::new(), BTreeMap::new());
        Self { lab, rng, sectors, flushed, open, clock: 1, stamp: 0, nr: [0; 4], nr_lent: 0 }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A range that nothing under way touches.
    fn range(&mut self, nsid: NamespaceId) -> Option<(u64, u64)> {
        let disk = self.lab.controller.disk(nsid)?;
        let (block, nr_sectors) = (disk.geometry.logical.sectors(), disk.geometry.nr_sectors);
        let nr_blocks = 1 + match self.rng.below(4) {
            0 => 0,
            1 => self.rng.below(8),
            _ => self.rng.below(200 / block),
        };
        let first = self.rng.below(nr_sectors / block) * block;
        let nr = (nr_blocks * block).min(nr_sectors - first);
        let free = self.open.values().all(|open| {
            open.nsid != nsid || open.first + open.nr <= first || first + nr <= open.first
        });
        free.then_some((first, nr))
    }

    fn change(&mut self, nsid: NamespaceId, first: u64, nr: u64, stamp: u64) {
        for sector in first..first + nr {
            let history = &mut self.sectors.get_mut(&nsid).unwrap()[sector as usize];
            history.push(Change { stamp, done: None });
        }
    }

    fn submit(&mut self) {
        let nsid = NamespaceId([1, 2, 9][self.rng.index(3)]);
        let Some((first, nr)) = self.range(nsid) else { return };
        let disk = self.lab.controller.disk(nsid).unwrap();
        let tag = self.lab.tag();
        let begun = self.tick();
        let mut lent = None;
        let kind = self.rng.below(8);
        let controller = &mut self.lab.controller;
        let (op, result) = match kind {
            0 => {
                let result = controller.submit(nsid, tag, Request::Flush);
                (Op::Flush, result.map_err(|refused| refused.reason))
            }
            1 => {
                let request = Request::Discard { sector: first, nr_sectors: nr };
                let result = controller.submit(nsid, tag, request);
                (Op::Zeroes, result.map_err(|refused| refused.reason))
            }
            2 => (Op::Zeroes, controller.submit_write_zeroes(nsid, tag, first, nr)),
            3..5 => {
                let Some(buffer) = self.buffer(nr as u32, &mut lent) else { return };
                let request = Request::Read { sector: first, buffer };
                (Op::Read, self.taken(nsid, tag, request))
            }
            _ => {
                let Some(buffer) = self.buffer(nr as u32, &mut lent) else { return };
                let stamp = (self.stamp + 1).to_le_bytes().repeat(PAGE_SIZE / 8);
                self.pages(&buffer, &lent).iter().for_each(|page| page.write(0, &stamp));
                (Op::Write, self.taken(nsid, tag, Request::Write { sector: first, buffer }))
            }
        };
        match result {
            Ok(()) => {}
            Err(Refusal::Full { .. }) => return self.unmap(lent),
            Err(Refusal::Failed(Failure::NotSupported)) => {
                match op {
                    Op::Flush => assert_eq!(disk.flushing, Flushing::No),
                    _ => {
                        assert!(
                            disk.geometry.discard.is_none() || disk.write_zeroes == Support::No
                        );
                    }
                }
                return;
            }
            Err(other) => panic!("{other:?}"),
        }
        let (first, nr) = if matches!(op, Op::Flush) { (0, 0) } else { (first, nr) };
        match op {
            Op::Write => {
                self.stamp += 1;
                self.change(nsid, first, nr, self.stamp);
            }
            Op::Zeroes => self.change(nsid, first, nr, 0),
            Op::Read | Op::Flush => {}
        }
        self.nr[op.clone() as usize] += 1;
        self.nr_lent += u32::from(lent.is_some());
        self.open.insert(tag.0, Open { nsid, op, first, nr, begun, lent });
    }

    /// A buffer, maybe of pages that are lent.
    fn buffer(&mut self, nr_sectors: u32, lent: &mut Lent) -> Option<Buffer> {
        if self.rng.one_in(2)
            && let Some((buffer, pages)) = self.lab.lend(nr_sectors)
        {
            *lent = Some(pages);
            return Some(buffer);
        }
        self.lab.controller.reserve(nr_sectors)
    }

    fn pages(&self, buffer: &Buffer, lent: &Lent) -> Vec<Page> {
        match lent {
            Some(pages) => pages.iter().map(|(_, page)| page.clone()).collect(),
            None => self.lab.pages(buffer),
        }
    }

    /// Whoever has lent pages takes them back.
    fn unmap(&self, lent: Lent) {
        lent.into_iter().flatten().for_each(|(frame, _)| self.lab.device().unmap(frame));
    }

    fn taken(
        &mut self,
        nsid: NamespaceId,
        tag: Tag,
        request: Request<Buffer>,
    ) -> Result<(), Refusal> {
        self.lab.controller.submit(nsid, tag, request).map_err(|refused| {
            let (Request::Read { buffer, .. } | Request::Write { buffer, .. }) = refused.request
            else {
                panic!("another request")
            };
            self.lab.controller.give_back(buffer);
            refused.reason
        })
    }

    fn take(&mut self) {
        for nsid in [1, 2, 9].map(NamespaceId) {
            for completion in self.lab.completions(nsid) {
                self.completed(nsid, completion);
            }
        }
    }

    fn completed(&mut self, nsid: NamespaceId, completion: Completion<Buffer>) {
        let Completion { tag, result, buffer } = completion;
        let open = self.open.remove(&tag.0).expect("each once");
        assert_eq!(open.nsid, nsid);
        let now = self.tick();
        let pages =
            buffer.as_ref().map(|buffer| self.pages(buffer, &open.lent)).unwrap_or_default();
        let range = open.first as usize..(open.first + open.nr) as usize;
        let sectors = self.sectors.get_mut(&nsid).unwrap();
        match open.op {
            Op::Flush if result.is_ok() => {
                let last = self.flushed.entry(nsid).or_insert(0);
                *last = open.begun.max(*last);
            }
            Op::Write | Op::Zeroes if result.is_ok() => {
                for history in &mut sectors[range] {
                    history.last_mut().unwrap().done = Some(now);
                }
            }
            Op::Read if result.is_ok() => {
                let bytes: Vec<u8> =
                    pages.iter().flat_map(|page| page.bytes(0..PAGE_SIZE)).collect();
                for (history, bytes) in sectors[range].iter().zip(bytes.chunks(512)) {
                    let found = stamp_of(bytes);
                    let last = history.iter().rposition(|change| change.done.is_some()).unwrap();
                    let may = &history[last..];
                    assert!(may.iter().any(|change| change.stamp == found), "{found}: {may:?}");
                }
            }
            _ => {}
        }
        assert_eq!(buffer.is_some(), matches!(open.op, Op::Read | Op::Write));
        if let Some(buffer) = buffer {
            self.lab.controller.give_back(buffer);
            self.unmap(open.lent);
        }
    }

    fn round(&mut self) {
        for _ in 0..self.rng.below(6) {
            self.submit();
        }
        let next = if self.rng.one_in(3) {
            self.lab.controller.publish();
            None
        } else {
            self.lab.step()
        };
        let max = self.rng.index(8);
        self.lab.device().run(max);
        match self.rng.below(200) {
            0 => self.lab.device().csts |= 2,
            1 => {
                let cid = self.rng.next_u64() as u16;
                let mut device = self.lab.device();
                // Beside those that it owes there must be room for a lie.
                let has_room = device.pending.len() < 5 && device.cap & 0xffff >= 31;
                if device.csts == 1
                    && has_room
                    && device.queues.contains_key(&1)
                    && device.pending.iter().all(|sqe| sqe.cid != cid)
                {
                    device.post(1, [0, 1 << 16], cid, 0);
                }
            }
            _ => {}
        }
        if !self.rng.one_in(4) {
            self.take();
        }
        if let Some(next) = next
            && self.rng.one_in(3)
        {
            self.lab.now = self.lab.now.max(next);
        }
    }

    /// What is on the medium when the power fails.
    fn check_media(&mut self) {
        let mut device = self.lab.device();
        let has_cache = device.vwc != 0;
        device.lose_power();
        for namespace in &device.namespaces {
            let nsid = NamespaceId(namespace.nsid);
            let flushed = if has_cache { self.flushed.get(&nsid).copied() } else { Some(u64::MAX) };
            let flushed = flushed.unwrap_or(0);
            for (history, bytes) in self.sectors[&nsid].iter().zip(namespace.media.chunks(512)) {
                let found = stamp_of(bytes);
                let durable = |change: &Change| change.done.is_some_and(|done| done <= flushed);
                let first = history.iter().rposition(durable).unwrap_or(0);
                let may = &history[first..];
                assert!(may.iter().any(|change| change.stamp == found), "{found}: {may:?}");
            }
        }
    }
}

#[test]
fn whatever_it_does_each_request_is_over_once_and_the_disks_hold_what_they_must() {
    let mut sum = [0; 4];
    let (mut nr_resets, mut nr_lent) = (0, 0);
    for seed in seeds(10) {
        println!("SIM_SEED={seed}");
        let mut model = Model::new(seed);
        for _ in 0..400 {
            model.round();
            if matches!(model.lab.controller.state(), State::Failed(_)) {
                break;
            }
        }
        // Either the power fails now, or it is shut down.
        if model.rng.one_in(2) {
            model.check_media();
            continue;
        }
        model.lab.controller.shutdown();
        model.lab.device().manual = false;
        let end = model.lab.now.after(Duration::from_secs(1000));
        while !matches!(model.lab.controller.state(), State::Off | State::Failed(_)) {
            let next = model.lab.step().unwrap_or(model.lab.now);
            model.lab.now = next;
            model.take();
            assert!(model.lab.now < end, "{:?}", model.lab.controller.state());
        }
        model.take();
        assert!(model.open.is_empty(), "{:?}", model.open);
        assert_eq!(model.lab.controller.nr_in_flight(), 0);
        let all: Vec<_> = std::iter::from_fn(|| model.lab.controller.reserve(8)).collect();
        assert_eq!(all.len(), NR_PAGES as usize, "every page is back");
        nr_lent += model.nr_lent;
        if model.lab.controller.state() == State::Off {
            model.flushed = [1, 2, 9].map(|nsid| (NamespaceId(nsid), u64::MAX)).into();
        }
        model.check_media();
        nr_resets += model.lab.controller.resets().0;
        for (sum, nr) in sum.iter_mut().zip(model.nr) {
            *sum += nr;
        }
    }
    println!("reads, writes, flushes, discards: {sum:?}; {nr_resets} resets");
    if std::env::var_os("SIM_SEED").is_none() {
        assert!(sum.iter().all(|&nr| nr > 100) && nr_resets > 5, "{sum:?} {nr_resets}");
        assert!(nr_lent > 100, "{nr_lent}");
    }
}
