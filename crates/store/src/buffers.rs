//! Buffers of a device whose pages it reaches at any time: reserved by number, used again and again.
//!
//! Pages are chained, so that to reserve some takes no memory. Those that were given back last are
//! the first to be used again: a backend that keeps few pages mapped then finds most of them
//! (`io/blkif.h`, `feature-persistent`).

use alloc::vec::Vec;
use core::iter;
use core::mem;
use core::ops::Range;

use crate::geometry::SECTORS_PER_PAGE;

/// The end of a chain.
const NIL: u32 = u32::MAX;

/// A page that a device reaches, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageNumber(pub u32);

impl PageNumber {
    /// As an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What one part of a transfer can be, as the device carries it out: a request of a ring, a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartLimits {
    /// Most pages, at least one.
    pub max_pages: usize,
    /// Most pages that the part names itself. More are named in a list, which takes a page.
    pub max_direct: usize,
}

impl PartLimits {
    /// Pages that the lists of a transfer of `nr_pages` take: only its last part is not a full one.
    fn nr_lists(self, nr_pages: usize) -> usize {
        let Self { max_pages, max_direct } = self;
        let has_list = |nr_pages| nr_pages > max_direct;
        let full = if has_list(max_pages) { nr_pages / max_pages } else { 0 };
        full + usize::from(has_list(nr_pages % max_pages))
    }
}

/// Pages that are reserved for one read or write, until they are given back.
#[must_use = "its pages are reserved until it is given back"]
#[derive(PartialEq, Eq, Debug)]
pub struct Buffer {
    /// The pages of lists, and behind them those of the data.
    lists: PageNumber,
    data: PageNumber,
    nr_sectors: u32,
}

impl Buffer {
    /// Its length in sectors of 512 bytes, at least one.
    #[must_use]
    pub const fn nr_sectors(&self) -> u32 {
        self.nr_sectors
    }

    /// The first page of lists: there are as many as the parts need ([`PartLimits`]), maybe none.
    #[must_use]
    pub const fn lists(&self) -> PageNumber {
        self.lists
    }

    /// The first page of the data.
    #[must_use]
    pub const fn data(&self) -> PageNumber {
        self.data
    }
}

/// The pages that the buffers of a device are made of.
#[derive(Debug)]
pub struct Buffers {
    /// For each page the next of its chain.
    next: Vec<u32>,
    free: u32,
    nr_free: usize,
    nr_pages: usize,
}

impl Buffers {
    /// Pages of these numbers, less than 2^32 - 1; the lowest are used first.
    #[must_use]
    pub fn new(numbers: Range<usize>) -> Self {
        let number = |index| u32::try_from(index).unwrap_or(NIL);
        let numbers = number(numbers.start)..number(numbers.end);
        let next = (1..numbers.end).chain([NIL]).collect();
        let free = if numbers.is_empty() { NIL } else { numbers.start };
        Self { next, free, nr_free: numbers.len(), nr_pages: numbers.len() }
    }

    /// The longest buffer that there can be, in sectors of 512 bytes.
    #[must_use]
    pub fn max_sectors(&self, limits: PartLimits) -> u64 {
        let fits = |nr_data: &usize| nr_data + limits.nr_lists(*nr_data) <= self.nr_pages;
        // All pages but those of the lists, which are few.
        let nr_data = (0..=self.nr_pages).rev().find(fits).unwrap_or(0);
        nr_data as u64 * u64::from(SECTORS_PER_PAGE)
    }

    /// Reserves a buffer; `None` where too few pages are free, or for no sectors.
    #[must_use]
    pub fn reserve(&mut self, nr_sectors: u32, limits: PartLimits) -> Option<Buffer> {
        let nr_data = nr_sectors.div_ceil(SECTORS_PER_PAGE) as usize;
        let nr_lists = limits.nr_lists(nr_data);
        if nr_data == 0 || nr_data + nr_lists > self.nr_free {
            return None;
        }
        let lists = self.take(nr_lists + nr_data);
        let data = (0..nr_lists).fold(lists, |page, _| self.after(page));
        Some(Buffer { lists, data, nr_sectors })
    }

    /// As [`reserve`](Self::reserve), of a buffer whose lists are pages of another pool.
    #[must_use]
    pub fn reserve_with(
        &mut self,
        others: &mut Self,
        nr_sectors: u32,
        limits: PartLimits,
    ) -> Option<Buffer> {
        let nr_data = nr_sectors.div_ceil(SECTORS_PER_PAGE) as usize;
        let nr_lists = limits.nr_lists(nr_data);
        if nr_data == 0 || nr_data > self.nr_free || nr_lists > others.nr_free {
            return None;
        }
        let lists = if nr_lists > 0 { others.take(nr_lists) } else { PageNumber(NIL) };
        Some(Buffer { lists, data: self.take(nr_data), nr_sectors })
    }

    /// Takes a buffer's pages back.
    #[expect(clippy::needless_pass_by_value, reason = "it is not to be used again")]
    pub fn give_back(&mut self, buffer: Buffer) {
        self.put(buffer.lists);
    }

    /// Takes back the pages of a buffer whose lists are another pool's.
    #[expect(clippy::needless_pass_by_value, reason = "it is not to be used again")]
    pub fn give_back_with(&mut self, others: &mut Self, buffer: Buffer) {
        self.put(buffer.data);
        if buffer.lists.0 != NIL {
            others.put(buffer.lists);
        }
    }

    /// Takes so many of the free pages, at least one and no more than there are: the first of their chain.
    fn take(&mut self, nr_pages: usize) -> PageNumber {
        let first = PageNumber(self.free);
        let last = (1..nr_pages).fold(first, |page, _| self.after(page));
        self.free = mem::replace(&mut self.next[last.index()], NIL);
        self.nr_free -= nr_pages;
        first
    }

    /// Puts a chain before those that are free.
    fn put(&mut self, first: PageNumber) {
        let (nr_pages, last) = self.chain(first).fold((0, first), |(nr, _), page| (nr + 1, page));
        self.nr_free += nr_pages;
        self.next[last.index()] = self.free;
        self.free = first.0;
    }

    /// The page behind one of a buffer; no page's number behind its last.
    #[must_use]
    pub fn after(&self, page: PageNumber) -> PageNumber {
        PageNumber(self.next[page.index()])
    }

    /// The pages of a buffer's data, one for each 8 sectors.
    pub fn data(&self, buffer: &Buffer) -> impl Iterator<Item = PageNumber> {
        self.chain(buffer.data)
    }

    /// A page and all behind it.
    fn chain(&self, first: PageNumber) -> impl Iterator<Item = PageNumber> {
        iter::successors(Some(first), |&page| Some(self.after(page)).filter(|page| page.0 != NIL))
    }
}
