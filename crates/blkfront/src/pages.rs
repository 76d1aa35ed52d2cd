//! The pages that requests are made of: granted once, and used again and again.
//!
//! They are chained by number, so that to reserve a page takes no memory. The page that was given
//! back last is the first to be used again: a backend that keeps few pages mapped then finds most of
//! them (`io/blkif.h`, `feature-persistent`).

use alloc::vec::Vec;

use blkif::{MAX_SEGMENTS, SECTOR_SIZE, Segment};
use xen_abi::{Gfn, GrantRef, PAGE_SIZE, SharedMemory};

use crate::granted::{Granted, Retired};

/// Sectors of a page.
pub(crate) const SECTORS_PER_PAGE: u8 = 8;

const _: () = assert!(SECTORS_PER_PAGE as usize * SECTOR_SIZE as usize == PAGE_SIZE);

/// The end of a chain.
const NIL: u32 = u32::MAX;

/// A page of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Page(u32);

/// Pages that are reserved for one read or write, until they are given back.
#[must_use = "its pages are reserved until it is given back"]
#[derive(Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The pages of segments of indirect requests, and behind them those of the data.
    tables: Page,
    data: Page,
    nr_sectors: u32,
}

impl Buffer {
    /// Its length in sectors of 512 bytes, at least one.
    #[must_use]
    pub const fn nr_sectors(&self) -> u32 {
        self.nr_sectors
    }

    /// The first page of segments; there are as many as [`nr_tables`] says.
    pub(crate) const fn tables(&self) -> Page {
        self.tables
    }

    pub(crate) const fn data(&self) -> Page {
        self.data
    }
}

/// Pages that hold the segments of a transfer of `nr_pages`, in requests of at most `max_segments`.
pub(crate) fn nr_tables(nr_pages: usize, max_segments: usize) -> usize {
    let is_indirect = |nr_segments| nr_segments > MAX_SEGMENTS;
    let full = if is_indirect(max_segments) { nr_pages / max_segments } else { 0 };
    full + usize::from(is_indirect(nr_pages % max_segments))
}

/// The pool.
#[derive(Debug)]
pub(crate) struct Pages<M> {
    memory: M,
    granted: Vec<Granted>,
    /// For each page the next of its chain.
    next: Vec<u32>,
    free: u32,
    nr_free: usize,
}

impl<M: SharedMemory> Pages<M> {
    /// A pool of these pages, of which `memory` consists.
    pub(crate) fn new((granted, memory): (Vec<Granted>, M)) -> Self {
        let nr_pages = u32::try_from(granted.len()).unwrap_or(NIL);
        let next = (1..nr_pages).chain([NIL]).collect();
        let free = if nr_pages == 0 { NIL } else { 0 };
        Self { memory, nr_free: granted.len(), granted, next, free }
    }

    /// Pages in all.
    pub(crate) const fn nr_pages(&self) -> usize {
        self.granted.len()
    }

    /// Reserves pages for a transfer; `None` where too few are free, or for no sectors.
    pub(crate) fn reserve(&mut self, nr_sectors: u32, max_segments: usize) -> Option<Buffer> {
        let nr_data = (nr_sectors as usize).div_ceil(SECTORS_PER_PAGE as usize);
        let nr_tables = nr_tables(nr_data, max_segments);
        if nr_data == 0 || nr_data + nr_tables > self.nr_free {
            return None;
        }
        let tables = Page(self.free);
        let mut data = tables;
        for _ in 0..nr_tables {
            data = self.after(data);
        }
        let mut last = data;
        for _ in 1..nr_data {
            last = self.after(last);
        }
        self.free = core::mem::replace(&mut self.next[last.0 as usize], NIL);
        self.nr_free -= nr_data + nr_tables;
        Some(Buffer { tables, data, nr_sectors })
    }

    /// Takes pages back.
    #[expect(clippy::needless_pass_by_value, reason = "it is not to be used again")]
    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        let mut last = buffer.tables;
        self.nr_free += 1;
        while self.after(last).0 != NIL {
            last = self.after(last);
            self.nr_free += 1;
        }
        self.next[last.0 as usize] = self.free;
        self.free = buffer.tables.0;
    }

    /// The page behind one that is not the last of its chain.
    pub(crate) fn after(&self, page: Page) -> Page {
        Page(self.next[page.0 as usize])
    }

    pub(crate) fn gref(&self, page: Page) -> GrantRef {
        self.granted[page.0 as usize].gref()
    }

    /// The frames of a buffer's data, one for each 8 sectors.
    pub(crate) fn frames(&self, buffer: &Buffer) -> impl Iterator<Item = Gfn> {
        let next = |&page: &Page| Some(self.after(page)).filter(|page| page.0 != NIL);
        let pages = core::iter::successors(Some(buffer.data), next);
        pages.map(|page| self.granted[page.0 as usize].frame())
    }

    /// Writes a segment of an indirect request.
    pub(crate) fn write_segment(&self, table: Page, index: usize, segment: &Segment) {
        let at = table.0 as usize * PAGE_SIZE + index * Segment::LEN_BYTES;
        self.memory.write(at, &segment.encode());
    }

    pub(crate) fn retire(self, retired: &mut Retired) {
        retired.add(self.granted);
    }
}
