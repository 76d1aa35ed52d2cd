//! The closed set of stores.

use crate::block_store::{
    BlockStore, Discard, ExtentSink, Flushing, OpenRead, OpenWrite, Progress, Steps, StoreError,
    Token,
};
use crate::device_disk::{DeviceDisk, Overlay};
use crate::geometry::{Geometry, SectorRange};
use crate::image::ImageDisk;
use crate::lent::{Direction, Lent};
use crate::memory::FrameMemory;
use crate::null::NullDisk;
use crate::page_disk::{PageDisk, Usage};
use crate::pool::PagePool;

/// Any disk there can be. A new type of disk is a file of its own and an arm here.
#[derive(Debug)]
pub enum Disk {
    /// Pages over zeroes or over an image.
    Pages(PageDisk),
    /// An image, read-only.
    Image(ImageDisk),
    /// On a device.
    Device(DeviceDisk),
    /// Pages over a disk on a device.
    Overlay(Overlay),
    /// Keeps nothing.
    Null(NullDisk),
}

/// Asks whichever disk it is.
macro_rules! each {
    ($of:expr, $disk:ident => $ask:expr) => {
        match $of {
            Disk::Pages($disk) => $ask,
            Disk::Image($disk) => $ask,
            Disk::Device($disk) => $ask,
            Disk::Overlay($disk) => $ask,
            Disk::Null($disk) => $ask,
        }
    };
}

impl Disk {
    /// What it takes of the pool now; `None` of a disk that is not made of pages.
    #[must_use]
    pub const fn usage(&self) -> Option<Usage> {
        match self {
            Self::Pages(disk) => Some(disk.usage()),
            Self::Overlay(disk) => Some(disk.pages().usage()),
            Self::Image(_) | Self::Device(_) | Self::Null(_) => None,
        }
    }

    /// Whether its contents change no more by what was asked before and given up since: a device may
    /// still work on a write or discard that nobody waits for. Who reads or writes the disk before
    /// that is over may find his own writes undone.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        match self {
            Self::Device(disk) => disk.is_settled(),
            Self::Overlay(disk) => disk.is_settled(),
            Self::Pages(_) | Self::Image(_) | Self::Null(_) => true,
        }
    }

    /// Gives what the disk holds back to the pool, a step a page; done before it is dropped.
    pub fn clear<M: FrameMemory>(&mut self, pool: &mut PagePool<M>, steps: &mut Steps) -> Progress {
        match self {
            Self::Pages(disk) => disk.clear(pool, steps),
            Self::Overlay(disk) => disk.clear(pool, steps),
            Self::Image(_) | Self::Device(_) | Self::Null(_) => Progress::Done,
        }
    }
}

impl<M: FrameMemory> BlockStore<M> for Disk {
    fn geometry(&self) -> Geometry {
        each!(self, disk => BlockStore::<M>::geometry(disk))
    }

    fn unpack_unit_bytes(&self) -> Option<u64> {
        each!(self, disk => BlockStore::<M>::unpack_unit_bytes(disk))
    }

    fn flushing(&self) -> Flushing {
        each!(self, disk => BlockStore::<M>::flushing(disk))
    }

    fn is_ready(&self, token: &Token) -> bool {
        each!(self, disk => BlockStore::<M>::is_ready(disk, token))
    }

    fn takes_pages(&self) -> bool {
        each!(self, disk => BlockStore::<M>::takes_pages(disk))
    }

    fn lend(
        &mut self,
        range: SectorRange,
        direction: Direction,
        lent: Lent<'_>,
    ) -> Result<Option<Token>, StoreError> {
        each!(self, disk => BlockStore::<M>::lend(disk, range, direction, lent))
    }

    fn begin_read(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        each!(self, disk => disk.begin_read(pool, range, sink))
    }

    fn resume_read(
        &mut self,
        pool: &mut PagePool<M>,
        read: &mut OpenRead,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        each!(self, disk => disk.resume_read(pool, read, range, sink))
    }

    fn end_read(&mut self, pool: &mut PagePool<M>, read: OpenRead) {
        each!(self, disk => disk.end_read(pool, read));
    }

    fn begin_write(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        each!(self, disk => disk.begin_write(pool, range, sink))
    }

    fn resume_write(
        &mut self,
        pool: &mut PagePool<M>,
        write: &mut OpenWrite,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        each!(self, disk => disk.resume_write(pool, write, sink))
    }

    fn commit_write(
        &mut self,
        pool: &mut PagePool<M>,
        write: OpenWrite,
    ) -> Result<Progress, StoreError> {
        each!(self, disk => disk.commit_write(pool, write))
    }

    fn abort_write(&mut self, pool: &mut PagePool<M>, write: OpenWrite) {
        each!(self, disk => disk.abort_write(pool, write));
    }

    fn discard_unit_sectors(&self) -> u64 {
        each!(self, disk => BlockStore::<M>::discard_unit_sectors(disk))
    }

    fn discard(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        discard: Discard,
        steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        each!(self, disk => disk.discard(pool, range, discard, steps))
    }

    fn flush(&mut self, pool: &mut PagePool<M>) -> Result<Progress, StoreError> {
        each!(self, disk => disk.flush(pool))
    }

    fn conclude(&mut self, pool: &mut PagePool<M>, token: Token) -> Result<Progress, StoreError> {
        each!(self, disk => disk.conclude(pool, token))
    }

    fn cancel(&mut self, pool: &mut PagePool<M>, token: Token) {
        each!(self, disk => disk.cancel(pool, token));
    }
}
