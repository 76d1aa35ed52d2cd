//! The closed set of stores.

use crate::block_store::{
    BlockStore, Discard, ExtentSink, OpenRead, OpenWrite, Progress, Steps, StoreError,
};
use crate::geometry::{Geometry, SectorRange};
use crate::memory::FrameMemory;
use crate::pool::PagePool;
use crate::ram::RamDisk;

/// Any disk there can be. A new type of disk is a file of its own and an arm here.
#[derive(Debug)]
pub enum Disk {
    /// A thin RAM disk.
    Ram(RamDisk),
}

impl Disk {
    /// Gives what the disk holds back to the pool, a step a page; done before it is dropped.
    pub fn clear<M: FrameMemory>(&mut self, pool: &mut PagePool<M>, steps: &mut Steps) -> Progress {
        match self {
            Self::Ram(disk) => disk.clear(pool, steps),
        }
    }
}

impl<M: FrameMemory> BlockStore<M> for Disk {
    fn geometry(&self) -> Geometry {
        match self {
            Self::Ram(disk) => BlockStore::<M>::geometry(disk),
        }
    }

    fn begin_read(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        match self {
            Self::Ram(disk) => disk.begin_read(pool, range, sink),
        }
    }

    fn end_read(&mut self, pool: &mut PagePool<M>, read: OpenRead) {
        match self {
            Self::Ram(disk) => disk.end_read(pool, read),
        }
    }

    fn begin_write(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        match self {
            Self::Ram(disk) => disk.begin_write(pool, range, sink),
        }
    }

    fn commit_write(&mut self, pool: &mut PagePool<M>, write: OpenWrite) {
        match self {
            Self::Ram(disk) => disk.commit_write(pool, write),
        }
    }

    fn abort_write(&mut self, pool: &mut PagePool<M>, write: OpenWrite) {
        match self {
            Self::Ram(disk) => disk.abort_write(pool, write),
        }
    }

    fn discard(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        discard: Discard,
        steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        match self {
            Self::Ram(disk) => disk.discard(pool, range, discard, steps),
        }
    }

    fn flush(&mut self, pool: &mut PagePool<M>) -> Result<(), StoreError> {
        match self {
            Self::Ram(disk) => disk.flush(pool),
        }
    }
}
