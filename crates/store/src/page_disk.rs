//! The disk of pages: thin, over zeroes or over an image.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;

use xen_abi::{Gfn, PAGE_SIZE};

use crate::block_store::{
    BlockStore, Discard, Extent, ExtentSink, OpenRead, OpenWrite, Progress, Steps, StoreError,
};
use crate::extents::Run;
use crate::geometry::{
    Access, BlockSize, DiscardLimits, Geometry, SECTOR_SIZE, SectorRange, SecureDiscard,
};
use crate::image::Image;
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::{PagePool, Want};
use crate::table::{Leaf, PageTable, Tree, drop_tree};

pub(crate) const SECTORS_PER_PAGE: u64 = (PAGE_SIZE / SECTOR_SIZE) as u64;

/// Sectors of a disk whose bytes 64 bits can count.
const MAX_SECTORS: u64 = u64::MAX / SECTOR_SIZE as u64;

/// Writes that one disk lets stand open; more are told to come back.
const MAX_OPEN_WRITES: usize = 64;

/// A disk of pages that exist once they are written. What has no page reads as the disk's base has
/// it: as zeroes, or as the bytes of an image.
///
/// A write goes to new pages, which take the old ones' place when it is committed: until then the
/// disk is as it was, whatever becomes of the copy.
///
/// A disk that is dropped without being [cleared](Self::clear) keeps its pages for good.
#[derive(Debug)]
pub struct PageDisk {
    nr_sectors: u64,
    logical: BlockSize,
    access: Access,
    /// What lies below the pages: an image, or zeroes.
    base: Option<Rc<Image>>,
    /// Pages that it can have.
    cap_pages: u64,
    table: PageTable,
    /// What was in the table and is being given back.
    dropped: Option<Tree>,
    /// All disks that may have pages in common with this one hold it, too.
    family: Option<Rc<()>>,
    open_writes: Vec<Written>,
    /// Pages that open writes are to bring.
    nr_coming: u64,
}

/// What a disk takes of the pool. What several disks have in common counts for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Pages with the disk's own data.
    pub nr_pages: u64,
    /// How many it can have.
    pub cap_pages: u64,
    /// Pages of its table.
    pub nr_nodes: u64,
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

impl PageDisk {
    /// A disk of `nr_sectors` sectors of zeroes that can have `cap_pages` pages at most. They are
    /// not set aside, but an otherwise empty pool must be able to hold that many.
    ///
    /// # Errors
    /// [`StoreError::Empty`], [`StoreError::Misaligned`], [`StoreError::TooLarge`] or
    /// [`StoreError::TooManySectors`].
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
            access: Access::ReadWrite,
            base: None,
            cap_pages,
            table: PageTable::new(nr_sectors.div_ceil(SECTORS_PER_PAGE)),
            dropped: None,
            family: None,
            open_writes: Vec::with_capacity(MAX_OPEN_WRITES),
            nr_coming: 0,
        })
    }

    /// A disk that begins as an image, which stays as it is. Without a cap it can have a page for
    /// each of the image's, or as many as the pool can hold.
    ///
    /// # Errors
    /// [`StoreError::Empty`] or [`StoreError::TooLarge`].
    pub fn overlay<M: FrameMemory>(
        image: Rc<Image>,
        cap_pages: Option<u64>,
        pool: &PagePool<M>,
    ) -> Result<Self, StoreError> {
        let nr_sectors = image.nr_sectors();
        let cap_pages = cap_pages.unwrap_or_else(|| {
            let nr_pages = nr_sectors.div_ceil(SECTORS_PER_PAGE);
            let usable = pool.nr_usable();
            let nr_nodes = PageTable::new(nr_pages).nr_nodes_for(usable);
            nr_pages.min(usable.saturating_sub(nr_nodes))
        });
        let disk = Self::new(nr_sectors, BlockSize::B512, cap_pages, pool)?;
        Ok(Self { base: Some(image), ..disk })
    }

    /// A disk that begins as this one is now: a snapshot if it is read-only, else a clone. They
    /// have their pages in common until one of them writes there, so this takes the same time
    /// whatever was written. It has the same cap.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while a write is open.
    pub fn snapshot<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        access: Access,
    ) -> Result<Self, StoreError> {
        self.check_quiet()?;
        let family = Rc::clone(self.family.get_or_insert_default());
        Ok(Self {
            access,
            base: self.base.clone(),
            table: self.table.share(pool),
            dropped: None,
            family: Some(family),
            open_writes: Vec::with_capacity(MAX_OPEN_WRITES),
            ..*self
        })
    }

    /// Makes the disk larger; what is new of it reads as zeroes.
    ///
    /// # Errors
    /// As [`new`](Self::new), [`StoreError::Shrinks`], [`StoreError::NoMemory`], or
    /// [`StoreError::Busy`] while a write is open; the disk is then as it was.
    pub fn grow<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        nr_sectors: u64,
        cap_pages: u64,
    ) -> Result<(), StoreError> {
        self.check_quiet()?;
        if nr_sectors < self.nr_sectors {
            return Err(StoreError::Shrinks { wanted: nr_sectors, nr_sectors: self.nr_sectors });
        }
        check_size(nr_sectors, self.logical, cap_pages, pool)?;
        self.table.grow(pool, nr_sectors.div_ceil(SECTORS_PER_PAGE))?;
        self.nr_sectors = nr_sectors;
        self.cap_pages = cap_pages.max(self.cap_pages);
        Ok(())
    }

    /// Makes the disk smaller, if it has no image below it. Its pages go back to the pool a step
    /// each; it is smaller once that is done, and should not be used before.
    ///
    /// # Errors
    /// As [`new`](Self::new), [`StoreError::Shrinks`] where there is an image,
    /// [`StoreError::NoMemory`] where what others have in common with it has to be copied, or
    /// [`StoreError::Busy`] while a write is open.
    pub fn shrink<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        nr_sectors: u64,
        steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        self.check_quiet()?;
        self.logical.check_size(nr_sectors)?;
        if nr_sectors > self.nr_sectors || self.base.is_some() {
            return Err(StoreError::Shrinks { wanted: nr_sectors, nr_sectors: self.nr_sectors });
        }
        let nr_pages = nr_sectors.div_ceil(SECTORS_PER_PAGE);
        let gone = nr_pages..u64::MAX;
        if self.table.remove(pool, &gone, Discard::Plain, steps)? == Progress::More {
            return Ok(Progress::More);
        }
        // What is left of the last page would be there again if the disk grew.
        let end = (nr_pages * SECTORS_PER_PAGE).min(self.nr_sectors);
        let geometry = BlockStore::<M>::geometry(self);
        if let Ok(rest) = SectorRange::on(&geometry, nr_sectors, end - nr_sectors) {
            self.erase_edges(pool, rest)?;
        }
        self.nr_sectors = nr_sectors;
        self.cap_pages = self.cap_pages.min(nr_pages);
        Ok(Progress::Done)
    }

    /// Empties the disk: it reads as its base from the first call on. Its pages go back to the
    /// pool a step each.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`], or [`StoreError::Busy`] while a write is open; nothing was done.
    pub fn discard_all<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        self.check_quiet()?;
        if self.access == Access::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        if self.dropped.is_none() {
            self.dropped = self.table.take_tree();
        }
        Ok(self.drop_pages(pool, steps))
    }

    /// Gives all that the disk has back to the pool, a step a page, before it is dropped. What
    /// others have in common with it costs no steps. Nothing is done while a write is open.
    pub fn clear<M: FrameMemory>(&mut self, pool: &mut PagePool<M>, steps: &mut Steps) -> Progress {
        if self.check_quiet().is_err() {
            debug_assert!(false, "a disk is cleared beside open writes");
            return Progress::More;
        }
        if self.drop_pages(pool, steps) == Progress::More {
            return Progress::More;
        }
        self.dropped = self.table.take_tree();
        self.drop_pages(pool, steps)
    }

    fn drop_pages<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        steps: &mut Steps,
    ) -> Progress {
        let progress = drop_tree(pool, &mut self.dropped, steps);
        if progress == Progress::Done && self.table.tree().is_none() {
            self.family = None;
        }
        progress
    }

    /// What it takes of the pool now.
    #[must_use]
    pub const fn usage(&self) -> Usage {
        Usage {
            nr_pages: self.table.nr_pages(),
            cap_pages: self.cap_pages,
            nr_nodes: self.table.nr_nodes(),
        }
    }

    /// The image it stands on, if it does.
    #[must_use]
    pub const fn base(&self) -> Option<&Rc<Image>> {
        self.base.as_ref()
    }

    /// Everything that its pages hang off, and what they come to.
    pub(crate) fn trees(&self) -> ([Option<Tree>; 2], Usage) {
        ([self.table.tree(), self.dropped], self.usage())
    }

    fn check_quiet(&self) -> Result<(), StoreError> {
        if self.open_writes.is_empty() { Ok(()) } else { Err(StoreError::Busy) }
    }

    /// Whether other disks may have pages in common with this one.
    fn is_shared(&self) -> bool {
        self.family.as_ref().is_some_and(|family| Rc::strong_count(family) > 1)
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

    /// Hands what a range reads as to `sink`.
    fn name<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        let numbers = pages(range);
        let mut leaf = self.table.leaf(pool, numbers.start);
        let mut run = None;
        for number in numbers {
            if !leaf.is_for(number) {
                leaf = self.table.leaf(pool, number);
            }
            let bytes = bytes_in_page(range, number);
            let part = match leaf.page(pool, number) {
                Some(page) => Run::in_page(page, &bytes),
                None => Run::Absent {
                    offset: byte_of(number) + bytes.start as u64,
                    len_bytes: bytes.len(),
                },
            };
            if let Some(run) = Run::join(&mut run, part) {
                self.name_run(pool, run, sink)?;
            }
        }
        run.map_or(Ok(()), |run| self.name_run(pool, run, sink))
    }

    fn name_run<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        run: Run,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        match (run, &self.base) {
            (Run::Frames { at, len_bytes }, _) => sink.extent(Extent::Frames { at, len_bytes }),
            (Run::Absent { len_bytes, .. }, None) => sink.extent(Extent::Zero { len_bytes }),
            (Run::Absent { offset, len_bytes }, Some(image)) => {
                image.read(pool, offset, len_bytes, sink)?;
            }
        }
        Ok(())
    }

    /// Copies what the base has at byte `offset` to `to`.
    fn fill<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        offset: u64,
        to: FrameAddr,
        len_bytes: usize,
    ) -> Result<(), StoreError> {
        let Some(image) = &self.base else {
            pool.memory_mut().zero(to, len_bytes);
            return Ok(());
        };
        let read = pool.begin_read();
        let mut done = 0;
        let result = loop {
            if done >= len_bytes {
                break Ok(());
            }
            // The pool is the image's while it names extents. Nearly always there is but one.
            let mut first = None;
            let mut sink = |extent| _ = first.get_or_insert(extent);
            if let Err(error) = image.read(pool, offset + done as u64, len_bytes - done, &mut sink)
            {
                break Err(error);
            }
            let to = to.after(done);
            done += match first {
                Some(Extent::Frames { at, len_bytes }) => {
                    pool.memory_mut().copy(at, to, len_bytes);
                    len_bytes
                }
                Some(Extent::Zero { len_bytes } | Extent::Discarded { len_bytes }) => {
                    pool.memory_mut().zero(to, len_bytes);
                    len_bytes
                }
                None => {
                    debug_assert!(false, "an image names fewer bytes than were asked for");
                    pool.memory_mut().zero(to, len_bytes - done);
                    len_bytes - done
                }
            };
        };
        pool.end_read(read);
        result
    }

    /// Adds a page that is to replace the one at `number` to what a write has reserved.
    fn reserve<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        write: &mut OpenWrite,
        leaf: &mut Option<Leaf>,
        number: u64,
        bytes: &Range<usize>,
    ) -> Result<Gfn, StoreError> {
        if self.table.nr_pages() + self.nr_coming >= self.cap_pages
            && self.table.leaf(pool, number).page(pool, number).is_none()
        {
            return Err(StoreError::CapReached { cap_pages: self.cap_pages });
        }
        let leaf = match *leaf {
            Some(leaf) if leaf.is_for(number) => leaf,
            _ => *leaf.insert(self.table.own_leaf(pool, number, self.cap_pages)?),
        };
        let old = leaf.page(pool, number);
        let page = pool.take(match old {
            // The old page goes back to the pool when the write is committed.
            Some(old) if !pool.is_shared(old) => Want::Exchange,
            _ => Want::More,
        })?;
        for rest in [0..bytes.start, bytes.end..PAGE_SIZE] {
            if rest.is_empty() {
                continue;
            }
            let to = FrameAddr::start_of(page).after(rest.start);
            let filled = match old {
                Some(old) => {
                    let from = FrameAddr::start_of(old).after(rest.start);
                    pool.memory_mut().copy(from, to, rest.len());
                    Ok(())
                }
                None => self.fill(pool, byte_of(number) + rest.start as u64, to, rest.len()),
            };
            if let Err(error) = filled {
                pool.release(page);
                return Err(error);
            }
        }
        if old.is_none() {
            self.nr_coming += 1;
            write.nr_new += 1;
        }
        Ok(page)
    }

    /// Gives the pages back that were reserved for a write.
    fn give_back<M: FrameMemory>(&mut self, pool: &mut PagePool<M>, write: &OpenWrite) {
        self.nr_coming -= write.nr_new;
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

    /// Writes zeroes over the parts of a range that cover no whole page, and has what was there
    /// erased once nobody has it. No write is open.
    fn erase_edges<M: FrameMemory>(
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
            let (Some(edge), Some(page)) = (edge, page) else { continue };
            pool.doom(page);
            let mut extent = None;
            let write = self.begin_write(pool, edge, &mut |named| extent = Some(named))?;
            if let Some(Extent::Frames { at, len_bytes }) = extent {
                pool.memory_mut().zero(at, len_bytes);
            }
            self.commit_write(pool, write);
        }
        Ok(())
    }
}

impl<M: FrameMemory> BlockStore<M> for PageDisk {
    fn geometry(&self) -> Geometry {
        let secure = if self.base.is_some() || self.is_shared() {
            SecureDiscard::No
        } else {
            SecureDiscard::Offered
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

    fn begin_read(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        let read = pool.begin_read();
        match self.name(pool, range, sink) {
            Ok(()) => Ok(read),
            Err(error) => {
                pool.end_read(read);
                Err(error)
            }
        }
    }

    fn begin_write(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        if self.access == Access::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
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
        let (mut leaf, mut last, mut run) = (None, None, None);
        for number in pages(range) {
            let bytes = bytes_in_page(range, number);
            let page = match self.reserve(pool, &mut write, &mut leaf, number, &bytes) {
                Ok(page) => page,
                Err(error) => {
                    self.give_back(pool, &write);
                    return Err(error);
                }
            };
            pool.link_reserved(last, page);
            write.reserved.get_or_insert(page);
            last = Some(page);
            Run::name_frames(Run::join(&mut run, Run::in_page(page, &bytes)), sink);
        }
        Run::name_frames(run, sink);
        self.open_writes.push(written);
        Ok(write)
    }

    fn commit_write(&mut self, pool: &mut PagePool<M>, write: OpenWrite) {
        self.close(&write);
        self.nr_coming -= write.nr_new;
        let numbers = pages(write.range);
        let mut leaf = self.table.leaf(pool, numbers.start);
        let mut reserved = write.reserved;
        for number in numbers {
            let Some(page) = reserved else { break };
            reserved = pool.unlink_reserved(page);
            if !leaf.is_for(number) {
                leaf = self.table.leaf(pool, number);
            }
            if let Some(old) = self.table.replace(pool, leaf, number, page) {
                pool.release(old);
            }
        }
    }

    fn abort_write(&mut self, pool: &mut PagePool<M>, write: OpenWrite) {
        self.close(&write);
        self.give_back(pool, &write);
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
        if discard == Discard::Secure && self.base.is_some() {
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

fn check_size<M: FrameMemory>(
    nr_sectors: u64,
    logical: BlockSize,
    cap_pages: u64,
    pool: &PagePool<M>,
) -> Result<(), StoreError> {
    logical.check_size(nr_sectors)?;
    let table = PageTable::new(nr_sectors.div_ceil(SECTORS_PER_PAGE));
    let needed = cap_pages.saturating_add(table.nr_nodes_for(cap_pages));
    let usable = pool.nr_usable();
    if needed > usable {
        return Err(StoreError::TooLarge { needed, usable });
    }
    if nr_sectors > MAX_SECTORS {
        return Err(StoreError::TooManySectors { nr_sectors, max: MAX_SECTORS });
    }
    Ok(())
}

/// The numbers of the pages that a range touches.
const fn pages(range: SectorRange) -> Range<u64> {
    range.first() / SECTORS_PER_PAGE..range.end().div_ceil(SECTORS_PER_PAGE)
}

/// The first byte of the page at `number`.
const fn byte_of(number: u64) -> u64 {
    number * PAGE_SIZE as u64
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
