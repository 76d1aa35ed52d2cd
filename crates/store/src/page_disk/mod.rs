//! The disk of pages: thin, over zeroes or over an image.

mod base;
mod requests;
mod run;

use alloc::rc::Rc;
use alloc::vec::Vec;

use xen_abi::PAGE_SIZE;

use crate::block_store::{BlockStore, Discard, Progress, Steps, StoreError};
use crate::geometry::{Access, BlockSize, SECTOR_SIZE, SectorRange};
use crate::image::Image;
use crate::memory::FrameMemory;
use crate::pool::PagePool;
use crate::table::{PageTable, Tree, drop_tree};
use base::{Base, Fetched};
use requests::Written;

const SECTORS_PER_PAGE: u64 = (PAGE_SIZE / SECTOR_SIZE) as u64;

/// Sectors of a disk whose bytes 64 bits can count.
const MAX_SECTORS: u64 = u64::MAX / SECTOR_SIZE as u64;

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
    /// What lies below the pages.
    base: Base,
    /// Pages that it can have.
    cap_pages: u64,
    table: PageTable,
    /// What was in the table and is being given back.
    dropped: Option<Tree>,
    /// All disks that may have pages in common with this one hold it, too.
    family: Option<Rc<()>>,
    /// Has room for as many as were ever open at once.
    open_writes: Vec<Written>,
    /// Those of them that do not cover all of their pages.
    nr_partial_writes: usize,
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
impl PageDisk {
    /// A disk of `nr_sectors` sectors of zeroes that can have `cap_pages` pages at most, and with
    /// its table no more than that many side by side take. They are not set aside, but an otherwise
    /// empty pool must be able to hold them.
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
            base: Base::Zeroes,
            cap_pages,
            table: PageTable::new(nr_sectors.div_ceil(SECTORS_PER_PAGE)),
            dropped: None,
            family: None,
            open_writes: Vec::new(),
            nr_partial_writes: 0,
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
        let disk = Self::thin(image.nr_sectors(), BlockSize::B512, cap_pages, pool)?;
        Ok(Self { base: Base::Image(image), ..disk })
    }

    /// A disk whose base has to be [fetched](Self::fetched). Its cap is as that of an
    /// [`overlay`](Self::overlay).
    pub(crate) fn fetching<M: FrameMemory>(
        nr_sectors: u64,
        logical: BlockSize,
        cap_pages: Option<u64>,
        pool: &PagePool<M>,
    ) -> Result<Self, StoreError> {
        let disk = Self::thin(nr_sectors, logical, cap_pages, pool)?;
        Ok(Self { base: Base::Fetched(Fetched::none(nr_sectors)), ..disk })
    }

    fn thin<M: FrameMemory>(
        nr_sectors: u64,
        logical: BlockSize,
        cap_pages: Option<u64>,
        pool: &PagePool<M>,
    ) -> Result<Self, StoreError> {
        let cap_pages = cap_pages.unwrap_or_else(|| {
            let nr_pages = nr_sectors.div_ceil(SECTORS_PER_PAGE);
            let usable = pool.nr_usable();
            let nr_nodes = PageTable::new(nr_pages).nr_nodes_for(usable);
            nr_pages.min(usable.saturating_sub(nr_nodes))
        });
        Self::new(nr_sectors, logical, cap_pages, pool)
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
            open_writes: Vec::new(),
            ..*self
        })
    }

    /// Makes the disk larger; what is new of it reads as zeroes.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] of a snapshot, as [`new`](Self::new), [`StoreError::Shrinks`],
    /// [`StoreError::NoMemory`], or [`StoreError::Busy`] while a write is open; the disk is then as
    /// it was.
    pub fn grow<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        nr_sectors: u64,
        cap_pages: u64,
    ) -> Result<(), StoreError> {
        self.check_writable()?;
        if nr_sectors < self.nr_sectors {
            return Err(StoreError::Shrinks { wanted: nr_sectors, nr_sectors: self.nr_sectors });
        }
        let cap_pages = cap_pages.max(self.cap_pages);
        check_size(nr_sectors, self.logical, cap_pages, pool)?;
        self.table.grow(pool, nr_sectors.div_ceil(SECTORS_PER_PAGE))?;
        self.nr_sectors = nr_sectors;
        self.cap_pages = cap_pages;
        Ok(())
    }

    /// Makes the disk smaller, if it has no image below it. Its pages go back to the pool a step
    /// each; it is smaller once that is done, and must not be written to before.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] of a snapshot, as [`new`](Self::new), [`StoreError::Shrinks`] where
    /// there is an image, [`StoreError::NoMemory`] where what others have in common with it has to be copied, or
    /// [`StoreError::Busy`] while a write is open.
    pub fn shrink<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        nr_sectors: u64,
        steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        self.check_writable()?;
        self.logical.check_size(nr_sectors)?;
        if nr_sectors > self.nr_sectors || !self.base.is_zeroes() {
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
        self.check_writable()?;
        if self.dropped.is_none() {
            self.dropped = self.table.take_tree();
        }
        Ok(self.drop_pages(pool, steps))
    }

    /// Gives all that the disk has back to the pool, a step a page, before it is dropped. What
    /// others have, too, stays and is not looked through. Nothing is done while a write is open.
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
        match &self.base {
            Base::Image(image) => Some(image),
            Base::Zeroes | Base::Fetched(_) => None,
        }
    }

    /// Everything that its pages hang off, and what they come to.
    pub(crate) fn trees(&self) -> ([Option<Tree>; 2], Usage) {
        ([self.table.tree(), self.dropped], self.usage())
    }

    /// Checks that the disk may be changed as a whole.
    fn check_writable(&self) -> Result<(), StoreError> {
        match self.access {
            Access::ReadOnly => Err(StoreError::ReadOnly),
            Access::ReadWrite => self.check_quiet(),
        }
    }

    fn check_quiet(&self) -> Result<(), StoreError> {
        if self.open_writes.is_empty() { Ok(()) } else { Err(StoreError::Busy) }
    }

    /// Whether other disks may have pages in common with this one.
    fn is_shared(&self) -> bool {
        self.family.as_ref().is_some_and(|family| Rc::strong_count(family) > 1)
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
