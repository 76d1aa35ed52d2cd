//! A controller in a process, by the specification and not by the driver: it reads its own memory by
//! its own offsets. Commands are fetched when a doorbell is rung, and done in any order; what it does
//! wrong, it is told to.

#![allow(dead_code, reason = "each test file uses what it needs")]
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use nvme::{Controller, Dma, DmaAddr, Interrupt, NamespaceId, Reg32, Reg64, Registers, State};
use sim::{OwnFrames, Page, Region, Rng};
use store::{Buffer, Completion, Failure, Request, Tag};
use xen_abi::{Gfn, Instant, PAGE_SIZE};

/// Where the device finds frame 0: no device address is a frame's own.
pub const DMA_BASE: u64 = 0x1_0000_0000;
const FIRST: u64 = 100;

/// Frames that the device is not given.
pub const OTHERS: (Gfn, u64) = (Gfn(8000), 16);

pub const NS1: NamespaceId = NamespaceId(1);

/// SCT and SC, and DNR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bad(pub u8, pub u8, pub bool);

/// A command as it was fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sqe {
    pub queue: u16,
    pub opcode: u8,
    pub cid: u16,
    pub nsid: u32,
    pub prp: [u64; 2],
    pub cdw: [u32; 6],
}

impl Sqe {
    fn parse(queue: u16, bytes: &[u8; 64]) -> Self {
        let u32_at = |at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(bytes[1], 0, "neither fused nor SGLs");
        assert_eq!(bytes[8..24], [0; 16], "no metadata");
        Self {
            queue,
            opcode: bytes[0],
            cid: u16::from_le_bytes([bytes[2], bytes[3]]),
            nsid: u32_at(4),
            prp: [u64_at(24), u64_at(32)],
            cdw: std::array::from_fn(|n| u32_at(40 + 4 * n)),
        }
    }

    pub fn slba(&self) -> u64 {
        u64::from(self.cdw[0]) | u64::from(self.cdw[1]) << 32
    }

    pub fn nr_blocks(&self) -> u64 {
        u64::from(self.cdw[2] & 0xffff) + 1
    }
}

/// A namespace: what it says, and what it holds.
#[derive(Clone)]
pub struct SimNamespace {
    pub nsid: u32,
    pub shift: u8,
    pub nr_blocks: u64,
    /// What is laid over the Identify Namespace data structure.
    pub identify: Vec<(usize, Vec<u8>)>,
    pub media: Vec<u8>,
    /// Blocks that are written and not flushed.
    pub cache: BTreeMap<u64, Vec<u8>>,
}

impl SimNamespace {
    pub fn new(nsid: u32, shift: u8, nr_blocks: u64) -> Self {
        let media = vec![0; (nr_blocks as usize) << shift];
        Self { nsid, shift, nr_blocks, identify: Vec::new(), media, cache: BTreeMap::new() }
    }

    pub fn flush(&mut self) {
        for (lba, block) in std::mem::take(&mut self.cache) {
            let at = (lba as usize) << self.shift;
            self.media[at..at + block.len()].copy_from_slice(&block);
        }
    }

    fn read(&self, lba: u64) -> Vec<u8> {
        let at = (lba as usize) << self.shift;
        self.cache
            .get(&lba)
            .cloned()
            .unwrap_or_else(|| self.media[at..at + (1 << self.shift)].into())
    }
}

/// What becomes of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// It is done.
    Do,
    /// It fails.
    Fail(Bad),
    /// It is never answered.
    Hang,
    /// It is done, and never answered.
    DoInSilence,
}

pub struct Queue {
    pub sq: u64,
    pub cq: u64,
    pub nr_entries: u16,
    pub sq_head: u16,
    pub sq_tail: u16,
    pub cq_tail: u16,
    pub cq_head: u16,
    pub phase: bool,
    /// What Create I/O Completion Queue said in CDW11.
    pub cdw11: u32,
}

pub struct Device {
    pub rng: Rng,
    /// What `pages` are, frames between them, and [`OTHERS`].
    pub frames: OwnFrames,
    pages: BTreeMap<u64, Page>,
    pub cap: u64,
    pub vs: u32,
    pub bar_len: usize,
    pub cc: u32,
    pub csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    pub queues: BTreeMap<u16, Queue>,
    /// Fetched and not completed.
    pub pending: Vec<Sqe>,
    pub mdts: u8,
    pub oncs: u16,
    pub vwc: u8,
    pub nn: u32,
    /// DMRSL and DMSL: most blocks of a discard.
    pub discard_limits: (u32, u64),
    /// What is laid over the Identify Controller data structure.
    pub identify: Vec<(usize, Vec<u8>)>,
    pub namespaces: Vec<SimNamespace>,
    /// What it answers for the list of namespaces, if not the truth.
    pub list: Option<Vec<u32>>,
    pub act: Box<dyn FnMut(&Sqe) -> Act>,
    /// RDY does not follow EN any more.
    pub stuck: bool,
    /// RDY follows EN after so many reads of CSTS.
    pub ready_delay: u32,
    ready_in: u32,
    /// SHST does not follow SHN.
    pub stuck_shutdown: bool,
    /// All registers read all ones.
    pub gone: bool,
    /// It may access memory.
    pub bus_master: bool,
    /// Bus mastering does not turn off.
    pub resists: bool,
    /// No I/O command is fetched or done in any step, until `run` is called.
    pub manual: bool,
    /// Every I/O command that was fetched.
    pub log: Vec<Sqe>,
    pub admin_log: Vec<Sqe>,
    /// Values written to CC.
    pub cc_log: Vec<u32>,
    pub nr_status_reads: u32,
    pub nr_doorbells: u32,
}

impl Device {
    /// Has it reach a page of somebody else's.
    pub fn map(&mut self, frame: Gfn, page: &Page) {
        assert!(self.pages.insert(frame.0, page.clone()).is_none());
    }

    /// From now on it does not. It is not to try.
    pub fn unmap(&mut self, frame: Gfn) {
        let may_write = self.bus_master && !self.gone;
        assert!(!may_write || !self.frames_in_use().contains(&frame.0), "{frame:?} is in use");
        assert!(self.pages.remove(&frame.0).is_some());
    }

    pub fn page(&self, address: u64) -> &Page {
        assert!(address >= DMA_BASE, "{address:#x} is no device address");
        let frame = (address - DMA_BASE) / PAGE_SIZE as u64;
        self.pages.get(&frame).unwrap_or_else(|| panic!("IOMMU fault at {address:#x}"))
    }

    pub fn dma_read(&self, address: u64, into: &mut [u8]) {
        self.page(address).read((address % PAGE_SIZE as u64) as usize, into);
    }

    pub fn dma_write(&self, address: u64, from: &[u8]) {
        self.page(address).write((address % PAGE_SIZE as u64) as usize, from);
    }

    /// The pages of a transfer of so many bytes, first to last.
    fn prps(&self, sqe: &Sqe, len_bytes: u64) -> Vec<u64> {
        let nr_pages = len_bytes.div_ceil(PAGE_SIZE as u64);
        let mut pages = vec![sqe.prp[0]];
        match nr_pages {
            1 => assert_eq!(sqe.prp[1], 0),
            2 => pages.push(sqe.prp[1]),
            _ => pages.extend((0..nr_pages - 1).map(|n| {
                let mut entry = [0; 8];
                self.dma_read(sqe.prp[1] + 8 * n, &mut entry);
                u64::from_le_bytes(entry)
            })),
        }
        assert!(pages.iter().all(|page| page % PAGE_SIZE as u64 == 0));
        pages
    }

    /// All frames that commands which are not completed name, of data or PRP lists.
    pub fn frames_in_use(&self) -> BTreeSet<u64> {
        let mut frames = BTreeSet::new();
        for sqe in self.pending.iter().filter(|sqe| sqe.queue == 1 && [1, 2].contains(&sqe.opcode))
        {
            let Some(namespace) = self.namespaces.iter().find(|ns| ns.nsid == sqe.nsid) else {
                continue;
            };
            let len_bytes = sqe.nr_blocks() << namespace.shift;
            let mut pages = self.prps(sqe, len_bytes);
            if pages.len() > 2 {
                pages.push(sqe.prp[1]);
            }
            frames.extend(pages.iter().map(|page| (page - DMA_BASE) / PAGE_SIZE as u64));
        }
        frames
    }

    /// Fetches what the doorbells told of.
    pub fn fetch(&mut self) {
        self.fetch_of(0);
        self.fetch_of(1);
    }

    fn fetch_of(&mut self, id: u16) {
        if self.csts & 3 != 1 || self.gone {
            return;
        }
        if let Some(queue) = self.queues.get_mut(&id) {
            while queue.sq_head != queue.sq_tail {
                let mut bytes = [0; 64];
                let address = queue.sq + 64 * u64::from(queue.sq_head);
                let frame = (address - DMA_BASE) / PAGE_SIZE as u64;
                self.pages[&frame].read((address % PAGE_SIZE as u64) as usize, &mut bytes);
                queue.sq_head = (queue.sq_head + 1) % queue.nr_entries;
                let sqe = Sqe::parse(id, &bytes);
                assert!(self.pending.iter().all(|other| (other.queue, other.cid) != (id, sqe.cid)));
                if id == 0 { &mut self.admin_log } else { &mut self.log }.push(sqe);
                self.pending.push(sqe);
            }
        }
    }

    /// Completes up to `max` of what is pending, in any order. How many.
    pub fn run(&mut self, max: usize) -> usize {
        self.fetch();
        self.complete_some(max)
    }

    fn complete_some(&mut self, max: usize) -> usize {
        let mut nr = 0;
        let mut hanging = Vec::new();
        let works = |device: &Self| device.csts & 2 == 0 && !device.gone && device.bus_master;
        while nr < max && !self.pending.is_empty() && works(self) {
            let index = self.rng.index(self.pending.len());
            let sqe = self.pending.swap_remove(index);
            let act = (self.act)(&sqe);
            if act == Act::DoInSilence {
                let _ = self.execute(&sqe);
            }
            match act {
                Act::Do => {
                    let status = self.execute(&sqe).err();
                    self.complete(&sqe, status);
                }
                Act::Fail(bad) => self.complete(&sqe, Some(bad)),
                Act::Hang | Act::DoInSilence => {
                    hanging.push(sqe);
                    continue;
                }
            }
            nr += 1;
        }
        self.pending.extend(hanging);
        nr
    }

    /// Does the admin commands alone.
    pub fn run_admin(&mut self) {
        let io = std::mem::take(&mut self.pending);
        self.fetch_of(0);
        self.complete_some(usize::MAX);
        self.pending.extend(io);
    }

    pub fn complete(&mut self, sqe: &Sqe, bad: Option<Bad>) {
        let Bad(sct, sc, dnr) = bad.unwrap_or(Bad(0, 0, false));
        let status = u16::from(sc) << 1 | u16::from(sct) << 9 | u16::from(dnr) << 15;
        let head = self.queues[&sqe.queue].sq_head;
        self.post(sqe.queue, [0, u32::from(head) | u32::from(sqe.queue) << 16], sqe.cid, status);
    }

    /// Posts a completion: DW0 and DW2, CID, and the status field without its phase tag.
    pub fn post(&mut self, queue: u16, dw: [u32; 2], cid: u16, status: u16) {
        let Some(q) = self.queues.get_mut(&queue) else { return };
        let address = q.cq + 16 * u64::from(q.cq_tail);
        let dw3 = u32::from(cid) | u32::from(status | u16::from(q.phase)) << 16;
        q.cq_tail = (q.cq_tail + 1) % q.nr_entries;
        assert_ne!(q.cq_tail, q.cq_head, "the completion queue overflows");
        q.phase ^= q.cq_tail == 0;
        let mut bytes = [0; 16];
        for (at, word) in [(0, dw[0]), (8, dw[1]), (12, dw3)] {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        self.dma_write(address, &bytes);
    }

    fn namespace(&mut self, nsid: u32) -> Result<&mut SimNamespace, Bad> {
        self.namespaces.iter_mut().find(|ns| ns.nsid == nsid).ok_or(Bad(0, 0x0b, true))
    }

    fn execute(&mut self, sqe: &Sqe) -> Result<(), Bad> {
        if sqe.queue == 0 { self.execute_admin(sqe) } else { self.execute_io(sqe) }
    }

    fn execute_admin(&mut self, sqe: &Sqe) -> Result<(), Bad> {
        match (sqe.opcode, sqe.cdw[0] & 0xff) {
            (0x06, 0x00) => {
                let data = self.namespaces.iter().find(|ns| ns.nsid == sqe.nsid).map_or_else(
                    || vec![0; PAGE_SIZE],
                    |ns| {
                        let mut data = vec![0; PAGE_SIZE];
                        data[..8].copy_from_slice(&ns.nr_blocks.to_le_bytes());
                        data[128 + 2] = ns.shift;
                        overlay(&mut data, &ns.identify);
                        data
                    },
                );
                self.dma_write(sqe.prp[0], &data);
            }
            (0x06, 0x01) => {
                let mut data = vec![0; PAGE_SIZE];
                data[4..24].copy_from_slice(b"SERIAL 42           ");
                data[24..64].fill(b' ');
                data[24..34].copy_from_slice(b"A \x1b[31mSSD");
                data[64..72].copy_from_slice(b"1.0\0\0\0\0\0");
                data[77] = self.mdts;
                data[512..514].copy_from_slice(&[0x66, 0x44]);
                data[516..520].copy_from_slice(&self.nn.to_le_bytes());
                data[520..522].copy_from_slice(&self.oncs.to_le_bytes());
                data[525] = self.vwc;
                overlay(&mut data, &self.identify);
                self.dma_write(sqe.prp[0], &data);
            }
            (0x06, 0x02) => {
                let truth = || self.namespaces.iter().map(|ns| ns.nsid).filter(|&id| id > sqe.nsid);
                let list = self.list.clone().unwrap_or_else(|| truth().collect());
                let mut data: Vec<u8> = list.iter().flat_map(|id| id.to_le_bytes()).collect();
                data.resize(PAGE_SIZE, 0);
                self.dma_write(sqe.prp[0], &data);
            }
            (0x06, 0x06) => {
                assert_eq!(sqe.cdw[1], 0, "the NVM command set");
                let mut data = vec![0; PAGE_SIZE];
                data[4..8].copy_from_slice(&self.discard_limits.0.to_le_bytes());
                data[8..16].copy_from_slice(&self.discard_limits.1.to_le_bytes());
                self.dma_write(sqe.prp[0], &data);
            }
            (0x09, 0x07) => assert_eq!(sqe.cdw[1], 0, "one queue of each"),
            (0x05 | 0x01, id) => {
                let (id, nr_entries) = (id as u16, (sqe.cdw[0] >> 16) as u16 + 1);
                assert!(id == 1 && sqe.cdw[1] & 1 == 1, "{sqe:?}");
                if sqe.opcode == 0x05 {
                    let mut queue = Queue::new(0, sqe.prp[0], nr_entries);
                    queue.cdw11 = sqe.cdw[1];
                    self.queues.insert(id, queue);
                } else {
                    assert_eq!(sqe.cdw[1] >> 16, 1, "the completion queue");
                    let queue = self.queues.get_mut(&id).expect("a completion queue");
                    assert_eq!(queue.nr_entries, nr_entries);
                    queue.sq = sqe.prp[0];
                }
            }
            other => panic!("{other:?} is no admin command that was asked for: {sqe:?}"),
        }
        Ok(())
    }

    fn execute_io(&mut self, sqe: &Sqe) -> Result<(), Bad> {
        let (vwc, oncs, mdts) = (self.vwc, self.oncs, self.mdts);
        let (shift, end) = {
            let namespace = self.namespace(sqe.nsid)?;
            (namespace.shift, namespace.nr_blocks)
        };
        let check = |lba: u64, nr: u64| {
            if lba.checked_add(nr).is_none_or(|last| last > end) {
                Err(Bad(0, 0x80, true))
            } else {
                Ok(())
            }
        };
        let block = 1u64 << shift;
        match sqe.opcode {
            0x00 => self.namespace(sqe.nsid)?.flush(),
            0x01 | 0x02 => {
                check(sqe.slba(), sqe.nr_blocks())?;
                let len_bytes = sqe.nr_blocks() * block;
                if mdts != 0 && len_bytes > (PAGE_SIZE as u64) << mdts.min(20) {
                    return Err(Bad(0, 0x02, true));
                }
                let pages = self.prps(sqe, len_bytes);
                for n in 0..sqe.nr_blocks() {
                    let at = n * block;
                    let address = pages[(at / PAGE_SIZE as u64) as usize] + at % PAGE_SIZE as u64;
                    if sqe.opcode == 0x01 {
                        let mut bytes = vec![0; block as usize];
                        self.dma_read(address, &mut bytes);
                        self.namespace(sqe.nsid)?.cache.insert(sqe.slba() + n, bytes);
                    } else {
                        let bytes = self.namespace(sqe.nsid)?.read(sqe.slba() + n);
                        self.dma_write(address, &bytes);
                    }
                }
            }
            0x08 if oncs & 1 << 3 != 0 => {
                check(sqe.slba(), sqe.nr_blocks())?;
                for n in 0..sqe.nr_blocks() {
                    let zeroes = vec![0; block as usize];
                    self.namespace(sqe.nsid)?.cache.insert(sqe.slba() + n, zeroes);
                }
            }
            0x09 if oncs & 1 << 2 != 0 => {
                assert_eq!((sqe.cdw[0], sqe.cdw[1]), (0, 4), "one range, to be deallocated");
                let mut range = [0; 16];
                self.dma_read(sqe.prp[0], &mut range);
                assert_eq!(range[..4], [0; 4]);
                let nr = u32::from_le_bytes(range[4..8].try_into().unwrap());
                let lba = u64::from_le_bytes(range[8..].try_into().unwrap());
                check(lba, nr.into())?;
                let is_over = |limit: u64| limit > 0 && u64::from(nr) > limit;
                if is_over(self.discard_limits.0.into()) || is_over(self.discard_limits.1) {
                    return Err(Bad(1, 0x83, true));
                }
                for n in 0..u64::from(nr).min(1 << 16) {
                    let zeroes = vec![0; block as usize];
                    self.namespace(sqe.nsid)?.cache.insert(lba + n, zeroes);
                }
            }
            _ => return Err(Bad(0, 0x01, true)),
        }
        if vwc & 1 == 0 {
            self.namespace(sqe.nsid)?.flush();
        }
        Ok(())
    }

    /// What its cache held and was not flushed is lost.
    pub fn lose_power(&mut self) {
        self.namespaces.iter_mut().for_each(|namespace| namespace.cache.clear());
    }

    fn write_cc(&mut self, value: u32) {
        self.cc_log.push(value);
        let before = std::mem::replace(&mut self.cc, value);
        if value & 1 == 1 && before & 1 == 0 {
            assert_eq!(self.csts & 1, 0, "enabled while RDY is 1");
            assert_eq!(value >> 16 & 0xff, 0x46, "sizes of entries");
            assert_eq!(value >> 4 & 0x3ff, 0, "command set, page size, arbitration");
            let nr_entries = (self.aqa & 0xfff) as u16 + 1;
            assert_eq!(self.aqa >> 16, self.aqa & 0xfff);
            self.queues = [(0, Queue::new(self.asq, self.acq, nr_entries))].into();
            self.ready_in = self.ready_delay;
        }
        if value & 1 == 0 && before & 1 == 1 {
            self.ready_in = self.ready_delay;
        }
        if value >> 14 & 0b11 == 0b01 && before >> 14 & 0b11 == 0 {
            self.csts |= 0b01 << 2;
        }
    }

    /// What goes on by itself between two reads of CSTS.
    fn settle(&mut self) {
        if self.ready_in > 0 {
            self.ready_in -= 1;
        } else if !self.stuck {
            if self.cc & 1 == 0 && self.csts & 3 != 0 {
                self.last_writes();
                self.queues.clear();
                self.pending.clear();
                self.csts = 0;
            } else if self.cc & 1 == 1 && self.csts & 3 == 0 {
                self.csts |= 1;
            }
        }
        if self.csts >> 2 & 0b11 == 0b01 && !self.stuck_shutdown {
            self.namespaces.iter_mut().for_each(SimNamespace::flush);
            self.csts ^= 0b11 << 2;
        }
    }

    /// Until RDY is 0, commands may still write: they do, and worst of all.
    fn last_writes(&mut self) {
        for sqe in self.pending.iter().filter(|sqe| sqe.queue == 1 && sqe.opcode == 0x02) {
            let Some(ns) = self.namespaces.iter().find(|ns| ns.nsid == sqe.nsid) else { continue };
            for page in self.prps(sqe, sqe.nr_blocks() << ns.shift) {
                self.dma_write(page, &[0xee; PAGE_SIZE]);
            }
        }
    }
}

impl Queue {
    fn new(sq: u64, cq: u64, nr_entries: u16) -> Self {
        let (sq_head, sq_tail, cq_tail, cq_head) = (0, 0, 0, 0);
        Self { sq, cq, nr_entries, sq_head, sq_tail, cq_tail, cq_head, phase: true, cdw11: 0 }
    }
}

fn overlay(data: &mut [u8], with: &[(usize, Vec<u8>)]) {
    for (at, bytes) in with {
        data[*at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The device behind both seams. Clones are the same device.
#[derive(Clone)]
pub struct Bus(pub Rc<RefCell<Device>>);

impl Bus {
    pub fn device(&self) -> RefMut<'_, Device> {
        self.0.borrow_mut()
    }
}

impl Registers for Bus {
    fn len_bytes(&self) -> usize {
        self.device().bar_len
    }

    fn read32(&self, register: Reg32) -> u32 {
        let mut device = self.device();
        if device.gone {
            return u32::MAX;
        }
        match register {
            Reg32::VS => device.vs,
            Reg32::CC => device.cc,
            Reg32::CSTS => {
                device.nr_status_reads += 1;
                device.settle();
                device.csts
            }
            _ => panic!("nobody reads {register:?}"),
        }
    }

    fn read64(&self, register: Reg64) -> u64 {
        assert_eq!(register, Reg64::CAP);
        self.device().cap
    }

    fn write32(&mut self, register: Reg32, value: u32) {
        let mut device = self.device();
        if device.gone {
            return;
        }
        match register {
            Reg32::CC => device.write_cc(value),
            Reg32::AQA => device.aqa = value,
            _ => {
                let stride = 4 << (device.cap >> 32 & 0xf);
                let index = (register.offset() - 0x1000) / stride;
                assert_eq!(register.offset(), 0x1000 + index * stride, "a doorbell");
                assert!(register.offset() + 4 <= device.bar_len);
                device.nr_doorbells += 1;
                let queue = device.queues.get_mut(&((index / 2) as u16)).expect("a queue");
                assert!(value < u32::from(queue.nr_entries));
                if index.is_multiple_of(2) {
                    queue.sq_tail = value as u16;
                } else {
                    queue.cq_head = value as u16;
                }
            }
        }
    }

    fn cut_off(&mut self) -> bool {
        let mut device = self.device();
        device.bus_master = device.resists;
        !device.bus_master
    }

    fn write64(&mut self, register: Reg64, value: u64) {
        let mut device = self.device();
        assert!(value >= DMA_BASE && value.is_multiple_of(PAGE_SIZE as u64));
        match register {
            Reg64::ASQ => device.asq = value,
            Reg64::ACQ => device.acq = value,
            _ => panic!("nobody writes {register:?}"),
        }
    }
}

impl Dma for Bus {
    type Memory = Region;

    fn memory(&mut self, frames: &[Gfn]) -> Region {
        let device = self.device();
        Region::mapped(frames.iter().map(|frame| device.pages[&frame.0].clone()).collect())
    }

    fn address(frame: Gfn) -> DmaAddr {
        DmaAddr(DMA_BASE + frame.0 * PAGE_SIZE as u64)
    }
}

/// A controller and its driver.
pub struct Lab {
    pub bus: Bus,
    pub controller: Controller<Bus, Region>,
    pub now: Instant,
    pub next_tag: u64,
    pub next_lent: u64,
}

/// Pages that are lent at once at most.
pub const NR_LENT: usize = 100;

/// CAP: 64 entries, contiguous queues, 1 s, the NVM command set.
pub const CAP: u64 = 63 | 1 << 16 | 2 << 24 | 1 << 37;

/// A device with one namespace of 1024 blocks of 512 bytes, a volatile cache and all commands.
pub fn device(seed: u64, nr_pages: u64) -> Bus {
    let nr_frames = nr_pages + Controller::<Bus, Region>::NR_FRAMES as u64;
    let frames = OwnFrames::new(&[(Gfn(FIRST), 3 * nr_frames), OTHERS]);
    // Frames that do not lie one behind the other.
    let given = (0..nr_frames).map(|n| FIRST + 3 * n);
    let pages = given.map(|frame| (frame, frames.page(Gfn(frame)).clone())).collect();
    Bus(Rc::new(RefCell::new(Device {
        rng: Rng::new(seed),
        frames,
        pages,
        cap: CAP,
        vs: 0x0001_0400,
        bar_len: 0x2000,
        cc: 0,
        csts: 0,
        aqa: 0,
        asq: 0,
        acq: 0,
        queues: BTreeMap::new(),
        pending: Vec::new(),
        mdts: 5,
        oncs: 0b1100,
        vwc: 1,
        nn: 4,
        discard_limits: (0, 0),
        identify: Vec::new(),
        namespaces: vec![SimNamespace::new(1, 9, 1024)],
        list: None,
        act: Box::new(|_| Act::Do),
        stuck: false,
        ready_delay: 2,
        ready_in: 0,
        stuck_shutdown: false,
        gone: false,
        bus_master: true,
        resists: true,
        manual: false,
        log: Vec::new(),
        admin_log: Vec::new(),
        cc_log: Vec::new(),
        nr_status_reads: 0,
        nr_doorbells: 0,
    })))
}

pub fn attach(bus: &Bus, interrupt: Interrupt) -> Result<Controller<Bus, Region>, nvme::Error> {
    let frames: Vec<Gfn> = bus.device().pages.keys().map(|&frame| Gfn(frame)).collect();
    Controller::new(bus.clone(), &mut bus.clone(), &frames, interrupt, Instant::from_ns(0))
}

impl Lab {
    /// Not stepped yet.
    pub fn attach(bus: Bus) -> Self {
        let mut controller = attach(&bus, Interrupt::Vector(1)).unwrap();
        controller.set_max_lent(NR_LENT);
        Self { bus, controller, now: Instant::from_ns(0), next_tag: 0, next_lent: 1 << 32 }
    }

    /// Ready.
    pub fn new(bus: Bus) -> Self {
        let mut lab = Self::attach(bus);
        lab.settle();
        assert_eq!(lab.controller.state(), State::Ready);
        lab
    }

    pub fn device(&self) -> RefMut<'_, Device> {
        self.bus.device()
    }

    /// One step, and what the device does then, unless it is driven by hand.
    pub fn step(&mut self) -> Option<Instant> {
        let next = self.controller.step(self.now);
        let mut device = self.device();
        if device.manual {
            device.run_admin();
        } else {
            device.run(usize::MAX);
        }
        drop(device);
        next
    }

    /// Steps until a time, or until nothing is to be waited for.
    pub fn run_until(&mut self, end: Instant) {
        while let Some(next) = self.step()
            && self.now < end
        {
            assert!(next > self.now, "it turns on the spot");
            self.now = next.min(end);
        }
    }

    /// Steps until the state is one that stays, for at most a hundred seconds.
    pub fn settle(&mut self) {
        let end = self.now.after(Duration::from_secs(100));
        loop {
            let next = self.step();
            match self.controller.state() {
                State::Starting | State::Resetting(_) | State::Stopping => {}
                State::Ready | State::Off | State::Failed(_) => break,
            }
            assert!(self.now < end, "{:?}", self.controller.state());
            self.now = next.expect("something to wait for");
        }
    }

    pub fn after(&mut self, seconds: u64) {
        let end = self.now.after(Duration::from_secs(seconds));
        self.run_until(end);
        self.now = end;
    }

    pub fn tag(&mut self) -> Tag {
        self.next_tag += 1;
        Tag(self.next_tag)
    }

    pub fn submit(&mut self, request: Request<Buffer>) -> Tag {
        self.submit_to(NS1, request)
    }

    pub fn submit_to(&mut self, nsid: NamespaceId, request: Request<Buffer>) -> Tag {
        let tag = self.tag();
        self.controller.submit(nsid, tag, request).unwrap();
        tag
    }

    pub fn read(&mut self, sector: u64, nr_sectors: u32) -> Tag {
        let buffer = self.controller.reserve(nr_sectors).unwrap();
        self.submit(Request::Read { sector, buffer })
    }

    /// A write of sectors that are all `byte`.
    pub fn write(&mut self, sector: u64, nr_sectors: u32, byte: u8) -> Tag {
        let buffer = self.filled(nr_sectors, byte);
        self.submit(Request::Write { sector, buffer })
    }

    pub fn filled(&mut self, nr_sectors: u32, byte: u8) -> Buffer {
        let buffer = self.controller.reserve(nr_sectors).unwrap();
        for page in self.pages(&buffer) {
            page.fill(byte);
        }
        buffer
    }

    /// A buffer of pages that are not ours, and those, if there is room.
    pub fn lend(&mut self, nr_sectors: u32) -> Option<(Buffer, Vec<(Gfn, Page)>)> {
        let nr_pages = u64::from(nr_sectors.div_ceil(8));
        let first = self.next_lent;
        let pages: Vec<_> = (first..first + nr_pages).map(|n| (Gfn(n), Page::new())).collect();
        let frames: Vec<Gfn> = pages.iter().map(|(frame, _)| *frame).collect();
        let buffer = self.controller.lend(&frames, nr_sectors)?;
        assert_eq!(self.controller.frames(&buffer).count(), 0, "none of ours");
        // No frame is used twice.
        self.next_lent += nr_pages;
        pages.iter().for_each(|(frame, page)| self.device().map(*frame, page));
        Some((buffer, pages))
    }

    pub fn pages(&self, buffer: &Buffer) -> Vec<Page> {
        let device = self.device();
        self.controller.frames(buffer).map(|frame| device.pages[&frame.0].clone()).collect()
    }

    pub fn contents(&self, buffer: &Buffer) -> Vec<u8> {
        let pages = self.pages(buffer);
        let mut bytes: Vec<u8> = pages.iter().flat_map(|page| page.bytes(0..PAGE_SIZE)).collect();
        bytes.truncate(buffer.nr_sectors() as usize * 512);
        bytes
    }

    /// Completions of a namespace; no frame of them is one that the device may still use.
    pub fn completions(&mut self, nsid: NamespaceId) -> Vec<Completion<Buffer>> {
        let completions: Vec<_> = std::iter::from_fn(|| self.controller.complete(nsid)).collect();
        if completions.is_empty() {
            return completions;
        }
        let in_use = self.device().frames_in_use();
        for buffer in completions.iter().filter_map(|completion| completion.buffer.as_ref()) {
            for frame in self.controller.frames(buffer) {
                assert!(!in_use.contains(&frame.0), "{frame:?} is still the device's");
            }
        }
        completions
    }

    /// What is completed: tag and result. Buffers are given back.
    pub fn results(&mut self) -> Vec<(Tag, Result<(), Failure>)> {
        let mut results = Vec::new();
        for Completion { tag, result, buffer } in self.completions(NS1) {
            if let Some(buffer) = buffer {
                self.controller.give_back(buffer);
            }
            results.push((tag, result));
        }
        results
    }

    /// Publishes, lets the device do what it does, and says what is completed.
    pub fn go(&mut self) -> Vec<(Tag, Result<(), Failure>)> {
        self.step();
        self.results()
    }
}
