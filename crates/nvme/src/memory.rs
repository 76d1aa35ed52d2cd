//! Memory that the controller reaches: its queues, and the pages that reads and writes are made of, our
//! own or lent.

use alloc::vec::Vec;
use core::fmt;

use store::{Buffer, Buffers, PageNumber, PartLimits};
use xen_abi::{Gfn, PAGE_SIZE, SharedMemory};

use crate::command::RANGE_LEN;

/// Where the controller finds a byte of our memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DmaAddr(pub u64);

impl DmaAddr {
    /// The byte `offset` bytes behind, of the same page.
    pub(crate) const fn plus(self, offset: usize) -> Self {
        Self(self.0 + offset as u64)
    }
}

impl fmt::Debug for DmaAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaAddr({:#x})", self.0)
    }
}

/// The seam to our frames as the controller reaches them.
pub trait Dma {
    /// Frames of ours that the controller can write.
    type Memory: SharedMemory;

    /// Our frames, one behind the other, as memory that the controller can write.
    fn memory(&mut self, frames: &[Gfn]) -> Self::Memory;

    /// Where the controller finds a frame; page-aligned.
    fn address(frame: Gfn) -> DmaAddr;
}

pub(crate) const ADMIN_SQ: PageNumber = PageNumber(0);
pub(crate) const ADMIN_CQ: PageNumber = PageNumber(1);
pub(crate) const IO_SQ: PageNumber = PageNumber(2);
pub(crate) const IO_CQ: PageNumber = PageNumber(3);
/// What Identify answers.
pub(crate) const IDENTIFY: PageNumber = PageNumber(4);
/// For each slot a range of Dataset Management.
const RANGES: PageNumber = PageNumber(5);
/// Pages that are not for buffers.
pub(crate) const NR_FIXED: usize = 6;

/// All our pages that the controller reaches.
#[derive(Debug)]
pub(crate) struct Memory<M> {
    memory: M,
    frames: Vec<Gfn>,
    /// Of those, and behind them of what is lent.
    addresses: Vec<DmaAddr>,
    address: fn(Gfn) -> DmaAddr,
    pub(crate) buffers: Buffers,
    /// Numbers of pages that are lent, behind our own.
    lent: Buffers,
}

impl<M: SharedMemory> Memory<M> {
    /// Zeroed frames, the fixed ones first.
    pub(crate) fn new<D: Dma<Memory = M>>(frames: &[Gfn], dma: &mut D) -> Self {
        let memory = dma.memory(frames);
        let addresses = frames.iter().map(|&frame| D::address(frame)).collect();
        for index in 0..frames.len() {
            memory.write(index * PAGE_SIZE, &[0; PAGE_SIZE]);
        }
        let buffers = Buffers::new(NR_FIXED..frames.len());
        let lent = Buffers::new(0..0);
        Self { memory, frames: frames.to_vec(), addresses, address: D::address, buffers, lent }
    }

    /// Has so many pages lent at once at most; none is yet.
    pub(crate) fn set_max_lent(&mut self, nr_pages: usize) {
        let nr_all = self.frames.len() + nr_pages;
        self.addresses.resize(nr_all, DmaAddr(0));
        self.lent = Buffers::new(self.frames.len()..nr_all);
    }

    /// Makes a buffer of pages that are not ours. `None` where too many are lent, or no page of ours is free
    /// that it needs for its PRP lists.
    pub(crate) fn lend(
        &mut self,
        frames: &[Gfn],
        nr_sectors: u32,
        limits: PartLimits,
    ) -> Option<Buffer> {
        let buffer = self.lent.reserve_with(&mut self.buffers, nr_sectors, limits)?;
        for (page, &frame) in self.lent.data(&buffer).zip(frames) {
            self.addresses[page.index()] = (self.address)(frame);
        }
        Some(buffer)
    }

    /// Takes a buffer back.
    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        if self.is_own(buffer.data()) {
            self.buffers.give_back(buffer);
        } else {
            self.lent.give_back_with(&mut self.buffers, buffer);
        }
    }

    const fn is_own(&self, page: PageNumber) -> bool {
        page.index() < self.frames.len()
    }

    /// The page behind one of a buffer.
    pub(crate) fn after(&self, page: PageNumber) -> PageNumber {
        let buffers = if self.is_own(page) { &self.buffers } else { &self.lent };
        buffers.after(page)
    }

    pub(crate) const fn shared(&self) -> &M {
        &self.memory
    }

    pub(crate) fn into_frames(self) -> Vec<Gfn> {
        self.frames
    }

    pub(crate) fn zero(&self, page: PageNumber) {
        self.memory.write(Self::at(page, 0), &[0; PAGE_SIZE]);
    }

    pub(crate) fn address(&self, page: PageNumber) -> DmaAddr {
        self.addresses[page.index()]
    }

    /// The frames of a buffer's data, one for each 8 sectors; none of one that is lent.
    pub(crate) fn frames(&self, buffer: &Buffer) -> impl Iterator<Item = Gfn> {
        let own = Some(&self.buffers).filter(|_| self.is_own(buffer.data()));
        own.into_iter().flat_map(|own| own.data(buffer)).map(|page| self.frames[page.index()])
    }

    /// PRP1 and PRP2 of so many pages from `first` on (4.3), and the page behind them. What a command
    /// does not name itself goes to `list`.
    pub(crate) fn describe(
        &self,
        first: PageNumber,
        nr_pages: u32,
        list: PageNumber,
    ) -> ([u64; 2], PageNumber) {
        let mut prp = [self.address(first).0, 0];
        if nr_pages > 2 {
            prp[1] = self.address(list).0;
        }
        let mut page = self.after(first);
        for index in 0..nr_pages as usize - 1 {
            let DmaAddr(address) = self.address(page);
            if nr_pages == 2 {
                prp[1] = address;
            } else {
                self.memory.write(Self::at(list, index * 8), &address.to_le_bytes());
            }
            page = self.after(page);
        }
        (prp, page)
    }

    /// Writes a slot's range of Dataset Management, and says where it is.
    pub(crate) fn write_range(&self, slot: usize, range: &[u8; RANGE_LEN]) -> DmaAddr {
        let offset = slot * RANGE_LEN;
        self.memory.write(Self::at(RANGES, offset), range);
        self.address(RANGES).plus(offset)
    }

    /// The first bytes of what Identify answered.
    pub(crate) fn read_identify(&self, into: &mut [u8]) {
        self.memory.read(Self::at(IDENTIFY, 0), into);
    }

    /// Byte `offset` of a page, in the whole.
    pub(crate) const fn at(page: PageNumber, offset: usize) -> usize {
        page.index() * PAGE_SIZE + offset
    }
}
