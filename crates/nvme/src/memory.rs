//! Memory that the controller reaches: its queues, and the pages that reads and writes are made of.
//!
//! Pages are chained by number, so that to reserve one takes no memory.

use alloc::vec::Vec;
use core::fmt;

use xen_abi::{Gfn, PAGE_SIZE, SharedMemory};

use crate::command::RANGE_LEN;

/// Sectors of a page.
pub(crate) const SECTORS_PER_PAGE: u32 = 8;

/// The end of a chain.
const NIL: u32 = u32::MAX;

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
    fn address(&self, frame: Gfn) -> DmaAddr;
}

/// A page of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Page(u32);

impl Page {
    pub(crate) const ADMIN_SQ: Self = Self(0);
    pub(crate) const ADMIN_CQ: Self = Self(1);
    pub(crate) const IO_SQ: Self = Self(2);
    pub(crate) const IO_CQ: Self = Self(3);
    /// What Identify answers.
    pub(crate) const IDENTIFY: Self = Self(4);
    /// For each slot a range of Dataset Management.
    pub(crate) const RANGES: Self = Self(5);
    /// Those that are not for data.
    pub(crate) const NR_FIXED: usize = 6;

    const fn offset(self) -> usize {
        self.0 as usize * PAGE_SIZE
    }
}

/// Pages that are reserved for one read or write, until they are given back.
#[must_use = "its pages are reserved until it is given back"]
#[derive(Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The pages of PRP lists, and behind them those of the data.
    lists: Page,
    data: Page,
    nr_sectors: u32,
}

impl Buffer {
    /// Its length in sectors of 512 bytes, at least one.
    #[must_use]
    pub const fn nr_sectors(&self) -> u32 {
        self.nr_sectors
    }

    /// The first PRP list; there are as many as [`nr_lists`] says.
    pub(crate) const fn lists(&self) -> Page {
        self.lists
    }

    pub(crate) const fn data(&self) -> Page {
        self.data
    }
}

/// PRP lists of a transfer of `nr_pages`, in commands of at most `max_pages`: a command names two
/// pages itself.
pub(crate) const fn nr_lists(nr_pages: usize, max_pages: usize) -> usize {
    let full = if max_pages > 2 { nr_pages / max_pages } else { 0 };
    full + (nr_pages % max_pages > 2) as usize
}

/// All our pages that the controller reaches.
#[derive(Debug)]
pub(crate) struct Memory<M> {
    memory: M,
    frames: Vec<Gfn>,
    addresses: Vec<DmaAddr>,
    /// For each page the next of its chain.
    next: Vec<u32>,
    free: u32,
    nr_free: usize,
}

impl<M: SharedMemory> Memory<M> {
    /// Zeroed frames, the fixed ones first.
    pub(crate) fn new<D: Dma<Memory = M>>(frames: &[Gfn], dma: &mut D) -> Self {
        let memory = dma.memory(frames);
        let addresses = frames.iter().map(|&frame| dma.address(frame)).collect();
        let nr_pages = u32::try_from(frames.len()).unwrap_or(NIL);
        let next = (1..nr_pages).chain([NIL]).collect();
        let (free, nr_free) = match frames.len().checked_sub(Page::NR_FIXED) {
            None | Some(0) => (NIL, 0),
            #[expect(clippy::cast_possible_truncation, reason = "a few")]
            Some(nr_free) => (Page::NR_FIXED as u32, nr_free),
        };
        let all = Self { memory, frames: frames.to_vec(), addresses, next, free, nr_free };
        (0..nr_pages).for_each(|page| all.zero(Page(page)));
        all
    }

    pub(crate) const fn shared(&self) -> &M {
        &self.memory
    }

    pub(crate) fn into_frames(self) -> Vec<Gfn> {
        self.frames
    }

    /// Pages for data and PRP lists, in all.
    pub(crate) const fn nr_pool(&self) -> usize {
        self.frames.len().saturating_sub(Page::NR_FIXED)
    }

    pub(crate) fn zero(&self, page: Page) {
        self.memory.write(page.offset(), &[0; PAGE_SIZE]);
    }

    pub(crate) fn address(&self, page: Page) -> DmaAddr {
        self.addresses[page.0 as usize]
    }

    /// Reserves pages for a transfer; `None` where too few are free, or for no sectors.
    pub(crate) fn reserve(&mut self, nr_sectors: u32, max_pages: usize) -> Option<Buffer> {
        let nr_data = nr_sectors.div_ceil(SECTORS_PER_PAGE) as usize;
        let nr_lists = nr_lists(nr_data, max_pages);
        if nr_data == 0 || nr_data + nr_lists > self.nr_free {
            return None;
        }
        let lists = Page(self.free);
        let mut data = lists;
        for _ in 0..nr_lists {
            data = self.after(data);
        }
        let mut last = data;
        for _ in 1..nr_data {
            last = self.after(last);
        }
        self.free = core::mem::replace(&mut self.next[last.0 as usize], NIL);
        self.nr_free -= nr_data + nr_lists;
        Some(Buffer { lists, data, nr_sectors })
    }

    /// Takes pages back.
    #[expect(clippy::needless_pass_by_value, reason = "it is not to be used again")]
    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        let mut last = buffer.lists;
        self.nr_free += 1;
        while self.after(last).0 != NIL {
            last = self.after(last);
            self.nr_free += 1;
        }
        self.next[last.0 as usize] = self.free;
        self.free = buffer.lists.0;
    }

    /// The page behind one that is not the last of its chain.
    pub(crate) fn after(&self, page: Page) -> Page {
        Page(self.next[page.0 as usize])
    }

    /// The frames of a buffer's data, one for each 8 sectors.
    pub(crate) fn frames(&self, buffer: &Buffer) -> impl Iterator<Item = Gfn> {
        let next = |&page: &Page| Some(self.after(page)).filter(|page| page.0 != NIL);
        let pages = core::iter::successors(Some(buffer.data), next);
        pages.map(|page| self.frames[page.0 as usize])
    }

    /// PRP1 and PRP2 of so many pages from `first` on (4.3), and the page behind them. What a command
    /// does not name itself goes to `list`.
    pub(crate) fn describe(&self, first: Page, nr_pages: u32, list: Page) -> ([u64; 2], Page) {
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
                self.memory.write(list.offset() + index * 8, &address.to_le_bytes());
            }
            page = self.after(page);
        }
        (prp, page)
    }

    /// Writes a slot's range of Dataset Management, and says where it is.
    pub(crate) fn write_range(&self, slot: usize, range: &[u8; RANGE_LEN]) -> DmaAddr {
        let offset = slot * RANGE_LEN;
        self.memory.write(Page::RANGES.offset() + offset, range);
        self.address(Page::RANGES).plus(offset)
    }

    /// The first bytes of what Identify answered.
    pub(crate) fn read_identify(&self, into: &mut [u8]) {
        self.memory.read(Page::IDENTIFY.offset(), into);
    }

    /// Byte `offset` of a page, in the whole.
    pub(crate) const fn at(page: Page, offset: usize) -> usize {
        page.offset() + offset
    }
}
