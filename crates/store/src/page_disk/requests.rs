//! Reads, writes and discards of a disk of pages.

use core::ops::Range;

use xen_abi::{Gfn, PAGE_SIZE};

use super::base::Base;
use super::run::{Part, Parts};
use super::{PageDisk, SECTORS_PER_PAGE};
use crate::block_store::{
    BlockStore, Discard, Extent, ExtentSink, OpenRead, OpenWrite, Progress, Steps, StoreError,
};
use crate::geometry::{
    Access, BlockSize, DiscardLimits, Geometry, SECTOR_SIZE, SectorRange, SecureDiscard,
};
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::{PagePool, Released, Tail, Want};
use crate::table::Leaf;

/// Writes that one disk lets stand open; more are told to come back.
const MAX_OPEN_WRITES: usize = 64;

/// The pages that an open write is about to replace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written {
    pages: Range<u64>,
    coverage: Coverage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coverage {
    /// The write covers all of every page.
    Whole,
    /// Its first or last page keeps some of what was there when the write began.
    Partial,
}

impl Coverage {
    const fn by(range: SectorRange) -> Self {
        if range.first().is_multiple_of(SECTORS_PER_PAGE)
            && range.end().is_multiple_of(SECTORS_PER_PAGE)
        {
            Self::Whole
        } else {
            Self::Partial
        }
    }
}

impl PageDisk {
    /// Whether a write may go beside those that are open. Two that meet in a page are harmless as
    /// long as each covers all of it: the later commit wins. One that keeps part of the page would
    /// bring back what the other has replaced.
    fn may_open(&self, write: &Written) -> bool {
        let none_partial = self.nr_partial_writes == 0 && write.coverage == Coverage::Whole;
        self.open_writes.len() < MAX_OPEN_WRITES
            && (none_partial
                || !self.open_writes.iter().any(|open| {
                    (open.coverage == Coverage::Partial || write.coverage == Coverage::Partial)
                        && open.pages.start < write.pages.end
                        && write.pages.start < open.pages.end
                }))
    }

    /// Hands what a range reads as to `sink`.
    fn name<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        let numbers = pages(range);
        let mut leaf = self.table.leaf(pool, numbers.start);
        let mut parts = Parts::of(range);
        for number in numbers {
            if !leaf.is_for(number) {
                leaf = self.table.leaf(pool, number);
            }
            if let Some(part) = parts.add(number, leaf.page(pool, number)) {
                self.name_part(pool, part, sink)?;
            }
        }
        parts.end().map_or(Ok(()), |part| self.name_part(pool, part, sink))
    }

    #[inline]
    fn name_part<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        part: Part,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        match part {
            Part::Frames { at, len_bytes } => sink.extent(Extent::Frames { at, len_bytes }),
            Part::Absent { offset, len_bytes } => self.base.name(pool, offset, len_bytes, sink)?,
        }
        Ok(())
    }

    /// Whether a range lies in pages of the disk's own.
    pub(crate) fn has<M: FrameMemory>(&self, pool: &PagePool<M>, range: SectorRange) -> bool {
        pages(range).all(|number| self.table.leaf(pool, number).page(pool, number).is_some())
    }

    /// What a write of a range needs of the base, if anything: from the first to the last sector
    /// that it keeps of pages which the disk does not have.
    pub(crate) fn missing<M: FrameMemory>(
        &self,
        pool: &PagePool<M>,
        range: SectorRange,
    ) -> Option<SectorRange> {
        let whole = range.widened(SECTORS_PER_PAGE, self.nr_sectors);
        let is_absent = |sector: u64| {
            let number = sector / SECTORS_PER_PAGE;
            self.table.leaf(pool, number).page(pool, number).is_none()
        };
        let before = whole.first() < range.first() && is_absent(whole.first());
        let after = range.end() < whole.end() && is_absent(range.end());
        let first = if before { whole.first() } else { range.end() };
        let end = if after { whole.end() } else { range.first() };
        whole.within(&(first..end))
    }

    /// Says where a range of the base is.
    pub(crate) fn fetched(
        &mut self,
        range: SectorRange,
        frames: impl FnOnce(&mut dyn FnMut(Gfn)) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match &mut self.base {
            Base::Fetched(fetched) => fetched.set(range, frames),
            Base::Zeroes | Base::Image(_) => Ok(()),
        }
    }

    /// Checks that the disk may have one more page and `nr_nodes` more nodes. With its table it takes
    /// no more of the pool than it would with as many pages as it can have side by side.
    #[inline(never)]
    fn check_room(&self, nr_nodes: u64) -> Result<(), StoreError> {
        let nr_pages = self.table.nr_pages() + self.nr_coming;
        let nr_all = nr_pages + self.table.nr_nodes() + nr_nodes;
        if nr_pages < self.cap_pages
            && nr_all < self.cap_pages + self.table.nr_nodes_for(self.cap_pages)
        {
            Ok(())
        } else {
            Err(StoreError::CapReached { cap_pages: self.cap_pages })
        }
    }

    /// Opens a write for which nothing is reserved yet.
    pub(crate) fn open_write(&mut self, range: SectorRange) -> Result<OpenWrite, StoreError> {
        if self.access == Access::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        let written = Written { pages: pages(range), coverage: Coverage::by(range) };
        if !self.may_open(&written) {
            return Err(StoreError::Busy);
        }
        // Once it has grown to what its frontends keep open, nothing is allocated here.
        if self.open_writes.try_reserve(1).is_err() {
            return Err(StoreError::NoHeap);
        }
        self.nr_partial_writes += usize::from(written.coverage == Coverage::Partial);
        self.open_writes.push(written);
        Ok(OpenWrite::new(range))
    }

    /// Reserves a page for each that a write is to replace, and names them; all or none.
    pub(crate) fn reserve<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        write: &mut OpenWrite,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        let reserved = self.try_reserve(pool, write, sink);
        if reserved.is_err() {
            self.give_back(pool, write);
        }
        reserved
    }

    fn try_reserve<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        write: &mut OpenWrite,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        let coverage = Coverage::by(write.range);
        let mut leaf: Option<Leaf> = None;
        let mut tail = Tail::default();
        let mut parts = Parts::of(write.range);
        for number in pages(write.range) {
            let old = match leaf {
                Some(leaf) if leaf.is_for(number) => leaf.page(pool, number),
                _ => {
                    let (owned, old) = self.own_leaf(pool, number)?;
                    leaf = Some(owned);
                    old
                }
            };
            let want = match old {
                Some(old) => self.want_for(pool, old),
                None => {
                    self.check_room(0)?;
                    Want::More
                }
            };
            let page = pool.reserve(want, &mut write.reserved, &mut tail)?;
            if coverage == Coverage::Partial {
                self.fill_rest(pool, old, page, number, &bytes_in_page(write.range, number))?;
            }
            if old.is_none() {
                self.nr_coming += 1;
                write.nr_new += 1;
            }
            Part::name_frames(parts.add(number, Some(page)), sink);
        }
        Part::name_frames(parts.end(), sink);
        Ok(())
    }

    /// What a page is wanted for that is to replace `old`.
    #[inline]
    fn want_for<M: FrameMemory>(&self, pool: &PagePool<M>, old: Gfn) -> Want {
        // One that is the disk's alone goes back to the pool.
        if self.is_shared() && pool.is_shared(old) { Want::More } else { Want::Exchange }
    }

    /// Makes the place for the page at `number` the disk's own, and looks which page is there.
    #[inline(never)]
    fn own_leaf<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        number: u64,
    ) -> Result<(Leaf, Option<Gfn>), StoreError> {
        let found = self.table.leaf(pool, number);
        let page = found.page(pool, number);
        if page.is_none() {
            self.check_room(found.nr_missing())?;
        }
        Ok((self.table.own_leaf(pool, number)?, page))
    }

    /// Fills what a write does not cover of a new page with what the old one has there, or the base.
    fn fill_rest<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        old: Option<Gfn>,
        page: Gfn,
        number: u64,
        bytes: &Range<usize>,
    ) -> Result<(), StoreError> {
        for rest in [0..bytes.start, bytes.end..PAGE_SIZE] {
            if rest.is_empty() {
                continue;
            }
            let to = FrameAddr::start_of(page).after(rest.start);
            match old {
                Some(old) => {
                    let from = FrameAddr::start_of(old).after(rest.start);
                    pool.memory_mut().copy(from, to, rest.len());
                }
                None => {
                    let offset = byte_of(number) + rest.start as u64;
                    self.base.fill(pool, offset, to, rest.len())?;
                }
            }
        }
        Ok(())
    }

    /// Gives the pages back that were reserved for a write.
    fn give_back<M: FrameMemory>(&mut self, pool: &mut PagePool<M>, write: &mut OpenWrite) {
        self.nr_coming -= core::mem::take(&mut write.nr_new);
        while let Some(page) = pool.take_reserved(&mut write.reserved) {
            pool.release(page);
        }
    }

    #[inline]
    fn close(&mut self, write: &OpenWrite) {
        let pages = pages(write.range);
        if let Some(at) = self.open_writes.iter().position(|open| open.pages == pages) {
            let closed = self.open_writes.swap_remove(at);
            self.nr_partial_writes -= usize::from(closed.coverage == Coverage::Partial);
        } else {
            debug_assert!(false, "{} is not open", write.range);
        }
    }

    /// Writes zeroes over the parts of a range that cover no whole page, and has what was there
    /// erased once nobody has it. No write is open.
    pub(super) fn erase_edges<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
    ) -> Result<(), StoreError> {
        let Range { start, end } = pages(range);
        let (first, last) = (start, end - 1);
        for number in [Some(first), Some(last).filter(|_| first < last)].into_iter().flatten() {
            let sectors = number * SECTORS_PER_PAGE..(number + 1) * SECTORS_PER_PAGE;
            let edge = range.within(&sectors).filter(|edge| edge.nr() < SECTORS_PER_PAGE);
            let page = self.table.leaf(pool, number).page(pool, number);
            let (Some(edge), Some(old)) = (edge, page) else { continue };
            pool.doom(old);
            let (leaf, _) = self.own_leaf(pool, number)?;
            let page = pool.take(self.want_for(pool, old))?;
            let (from, to) = (FrameAddr::start_of(old), FrameAddr::start_of(page));
            pool.memory_mut().copy(from, to, PAGE_SIZE);
            let bytes = bytes_in_page(edge, number);
            pool.memory_mut().zero(to.after(bytes.start), bytes.len());
            if let Some(old) = self.table.replace(pool, leaf, number, page) {
                pool.release(old);
            }
        }
        Ok(())
    }
}

impl<M: FrameMemory> BlockStore<M> for PageDisk {
    fn geometry(&self) -> Geometry {
        let secure = match &self.base {
            Base::Zeroes if self.is_shared() => SecureDiscard::Shared,
            Base::Zeroes => SecureDiscard::Offered,
            Base::Image(_) | Base::Fetched(_) => SecureDiscard::No,
        };
        Geometry {
            nr_sectors: self.nr_sectors,
            logical: self.logical,
            physical_bytes: BlockSize::B4096.bytes(),
            access: self.access,
            discard: (self.access == Access::ReadWrite)
                .then_some(DiscardLimits { granularity_bytes: BlockSize::B4096.bytes(), secure }),
        }
    }

    fn unpack_unit_bytes(&self) -> Option<u64> {
        self.base().and_then(|image| image.unpack_unit_bytes())
    }

    fn begin_read(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        pool.try_read(|pool| self.name(pool, range, sink))
    }

    fn begin_write(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        let mut write = self.open_write(range)?;
        match self.reserve(pool, &mut write, sink) {
            Ok(()) => Ok(write),
            Err(error) => {
                self.abort_write(pool, write);
                Err(error)
            }
        }
    }

    fn commit_write(
        &mut self,
        pool: &mut PagePool<M>,
        mut write: OpenWrite,
    ) -> Result<Progress, StoreError> {
        self.close(&write);
        self.nr_coming -= write.nr_new;
        let numbers = pages(write.range);
        let mut leaf = self.table.leaf(pool, numbers.start);
        let mut released = Released::default();
        for number in numbers {
            let Some(page) = pool.take_reserved(&mut write.reserved) else { break };
            if !leaf.is_for(number) {
                leaf = self.table.leaf(pool, number);
            }
            if let Some(old) = self.table.replace(pool, leaf, number, page) {
                pool.release_to(&mut released, old);
            }
        }
        pool.put_back(&released);
        Ok(Progress::Done)
    }

    fn abort_write(&mut self, pool: &mut PagePool<M>, mut write: OpenWrite) {
        self.close(&write);
        self.give_back(pool, &mut write);
    }

    /// What is discarded reads as the base has it.
    fn discard(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        discard: Discard,
        steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        if self.access == Access::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        if discard == Discard::Secure && !self.base.is_zeroes() {
            return Err(StoreError::NotSecure);
        }
        self.check_quiet()?;
        // The disk's last page is whole where the disk ends.
        let end = match range.end() {
            end if end == self.nr_sectors => u64::MAX,
            end => end / SECTORS_PER_PAGE,
        };
        let whole = range.first().div_ceil(SECTORS_PER_PAGE)..end;
        let progress = self.table.remove(pool, &whole, discard, steps)?;
        if progress == Progress::Done && discard == Discard::Secure {
            self.erase_edges(pool, range)?;
        }
        Ok(progress)
    }
}

/// The numbers of the pages that a range touches.
#[inline]
const fn pages(range: SectorRange) -> Range<u64> {
    range.first() / SECTORS_PER_PAGE..range.end().div_ceil(SECTORS_PER_PAGE)
}

/// The first byte of the page at `number`.
const fn byte_of(number: u64) -> u64 {
    number * PAGE_SIZE as u64
}

/// The bytes of the page at `number`, one of its [`pages`], that a range covers.
#[inline]
fn bytes_in_page(range: SectorRange, number: u64) -> Range<usize> {
    let first = number * SECTORS_PER_PAGE;
    let start = range.first().max(first) - first;
    let end = range.end().min(first + SECTORS_PER_PAGE) - first;
    // At most a page.
    let byte = |sector| usize::try_from(sector).map_or(PAGE_SIZE, |sector| sector * SECTOR_SIZE);
    byte(start)..byte(end)
}
