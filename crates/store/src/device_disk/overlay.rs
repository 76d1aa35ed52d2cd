//! Copy-on-write in memory over a disk on a device.

use super::DeviceDisk;
use crate::block_store::{
    BlockStore, Discard, ExtentSink, OpenRead, OpenWrite, Progress, Steps, StoreError, Token,
};
use crate::device::Failure;
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
        let pages = PageDisk::new(nr_sectors, logical, cap_pages.unwrap_or(1), pool)?;
        Ok(Self { base, pages })
    }

    /// The pages of its own.
    #[must_use]
    pub const fn pages(&self) -> &PageDisk {
        &self.pages
    }

    /// As [`PageDisk::clear`].
    pub fn clear<M: FrameMemory>(&mut self, pool: &mut PagePool<M>, steps: &mut Steps) -> Progress {
        self.pages.clear(pool, steps)
    }
}

impl<M: FrameMemory> BlockStore<M> for Overlay {
    fn geometry(&self) -> Geometry {
        BlockStore::<M>::geometry(&self.pages)
    }

    fn is_ready(&self, token: &Token) -> bool {
        BlockStore::<M>::is_ready(&self.base, token)
    }

    fn begin_read(
        &mut self,
        _pool: &mut PagePool<M>,
        _range: SectorRange,
        _sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        Err(StoreError::Device(Failure::NotSupported))
    }

    fn begin_write(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        self.pages.begin_write(pool, range, sink)
    }

    fn commit_write(
        &mut self,
        pool: &mut PagePool<M>,
        write: OpenWrite,
    ) -> Result<Progress, StoreError> {
        self.pages.commit_write(pool, write)
    }

    fn abort_write(&mut self, pool: &mut PagePool<M>, write: OpenWrite) {
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
