//! The controller's side: registers, queues, and what it makes of the commands that it is given.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use nvme::{Dma, DmaAddr, Reg32, Reg64, Registers};
use sim::{Page, Region};
use xen_abi::{Gfn, PAGE_SIZE};

use super::{NR_FRAMES, NR_PAGES};
use crate::input::Input;

/// Device addresses are not frame numbers.
const BASE: u64 = 1 << 40;

/// The controller's side.
pub(super) struct Chip {
    pub(super) input: Input,
    pages: Vec<Page>,
    cap: u64,
    version: u32,
    pub(super) cc: u32,
    csts: u32,
    nr_entries: u32,
    admin: [u64; 2],
    io: Option<[u64; 2]>,
    /// Of both queues: the submission queue's head and tail, the completion queue's tail and phase.
    pub(super) at: [(u32, u32, u32, u16); 2],
    /// Commands that were not answered: queue and identifier.
    pub(super) known: Vec<(usize, u16)>,
    /// What was told of namespaces: size in blocks and shift of a block.
    told: BTreeMap<u32, (u64, u8)>,
    /// Frames of guests that it may access.
    pub(super) lent: BTreeSet<Gfn>,
    pub(super) nr_writes: u32,
}

impl Chip {
    fn new(mut input: Input) -> Self {
        // What makes sense, unless the input says otherwise.
        let cap = match input.u8() {
            0..=199 => 63 | 2 << 24 | 1 << 37,
            200..=219 => 1 | 2 << 24 | 1 << 37,
            _ => u64::from(input.u32()) | u64::from(input.u32()) << 32,
        };
        let version = if input.u8() < 200 { 0x0001_0400 } else { input.u32() };
        Self {
            input,
            pages: (0..NR_FRAMES).map(|_| Page::new()).collect(),
            cap,
            version,
            cc: 0,
            csts: 0,
            nr_entries: 2,
            admin: [0; 2],
            io: None,
            at: [(0, 0, 0, 1); 2],
            known: Vec::new(),
            told: BTreeMap::new(),
            lent: BTreeSet::new(),
            nr_writes: 0,
        }
    }

    fn page(&self, address: u64) -> (&Page, usize) {
        let offset = address.checked_sub(BASE).expect("a device address");
        let page = usize::try_from(offset).expect("fits") / PAGE_SIZE;
        (&self.pages[page], usize::try_from(offset).expect("fits") % PAGE_SIZE)
    }

    fn read(&self, address: u64, into: &mut [u8]) {
        let (page, offset) = self.page(address);
        page.read(offset, into);
    }

    pub(super) fn write(&self, address: u64, from: &[u8]) {
        let (page, offset) = self.page(address);
        page.write(offset, from);
    }

    pub(super) fn queue(&self, id: usize) -> Option<[u64; 2]> {
        match id {
            _ if self.cc & 1 == 0 => None,
            0 => Some(self.admin),
            _ => self.io,
        }
    }

    /// RDY follows EN, mostly.
    fn status(&mut self) -> u32 {
        let follows = self.cc & 1 | if self.cc >> 14 & 3 == 1 { 0b10 << 2 } else { 0 };
        self.csts = match self.input.u8() {
            0..=245 => follows | self.csts & 2,
            246 => u32::MAX,
            247 => follows | 2,
            248 => self.input.u32(),
            _ => follows ^ 1,
        };
        if self.cc & 1 == 0 && self.csts & 1 == 0 {
            self.csts = 0;
            self.io = None;
            self.known.clear();
        }
        self.csts
    }

    fn set_cc(&mut self, value: u32) {
        if value & 1 == 1 && self.cc & 1 == 0 {
            self.at = [(0, 0, 0, 1); 2];
            self.io = None;
            self.known.clear();
        }
        self.cc = value;
    }

    fn doorbell(&mut self, register: Reg32, value: u32) {
        let stride = 4usize << (self.cap >> 32 & 0xf);
        let index = (register.offset() - 0x1000) / stride;
        assert_eq!(register.offset(), 0x1000 + index * stride);
        assert!(index < 4 && value < self.nr_entries, "doorbell {index}: {value}");
        if index.is_multiple_of(2) {
            self.at[index / 2].1 = value;
        }
    }

    /// Fetches what was submitted; each command is one that may be.
    pub(super) fn fetch(&mut self) {
        for id in 0..2 {
            let Some([sq, _]) = self.queue(id) else { continue };
            while self.at[id].0 != self.at[id].1 {
                let mut sqe = [0; 64];
                self.read(sq + 64 * u64::from(self.at[id].0), &mut sqe);
                self.at[id].0 = (self.at[id].0 + 1) % self.nr_entries;
                let cid = u16::from_le_bytes([sqe[2], sqe[3]]);
                assert_ne!(cid, 0xffff);
                // What it lied about being done it may be asked for again.
                self.known.retain(|&known| known != (id, cid));
                self.known.push((id, cid));
                if id == 0 { self.admin(&sqe) } else { self.check(&sqe) }
            }
        }
    }

    fn admin(&mut self, sqe: &[u8; 64]) {
        let (u32_at, u64_at) = fields(sqe);
        let prp = u64_at(24);
        match (sqe[0], u32_at(40)) {
            (0x06, cns) => {
                let mut data = vec![0; PAGE_SIZE];
                match cns {
                    0 => {
                        data[..8].copy_from_slice(&2048u64.to_le_bytes());
                        data[130] = if u32_at(4) == 2 { 12 } else { 9 };
                    }
                    1 => {
                        data[77] = 2;
                        data[512..514].copy_from_slice(&[0x66, 0x44]);
                        data[516] = 3;
                        data[520] = 0xc;
                        data[525] = 1;
                    }
                    2 => (1..=3).for_each(|nsid: u8| data[4 * usize::from(nsid) - 4] = nsid),
                    6 => {}
                    _ => panic!("CNS {cns}"),
                }
                while self.input.u8() >= 170 {
                    let at = usize::from(self.input.u16()) % 530;
                    let nr = self.input.below(9);
                    let bytes = self.input.take(nr);
                    data[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                if cns == 0 {
                    let size = u64::from_le_bytes(data[..8].try_into().expect("eight"));
                    let format = usize::from(data[26] & 0xf);
                    self.told.insert(u32_at(4), (size, data[130 + 4 * format]));
                }
                self.write(prp, &data);
            }
            (0x05, _) => self.io = Some([0, prp]),
            (0x01, _) => {
                if let Some([sq, _]) = &mut self.io {
                    *sq = prp;
                }
            }
            (0x09, feature) => assert_eq!(feature, 7),
            (opcode, _) => panic!("admin command {opcode:#x}"),
        }
    }

    /// An I/O command: within its namespace, and of pages of requests under way.
    fn check(&mut self, sqe: &[u8; 64]) {
        let (u32_at, u64_at) = fields(sqe);
        let nsid = u32_at(4);
        let &(size, shift) = self.told.get(&nsid).expect("a namespace that was told of");
        let (mut slba, mut nr) = (u64_at(40), u64::from(u32_at(48) & 0xffff) + 1);
        match sqe[0] {
            0x00 => return,
            0x01 | 0x02 => {
                let len_bytes = usize::try_from(nr << shift).expect("fits");
                let nr_pages = len_bytes.div_ceil(PAGE_SIZE);
                let mut pages = vec![u64_at(24)];
                match nr_pages {
                    1 => {}
                    2 => pages.push(u64_at(32)),
                    _ => {
                        assert!(Self::is_of_pool(frame(u64_at(32))));
                        let mut list = vec![0; 8 * (nr_pages - 1)];
                        self.read(u64_at(32), &mut list);
                        let entries = list.as_chunks().0.iter();
                        pages.extend(entries.map(|&entry| u64::from_le_bytes(entry)));
                    }
                }
                for frame in pages.iter().map(|&page| frame(page)) {
                    assert!(Self::is_of_pool(frame) || self.lent.contains(&frame), "{frame}");
                }
                pages.sort_unstable();
                pages.dedup();
                assert_eq!(pages.len(), nr_pages, "each page once");
            }
            0x08 => {}
            0x09 => {
                let mut range = [0; 16];
                self.read(u64_at(24), &mut range);
                nr = u32::from_le_bytes(range[4..8].try_into().expect("four")).into();
                slba = u64::from_le_bytes(range[8..].try_into().expect("eight"));
            }
            opcode => panic!("I/O command {opcode:#x}"),
        }
        assert!(slba.checked_add(nr).is_some_and(|end| end <= size), "{slba}+{nr} of {size}");
    }

    /// No queue, and nothing that was not given.
    fn is_of_pool(frame: Gfn) -> bool {
        ((NR_FRAMES - NR_PAGES) as u64..NR_FRAMES as u64).contains(&frame.0)
    }

    /// Posts a completion.
    pub(super) fn post(&mut self, id: usize, dw2: u32, cid: u16, status: u16) {
        let Some([_, cq]) = self.queue(id) else { return };
        let (_, _, tail, phase) = self.at[id];
        let mut entry = [0; 16];
        entry[8..12].copy_from_slice(&dw2.to_le_bytes());
        entry[12..14].copy_from_slice(&cid.to_le_bytes());
        entry[14..].copy_from_slice(&(status << 1 | phase).to_le_bytes());
        self.write(cq + 16 * u64::from(tail), &entry);
        self.at[id].2 = (tail + 1) % self.nr_entries;
        if self.at[id].2 == 0 {
            self.at[id].3 ^= 1;
        }
    }

    /// Answers a command that was fetched.
    pub(super) fn answer(&mut self, index: usize, status: u16) {
        let (id, cid) = self.known.swap_remove(index);
        let dw2 = self.at[id].0 | if id == 0 { 0 } else { 1 << 16 };
        self.post(id, dw2, cid, status);
    }

    pub(super) fn answer_admin(&mut self) {
        self.fetch();
        while let Some(index) = self.known.iter().position(|&(id, _)| id == 0) {
            let status = if self.input.u8() < 240 { 0 } else { self.input.u16() };
            self.answer(index, status);
        }
    }
}

/// The frame that a page begins.
fn frame(address: u64) -> Gfn {
    assert!(address.is_multiple_of(PAGE_SIZE as u64));
    Gfn(address.checked_sub(BASE).expect("a device address") / PAGE_SIZE as u64)
}

type U32At<'a> = Box<dyn Fn(usize) -> u32 + 'a>;
type U64At<'a> = Box<dyn Fn(usize) -> u64 + 'a>;

fn fields(sqe: &[u8; 64]) -> (U32At<'_>, U64At<'_>) {
    let word = |at: usize| u32::from_le_bytes(sqe[at..at + 4].try_into().expect("four"));
    (Box::new(word), Box::new(move |at| u64::from(word(at)) | u64::from(word(at + 4)) << 32))
}

#[derive(Clone)]
pub(super) struct Bus(Rc<RefCell<Chip>>);

impl Bus {
    pub(super) fn new(input: Input) -> Self {
        Self(Rc::new(RefCell::new(Chip::new(input))))
    }

    pub(super) fn chip<T>(&self, f: impl FnOnce(&mut Chip) -> T) -> T {
        f(&mut self.0.borrow_mut())
    }
}

impl Registers for Bus {
    fn len_bytes(&self) -> usize {
        0x4000
    }

    fn read32(&self, register: Reg32) -> u32 {
        self.chip(|chip| match register {
            Reg32::CSTS => chip.status(),
            Reg32::CC => chip.cc,
            Reg32::VS => chip.version,
            _ => panic!("nobody reads {register:?}"),
        })
    }

    fn read64(&self, _: Reg64) -> u64 {
        self.chip(|chip| chip.cap)
    }

    fn write32(&mut self, register: Reg32, value: u32) {
        self.chip(|chip| {
            chip.nr_writes += 1;
            match register {
                Reg32::CC => chip.set_cc(value),
                Reg32::AQA => chip.nr_entries = (value & 0xfff) + 1,
                _ => chip.doorbell(register, value),
            }
        });
    }

    fn cut_off(&mut self) -> bool {
        false
    }

    fn write64(&mut self, register: Reg64, value: u64) {
        let index = usize::from(register == Reg64::ACQ);
        self.chip(|chip| chip.admin[index] = value);
    }
}

impl Dma for Bus {
    type Memory = Region;

    fn memory(&mut self, frames: &[Gfn]) -> Region {
        let page = |frame: &Gfn| {
            let index = usize::try_from(frame.0).expect("fits");
            self.chip(|chip| chip.pages[index].clone())
        };
        Region::mapped(frames.iter().map(page).collect())
    }

    fn address(frame: Gfn) -> DmaAddr {
        DmaAddr(BASE + frame.0 * PAGE_SIZE as u64)
    }
}
