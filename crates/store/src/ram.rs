//! The RAM disk: thin, in pages of the pool.

use alloc::vec::Vec;
use core::ops::Range;

use xen_abi::{Gfn, PAGE_SIZE};

use crate::block_store::{
    BlockStore, Discard, Extent, ExtentSink, OpenRead, OpenWrite, Progress, Steps, StoreError,
};
use crate::geometry::{
    Access, BlockSize, DiscardLimits, Geometry, SECTOR_SIZE, SectorRange, SecureDiscard,
};
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::{PagePool, Want};
use crate::table::PageTable;

const SECTORS_PER_PAGE: u64 = (PAGE_SIZE / SECTOR_SIZE) as u64;

/// Writes that one disk lets stand open; more are told to come back.
const MAX_OPEN_WRITES: usize = 64;

/// A disk of pages that exist once they are written.
///
/// A write goes to new pages, which take the old ones' place when it is committed: until then the
/// disk is as it was, whatever becomes of the copy.
#[derive(Debug)]
pub struct RamDisk {
    nr_sectors: u64,
    logical: BlockSize,
    /// Pages that it can have.
    cap_pages: u64,
    /// Pages that it has, those of open writes included.
    nr_pages: u64,
    table: PageTable,
    open_writes: Vec<Written>,
}

/// The pages that an open write is about to replace.
#[derive(Debug, PartialEq, Eq)]
struct Written {
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

impl RamDisk {
    /// An empty disk of `nr_sectors` sectors that can have `cap_pages` pages at most. They are not
    /// set aside, but an otherwise empty pool must be able to hold that many.
    ///
    /// # Errors
    /// [`StoreError::Empty`], [`StoreError::Misaligned`] or [`StoreError::TooLarge`].
    pub fn new<M: FrameMemory>(
        nr_sectors: u64,
        logical: BlockSize,
        cap_pages: u64,
        pool: &PagePool<M>,
    ) -> Result<Self, StoreError> {
        check_size(nr_sectors, logical, cap_pages, pool)?;
        Ok(Self {
            nr_sectors,
            logical,
            cap_pages,
            nr_pages: 0,
            table: PageTable::new(nr_sectors.div_ceil(SECTORS_PER_PAGE)),
            open_writes: Vec::with_capacity(MAX_OPEN_WRITES),
        })
    }

    /// Makes the disk larger; what is new of it reads as zeroes.
    ///
    /// # Errors
    /// As [`new`](Self::new), [`StoreError::Shrinks`], or [`StoreError::NoMemory`]; the disk is
    /// then as it was.
    pub fn grow<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        nr_sectors: u64,
        cap_pages: u64,
    ) -> Result<(), StoreError> {
        if nr_sectors < self.nr_sectors {
            return Err(StoreError::Shrinks { wanted: nr_sectors, nr_sectors: self.nr_sectors });
        }
        check_size(nr_sectors, self.logical, cap_pages, pool)?;
        self.table.grow(pool, nr_sectors.div_ceil(SECTORS_PER_PAGE))?;
        self.nr_sectors = nr_sectors;
        self.cap_pages = cap_pages.max(self.cap_pages);
        Ok(())
    }

    /// Gives its pages back to the pool, a step each. The disk is empty when it is done.
    pub fn clear<M: FrameMemory>(&mut self, pool: &mut PagePool<M>, steps: &mut Steps) -> Progress {
        debug_assert!(self.open_writes.is_empty(), "a disk is cleared beside open writes");
        let nr_pages = &mut self.nr_pages;
        self.table.remove(pool, 0..u64::MAX, steps, &mut |pool, page| {
            pool.release(page);
            *nr_pages -= 1;
        })
    }

    /// Writes zeroes over the parts of a range that cover no whole page. No write is open.
    fn erase_edges<M: FrameMemory>(&self, pool: &mut PagePool<M>, range: SectorRange) {
        let pages = pages(range);
        for number in [pages.start, pages.end - 1] {
            let bytes = bytes_in_page(range, number);
            if bytes.len() < PAGE_SIZE
                && let Some(page) = self.table.get(pool, number)
            {
                let at = FrameAddr::start_of(page).after(bytes.start);
                pool.memory_mut().zero(at, bytes.len());
            }
        }
    }

    /// Whether a write may go beside those that are open. Two that meet in a page are harmless as
    /// long as each covers all of it: the later commit wins. One that keeps part of the page would
    /// bring back what the other has replaced.
    fn may_open(&self, write: &Written) -> bool {
        self.open_writes.len() < MAX_OPEN_WRITES
            && !self.open_writes.iter().any(|open| {
                (open.coverage == Coverage::Partial || write.coverage == Coverage::Partial)
                    && open.pages.start < write.pages.end
                    && write.pages.start < open.pages.end
            })
    }

    /// Adds a page that is to replace the one at `number` to what a write has reserved.
    fn reserve<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        write: &mut OpenWrite,
        number: u64,
        bytes: &Range<usize>,
    ) -> Result<Gfn, StoreError> {
        let old = self.table.get(pool, number);
        let page = if old.is_some() {
            pool.take(Want::Exchange)?
        } else {
            if self.nr_pages == self.cap_pages {
                return Err(StoreError::CapReached { cap_pages: self.cap_pages });
            }
            self.table.prepare(pool, number)?;
            let page = pool.take(Want::More)?;
            self.nr_pages += 1;
            write.nr_new += 1;
            page
        };
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
                None => pool.memory_mut().zero(to, rest.len()),
            }
        }
        Ok(page)
    }

    /// Gives the pages back that were reserved for a write.
    fn give_back<M: FrameMemory>(&mut self, pool: &mut PagePool<M>, write: &OpenWrite) {
        self.nr_pages -= write.nr_new;
        let mut reserved = write.reserved;
        while let Some(page) = reserved {
            reserved = pool.unlink_reserved(page);
            pool.release(page);
        }
    }

    fn close(&mut self, write: &OpenWrite) {
        let pages = pages(write.range);
        if let Some(at) = self.open_writes.iter().position(|open| open.pages == pages) {
            self.open_writes.swap_remove(at);
        } else {
            debug_assert!(false, "{} is not open", write.range);
        }
    }
}

impl<M: FrameMemory> BlockStore<M> for RamDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            nr_sectors: self.nr_sectors,
            logical: self.logical,
            physical_bytes: BlockSize::B4096.bytes(),
            access: Access::ReadWrite,
            discard: Some(DiscardLimits {
                granularity_bytes: BlockSize::B4096.bytes(),
                secure: SecureDiscard::Offered,
            }),
        }
    }

    fn begin_read(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        for number in pages(range) {
            let bytes = bytes_in_page(range, number);
            sink.extent(match self.table.get(pool, number) {
                Some(page) => Extent::Frames {
                    at: FrameAddr::start_of(page).after(bytes.start),
                    len_bytes: bytes.len(),
                },
                None => Extent::Zero { len_bytes: bytes.len() },
            });
        }
        Ok(pool.begin_read())
    }

    fn begin_write(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        let whole = range.first().is_multiple_of(SECTORS_PER_PAGE)
            && range.end().is_multiple_of(SECTORS_PER_PAGE);
        let written = Written {
            pages: pages(range),
            coverage: if whole { Coverage::Whole } else { Coverage::Partial },
        };
        if !self.may_open(&written) {
            return Err(StoreError::Busy);
        }
        let mut write = OpenWrite::new(range);
        let mut last = None;
        for number in pages(range) {
            let bytes = bytes_in_page(range, number);
            let page = match self.reserve(pool, &mut write, number, &bytes) {
                Ok(page) => page,
                Err(error) => {
                    self.give_back(pool, &write);
                    return Err(error);
                }
            };
            pool.link_reserved(last, page);
            write.reserved.get_or_insert(page);
            last = Some(page);
            sink.extent(Extent::Frames {
                at: FrameAddr::start_of(page).after(bytes.start),
                len_bytes: bytes.len(),
            });
        }
        self.open_writes.push(written);
        Ok(write)
    }

    fn commit_write(&mut self, pool: &mut PagePool<M>, write: OpenWrite) {
        self.close(&write);
        let mut reserved = write.reserved;
        let mut nr_new = 0;
        for number in pages(write.range) {
            let Some(page) = reserved else { break };
            reserved = pool.unlink_reserved(page);
            match self.table.replace(pool, number, page) {
                Some(old) => pool.release(old),
                None => nr_new += 1,
            }
        }
        // Another write may have brought a page meanwhile that this one had counted, too.
        self.nr_pages -= write.nr_new - nr_new;
    }

    fn abort_write(&mut self, pool: &mut PagePool<M>, write: OpenWrite) {
        self.close(&write);
        self.give_back(pool, &write);
    }

    fn discard(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        discard: Discard,
        steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        // What an open read refers to must not be erased under it.
        if !self.open_writes.is_empty() || (discard == Discard::Secure && pool.is_read()) {
            return Err(StoreError::Busy);
        }
        // The disk's last page is whole where the disk ends.
        let end = match range.end() {
            end if end == self.nr_sectors => end.div_ceil(SECTORS_PER_PAGE),
            end => end / SECTORS_PER_PAGE,
        };
        let whole = range.first().div_ceil(SECTORS_PER_PAGE)..end;
        let nr_pages = &mut self.nr_pages;
        let progress = self.table.remove(pool, whole, steps, &mut |pool, page| {
            match discard {
                Discard::Plain => pool.release(page),
                Discard::Secure => pool.release_erased(page),
            }
            *nr_pages -= 1;
        });
        if progress == Progress::Done && discard == Discard::Secure {
            self.erase_edges(pool, range);
        }
        Ok(progress)
    }
}

fn check_size<M: FrameMemory>(
    nr_sectors: u64,
    logical: BlockSize,
    cap_pages: u64,
    pool: &PagePool<M>,
) -> Result<(), StoreError> {
    if nr_sectors == 0 {
        return Err(StoreError::Empty);
    }
    let block = logical.sectors();
    if !nr_sectors.is_multiple_of(block) {
        return Err(StoreError::Misaligned { first: 0, nr: nr_sectors, block });
    }
    let table = PageTable::new(nr_sectors.div_ceil(SECTORS_PER_PAGE));
    let needed = cap_pages.saturating_add(table.nr_nodes(cap_pages));
    let usable = pool.nr_total() - pool.nr_reserve();
    if needed > usable {
        return Err(StoreError::TooLarge { needed, usable });
    }
    Ok(())
}

/// The numbers of the pages that a range touches.
const fn pages(range: SectorRange) -> Range<u64> {
    range.first() / SECTORS_PER_PAGE..range.end().div_ceil(SECTORS_PER_PAGE)
}

/// The bytes of the page at `number` that a range covers.
fn bytes_in_page(range: SectorRange, number: u64) -> Range<usize> {
    let first = number * SECTORS_PER_PAGE;
    let byte = |sector: u64| -> usize {
        let within = sector.clamp(first, first + SECTORS_PER_PAGE) - first;
        // At most a page.
        usize::try_from(within).unwrap_or(0) * SECTOR_SIZE
    };
    byte(range.first())..byte(range.end())
}
