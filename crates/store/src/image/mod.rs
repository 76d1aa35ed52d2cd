//! Images: read-only disks in files that the loader put into our memory.
//!
//! Nothing of an image is copied at the start. What its format says of where a sector's bytes are is
//! looked up in the file for each read, and the bytes are served from where they lie.

use alloc::rc::Rc;

use crate::block_store::{BlockStore, Extent, ExtentSink, OpenRead, StoreError};
use crate::geometry::{Access, BlockSize, Geometry, SECTOR_SIZE, SectorRange};
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::PagePool;

/// A file in a run of our frames, at any byte offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageFile {
    /// Its first byte.
    pub at: FrameAddr,
    /// Its length in bytes.
    pub len_bytes: u64,
}

/// A read-only disk. Plain data: any number of disks may stand on it.
#[derive(Debug)]
pub struct Image {
    file: ImageFile,
}

impl Image {
    /// An image that is the disk's bytes themselves. What is missing of its last sector reads as
    /// zeroes.
    #[must_use]
    pub const fn raw(file: ImageFile) -> Self {
        Self { file }
    }

    /// Capacity in sectors.
    #[must_use]
    pub const fn nr_sectors(&self) -> u64 {
        self.file.len_bytes.div_ceil(SECTOR_SIZE as u64)
    }

    /// Hands the extents of `len_bytes` bytes from byte `offset` on to `sink`; they stay as they
    /// are as long as the read is open that was begun before. What is past the image's end reads
    /// as zeroes.
    ///
    /// # Errors
    /// The bytes cannot be had; what `sink` got is void.
    pub(crate) fn read<M: FrameMemory>(
        &self,
        _pool: &mut PagePool<M>,
        offset: u64,
        len_bytes: usize,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        let there = self.file.len_bytes.saturating_sub(offset);
        let len_there = usize::try_from(there).map_or(len_bytes, |there| there.min(len_bytes));
        if len_there > 0 {
            // The file lies in memory, which a `usize` counts.
            let at = self.file.at.after(usize::try_from(offset).unwrap_or(usize::MAX));
            sink.extent(Extent::Frames { at, len_bytes: len_there });
        }
        if len_bytes > len_there {
            sink.extent(Extent::Zero { len_bytes: len_bytes - len_there });
        }
        Ok(())
    }
}

/// An image as a disk of its own.
#[derive(Debug)]
pub struct ImageDisk {
    image: Rc<Image>,
}

impl ImageDisk {
    /// A disk that is an image.
    #[must_use]
    pub const fn new(image: Rc<Image>) -> Self {
        Self { image }
    }
}

impl<M: FrameMemory> BlockStore<M> for ImageDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            nr_sectors: self.image.nr_sectors(),
            logical: BlockSize::B512,
            physical_bytes: BlockSize::B4096.bytes(),
            access: Access::ReadOnly,
            discard: None,
        }
    }

    fn begin_read(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        let read = pool.begin_read();
        let bytes = SECTOR_SIZE as u64;
        // A request moves no more than a `usize` counts.
        let len_bytes = usize::try_from(range.nr() * bytes).unwrap_or(usize::MAX);
        match self.image.read(pool, range.first() * bytes, len_bytes, sink) {
            Ok(()) => Ok(read),
            Err(error) => {
                pool.end_read(read);
                Err(error)
            }
        }
    }
}
