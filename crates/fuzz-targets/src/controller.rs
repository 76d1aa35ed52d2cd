//! An NVMe controller that says anything: its registers, what it identifies itself and its namespaces
//! as, and its completions.

mod chip;

use std::collections::BTreeMap;
use std::time::Duration;

use nvme::{Controller, Interrupt, NamespaceId, State};
use sim::Region;
use store::{BlockSize, Buffer, Completion, Refused, Request, Tag};
use xen_abi::{Gfn, Instant};

use self::chip::{Bus, Chip};
use crate::input::Input;

const NR_PAGES: usize = 40;
const NR_FRAMES: usize = NR_PAGES + Controller::<Bus, Region>::NR_FRAMES;
/// The first frame of guests, so many for each request.
const LENT: u64 = 1 << 20;
const MAX_PAGES: u64 = 12;
const MAX_STEPS: u32 = 400;

/// First what the registers say, then what everybody does.
pub fn run(bytes: &[u8]) {
    let bus = Bus::new(Input::new(bytes));
    let frames: Vec<Gfn> = (0..NR_FRAMES as u64).map(Gfn).collect();
    let now = Instant::from_ns(0);
    let interrupt =
        if bus.chip(|chip| chip.input.flag()) { Interrupt::Polled } else { Interrupt::Vector(1) };
    let controller = Controller::new(bus.clone(), &mut bus.clone(), &frames, interrupt, now);
    let Ok(controller) = controller else {
        assert_eq!(bus.chip(|chip| chip.nr_writes), 0, "what is refused is not touched");
        return;
    };
    let mut lab =
        Lab { bus, controller, now, open: BTreeMap::new(), kept: Vec::new(), last_tag: 0 };
    let max_lent = lab.input(|input| input.below(40));
    lab.controller.set_max_lent(max_lent);
    for _ in 0..MAX_STEPS {
        if lab.bus.chip(|chip| chip.input.is_empty()) {
            break;
        }
        lab.act();
    }
    lab.end();
}

/// A request that was taken.
struct Open {
    nsid: NamespaceId,
    pages: Option<Pages>,
}

/// What a read or write is made of.
#[derive(PartialEq, Eq, Debug)]
enum Pages {
    /// Of the pool.
    Own(Vec<Gfn>),
    Lent(Vec<Gfn>),
}

struct Lab {
    bus: Bus,
    controller: Controller<Bus, Region>,
    now: Instant,
    open: BTreeMap<u64, Open>,
    kept: Vec<Buffer>,
    last_tag: u64,
}

impl Lab {
    fn input<T>(&self, f: impl FnOnce(&mut Input) -> T) -> T {
        self.bus.chip(|chip| f(&mut chip.input))
    }

    fn act(&mut self) {
        match self.input(|input| input.below(16)) {
            0..=3 => self.submit(),
            4 => {
                self.controller.publish();
                // Before any lie frees what a command names.
                self.bus.chip(Chip::fetch);
            }
            5 => self.take(),
            6..=8 => self.step(),
            9..=11 => self.bus.chip(|chip| {
                chip.fetch();
                if !chip.known.is_empty() {
                    let index = chip.input.below(chip.known.len());
                    let status = if chip.input.u8() < 200 { 0 } else { chip.input.u16() };
                    chip.answer(index, status);
                }
            }),
            12 => self.bus.chip(|chip| {
                let id = chip.input.below(2);
                // Mostly almost right.
                let dw2 = match chip.input.u8() {
                    0..=199 => chip.at[id].0 | if id == 0 { 0 } else { 1 << 16 },
                    _ => chip.input.u32(),
                };
                let cid = match (chip.input.u8(), chip.known.first()) {
                    (near @ 0..=199, Some(&(_, cid))) => cid ^ u16::from(near) << (near % 9),
                    _ => chip.input.u16(),
                };
                let status = chip.input.u16();
                chip.post(id, dw2, cid, status);
            }),
            13 => self.bus.chip(|chip| {
                let id = usize::from(chip.input.flag());
                let Some([_, cq]) = chip.queue(id) else { return };
                let at = u64::from(chip.input.u16() % 4000);
                let nr = chip.input.below(17);
                let bytes = chip.input.take(nr);
                chip.write(cq + at, &bytes);
            }),
            14 => {
                if let Some(buffer) = self.kept.pop() {
                    self.controller.give_back(buffer);
                }
            }
            _ => match self.input(Input::u8) {
                0..=3 => self.controller.shutdown(),
                4 => self.controller.abandon(),
                _ => self.step(),
            },
        }
    }

    fn step(&mut self) {
        let next = self.controller.step(self.now);
        assert!(next.is_none_or(|next| next > self.now), "it turns on the spot");
        self.bus.chip(Chip::answer_admin);
        let far = Duration::from_secs(self.input(Input::u8).into());
        self.now = match self.input(|input| input.below(4)) {
            0 => self.now.after(far),
            _ => next.unwrap_or(self.now),
        };
        for namespace in self.controller.namespaces() {
            let Ok(disk) = namespace.disk else { continue };
            let geometry = disk.geometry;
            assert!((1..=1 << 54).contains(&geometry.nr_sectors));
            assert!(geometry.nr_sectors.is_multiple_of(geometry.logical.sectors()));
            assert!(geometry.physical_bytes.is_power_of_two());
            assert!(geometry.physical_bytes >= geometry.logical.bytes());
            assert!(matches!(geometry.logical, BlockSize::B512 | BlockSize::B4096));
        }
        if let Some(identity) = self.controller.identity() {
            for text in [&identity.serial, &identity.model, &identity.firmware] {
                assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
            }
        }
    }

    fn submit(&mut self) {
        let namespaces = self.controller.namespaces().len();
        if namespaces == 0 {
            return;
        }
        let index = self.input(|input| input.below(namespaces));
        let nsid = self.controller.namespaces()[index].nsid;
        let sector = u64::from(self.input(Input::u16)) * 8;
        let nr = 8 * (1 + u64::from(self.input(Input::u8)) % MAX_PAGES);
        let nr = u32::try_from(nr).expect("a few");
        self.last_tag += 1;
        let tag = Tag(self.last_tag);
        let (request, pages) = match self.input(|input| input.below(8)) {
            0 => (Request::Flush, None),
            1 => (Request::Discard { sector, nr_sectors: nr.into() }, None),
            2 => {
                let taken =
                    self.controller.submit_write_zeroes(nsid, tag, sector, nr.into()).is_ok();
                if taken {
                    self.open.insert(tag.0, Open { nsid, pages: None });
                }
                return;
            }
            kind => {
                let Some((buffer, pages)) = self.buffer(nr) else { return };
                let request = match kind {
                    3 | 4 => Request::Write { sector, buffer },
                    _ => Request::Read { sector, buffer },
                };
                (request, Some(pages))
            }
        };
        match self.controller.submit(nsid, tag, request) {
            Ok(()) => {
                if let Some(Pages::Lent(frames)) = &pages {
                    self.bus.chip(|chip| chip.lent.extend(frames));
                }
                self.open.insert(tag.0, Open { nsid, pages });
            }
            Err(Refused { request, .. }) => {
                if let Request::Read { buffer, .. } | Request::Write { buffer, .. } = request {
                    self.controller.give_back(buffer);
                }
            }
        }
    }

    /// A buffer for the request of the last tag.
    fn buffer(&mut self, nr_sectors: u32) -> Option<(Buffer, Pages)> {
        if self.input(Input::flag) {
            let first = LENT + self.last_tag * MAX_PAGES;
            let nr_pages = u64::from(nr_sectors.div_ceil(8));
            let frames: Vec<Gfn> = (first..first + nr_pages).map(Gfn).collect();
            let buffer = self.controller.lend(&frames, nr_sectors)?;
            return Some((buffer, Pages::Lent(frames)));
        }
        let buffer = self.controller.reserve(nr_sectors)?;
        let frames: Vec<Gfn> = self.controller.frames(&buffer).collect();
        self.assert_apart(&frames);
        Some((buffer, Pages::Own(frames)))
    }

    /// A frame is in one buffer at a time.
    fn assert_apart(&self, frames: &[Gfn]) {
        for open in self.open.values() {
            let Some(Pages::Own(other)) = &open.pages else { continue };
            assert!(frames.iter().all(|frame| !other.contains(frame)), "a frame is given twice");
        }
        for kept in &self.kept {
            let mut kept = self.controller.frames(kept);
            assert!(kept.all(|frame| !frames.contains(&frame)), "a frame is given twice");
        }
    }

    fn take(&mut self) {
        let ids: Vec<_> = self.controller.namespaces().iter().map(|found| found.nsid).collect();
        for nsid in ids {
            while let Some(Completion { tag, result, buffer }) = self.controller.complete(nsid) {
                let open = self.open.remove(&tag.0).expect("each is over once");
                assert_eq!(open.nsid, nsid);
                if result.is_err() {
                    assert!(self.controller.take_error().is_some());
                }
                let Some(buffer) = buffer else {
                    let failed = matches!(self.controller.state(), State::Failed(_));
                    assert!(open.pages.is_none() || failed, "a buffer is lost");
                    continue;
                };
                let frames = self.controller.frames(&buffer).collect();
                match open.pages {
                    Some(Pages::Lent(lent)) => self.bus.chip(|chip| {
                        assert_eq!(frames, []);
                        lent.iter().for_each(|frame| _ = chip.lent.remove(frame));
                    }),
                    own => assert_eq!(own, Some(Pages::Own(frames))),
                }
                if self.input(|input| input.below(3)) == 0 {
                    self.kept.push(buffer);
                } else {
                    self.controller.give_back(buffer);
                }
            }
        }
    }

    /// The controller does what it should from now on, or is given up: everything is over.
    fn end(mut self) {
        self.controller.shutdown();
        for _ in 0..500_000 {
            if matches!(self.controller.state(), State::Off | State::Failed(_)) {
                break;
            }
            if let Some(next) = self.controller.step(self.now) {
                assert!(next > self.now);
                self.now = next;
            }
            self.bus.chip(|chip| {
                chip.fetch();
                while !chip.known.is_empty() {
                    chip.answer(0, 0);
                }
            });
        }
        let state = self.controller.state();
        assert!(matches!(state, State::Off | State::Failed(_)), "{state:?}");
        self.take();
        assert!(self.open.is_empty());
        assert_eq!(self.controller.nr_in_flight(), 0);
        let disabled = self.bus.chip(|chip| chip.cc & 1 == 0);
        if let Some(frames) = self.controller.retire() {
            assert!(disabled, "it may still write");
            assert_eq!(frames.len(), NR_FRAMES);
        }
    }
}
