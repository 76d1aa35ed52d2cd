//! Copy-on-write in memory over a disk on a device.

use super::DeviceDisk;
use crate::block_store::{
    BlockStore, Discard, ExtentSink, Naming, OpenRead, OpenWrite, Progress, Steps, StoreError,
    Token,
};
use crate::geometry::{Geometry, SectorRange};
use crate::memory::FrameMemory;
use crate::page_disk::PageDisk;
use crate::pool::PagePool;

/// A disk that begins as one on a device, which is only read: what is written goes to pages of its
/// own, and is gone with it.
#[derive(Debug)]
pub struct Overlay {
    base: DeviceDisk,
    pages: PageDisk,
}

impl Overlay {
    /// A disk over another, of the size that that has now. Without a cap it can have a page for each
    /// of the base's, or as many as the pool can hold.
    ///
    /// # Errors
    /// As [`PageDisk::overlay`].
    pub fn new<M: FrameMemory>(
        base: DeviceDisk,
        cap_pages: Option<u64>,
        pool: &PagePool<M>,
    ) -> Result<Self, StoreError> {
        let Geometry { nr_sectors, logical, .. } = BlockStore::<M>::geometry(&base);
        let pages = PageDisk::fetching(nr_sectors, logical, cap_pages, pool)?;
        Ok(Self { base, pages })
    }

    /// Its own pages.
    #[must_use]
    pub const fn pages(&self) -> &PageDisk {
        &self.pages
    }

    /// As [`Disk::is_settled`](crate::Disk::is_settled).
    pub(crate) fn is_settled(&self) -> bool {
        self.base.is_settled()
    }

    /// As [`PageDisk::clear`].
    pub fn clear<M: FrameMemory>(&mut self, pool: &mut PagePool<M>, steps: &mut Steps) -> Progress {
        self.pages.clear(pool, steps)
    }

    /// Has the pages use what was read of the base, which is ready.
    fn fetch(&mut self, token: Option<&Token>, range: SectorRange) -> Result<(), StoreError> {
        self.pages.fetched(range, |each| self.base.frames(token, each))
    }
}

/// A read is done at once where all of it is in own pages, else all of it is read of the base, too:
/// own pages win when it is there. A write that keeps part of a page which is not there reads that
/// part first, and is open meanwhile: no other can change what it looked at.
impl<M: FrameMemory> BlockStore<M> for Overlay {
    fn geometry(&self) -> Geometry {
        BlockStore::<M>::geometry(&self.pages)
    }

    fn is_ready(&self, token: &Token) -> bool {
        BlockStore::<M>::is_ready(&self.base, token)
    }

    fn begin_read(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        if self.pages.has(pool, range) {
            return self.pages.begin_read(pool, range, sink);
        }
        Ok(OpenRead::later(self.base.read(range)?))
    }

    fn resume_read(
        &mut self,
        pool: &mut PagePool<M>,
        read: &mut OpenRead,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        self.fetch(read.token(), range)?;
        // From now on the pool counts it, too.
        let OpenRead { naming, .. } = self.pages.begin_read(pool, range, sink)?;
        read.naming = naming;
        Ok(())
    }

    fn end_read(&mut self, pool: &mut PagePool<M>, read: OpenRead) {
        self.base.end(read.token);
        if read.naming == Naming::Done {
            pool.end_read(OpenRead { token: None, naming: Naming::Done });
        }
    }

    fn begin_write(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        let mut write = self.pages.open_write(range)?;
        let begun = match self.pages.missing(pool, range) {
            None => self.pages.reserve(pool, &mut write, sink),
            Some(missing) => self.base.read(missing).map(|token| {
                (write.token, write.naming) = (Some(token), Naming::Later);
            }),
        };
        match begun {
            Ok(()) => Ok(write),
            Err(error) => {
                self.pages.abort_write(pool, write);
                Err(error)
            }
        }
    }

    fn resume_write(
        &mut self,
        pool: &mut PagePool<M>,
        write: &mut OpenWrite,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        let missing = self.pages.missing(pool, write.range).ok_or(StoreError::Stale)?;
        self.fetch(write.token(), missing)?;
        self.pages.reserve(pool, write, sink)?;
        // It is copied.
        self.base.end(write.token.take());
        write.naming = Naming::Done;
        Ok(())
    }

    fn commit_write(
        &mut self,
        pool: &mut PagePool<M>,
        write: OpenWrite,
    ) -> Result<Progress, StoreError> {
        if write.naming == Naming::Later {
            self.abort_write(pool, write);
            return Err(StoreError::Stale);
        }
        self.pages.commit_write(pool, write)
    }

    fn abort_write(&mut self, pool: &mut PagePool<M>, mut write: OpenWrite) {
        self.base.end(write.token.take());
        self.pages.abort_write(pool, write);
    }

    /// What is discarded reads as the base has it.
    fn discard(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        discard: Discard,
        steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        self.pages.discard(pool, range, discard, steps)
    }
}
