//! The disk that keeps nothing: what is left is the protocol's own cost.

use crate::block_store::{
    BlockStore, Discard, Extent, ExtentSink, OpenRead, OpenWrite, Progress, Steps, StoreError,
};
use crate::geometry::{
    Access, BlockSize, DiscardLimits, Geometry, SECTOR_SIZE, SectorRange, SecureDiscard,
};
use crate::memory::FrameMemory;
use crate::pool::PagePool;

/// A disk that reads as zeroes and answers every write at once, without a look at the data.
#[derive(Clone, Copy, Debug)]
pub struct NullDisk {
    nr_sectors: u64,
    logical: BlockSize,
}

impl NullDisk {
    /// A disk of `nr_sectors` sectors.
    ///
    /// # Errors
    /// [`StoreError::Empty`] or [`StoreError::Misaligned`].
    pub const fn new(nr_sectors: u64, logical: BlockSize) -> Result<Self, StoreError> {
        match logical.check_size(nr_sectors) {
            Ok(()) => Ok(Self { nr_sectors, logical }),
            Err(error) => Err(error),
        }
    }

    /// Makes the disk larger or smaller.
    ///
    /// # Errors
    /// As [`new`](Self::new); the disk is then as it was.
    pub const fn resize(&mut self, nr_sectors: u64) -> Result<(), StoreError> {
        match self.logical.check_size(nr_sectors) {
            Ok(()) => {
                self.nr_sectors = nr_sectors;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl<M: FrameMemory> BlockStore<M> for NullDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            nr_sectors: self.nr_sectors,
            logical: self.logical,
            physical_bytes: self.logical.bytes(),
            access: Access::ReadWrite,
            discard: Some(DiscardLimits {
                granularity_bytes: self.logical.bytes(),
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
        sink.extent(Extent::Zero { len_bytes: len_bytes(range) });
        Ok(pool.begin_read())
    }

    fn begin_write(
        &mut self,
        _pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        sink.extent(Extent::Discarded { len_bytes: len_bytes(range) });
        Ok(OpenWrite::new(range))
    }

    fn discard(
        &mut self,
        _pool: &mut PagePool<M>,
        _range: SectorRange,
        _discard: Discard,
        _steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        Ok(Progress::Done)
    }
}

fn len_bytes(range: SectorRange) -> usize {
    // A request moves no more than a `usize` counts.
    usize::try_from(range.nr()).unwrap_or(usize::MAX).saturating_mul(SECTOR_SIZE)
}
