//! What a disk says of itself, and ranges of sectors on it.

use core::fmt;
use core::ops::Range;

use xen_abi::PAGE_SHIFT;

use crate::StoreError;

/// log2 of [`SECTOR_SIZE`].
pub const SECTOR_SHIFT: u32 = 9;

/// A sector is always 512 bytes, whatever the logical block size (`io/blkif.h`).
pub const SECTOR_SIZE: usize = 1 << SECTOR_SHIFT;

/// Sectors of a page.
pub const SECTORS_PER_PAGE: u32 = 1 << (PAGE_SHIFT - SECTOR_SHIFT);

/// Whether a disk may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// The logical block size: the unit in which a disk may be addressed (`sector-size`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockSize {
    /// 512 bytes.
    B512,
    /// 1024 bytes.
    B1024,
    /// 2048 bytes.
    B2048,
    /// 4096 bytes.
    B4096,
}

impl BlockSize {
    /// The block size of so many bytes; `None` where there is no such.
    #[must_use]
    pub const fn of_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            1024 => Some(Self::B1024),
            2048 => Some(Self::B2048),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        512 << self as u32
    }

    /// In sectors.
    #[must_use]
    pub const fn sectors(self) -> u64 {
        1 << self as u32
    }

    /// Checks that a disk of `nr_sectors` sectors is at least one of whole blocks.
    pub(crate) const fn check_size(self, nr_sectors: u64) -> Result<(), StoreError> {
        if nr_sectors == 0 {
            return Err(StoreError::Empty);
        }
        let block = self.sectors();
        if !nr_sectors.is_multiple_of(block) {
            return Err(StoreError::Misaligned { first: 0, nr: nr_sectors, block });
        }
        Ok(())
    }
}

/// What a disk says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Capacity in sectors; a multiple of the logical block size.
    pub nr_sectors: u64,
    /// Logical block size.
    pub logical: BlockSize,
    /// Physical block size in bytes: what a write had better cover whole.
    pub physical_bytes: u32,
    /// Whether it may be written.
    pub access: Access,
    /// What discards come to; `None` where the disk knows none.
    pub discard: Option<DiscardLimits>,
}

/// What discards come to on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiscardLimits {
    /// The unit in bytes in which they free space, from the disk's start on.
    pub granularity_bytes: u32,
    /// Whether contents can be made to be gone for good.
    pub secure: SecureDiscard,
}

/// Whether a disk can do secure discards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecureDiscard {
    /// It can.
    Offered,
    /// It can, but what other disks have in common with it they keep, and it is erased when the
    /// last of them gives it up. For frontends that were offered it; no more are.
    Shared,
    /// It cannot.
    No,
}

/// A run of sectors that lies on the disk, whole logical blocks and at least one.
///
/// Only [`SectorRange::on`] makes one: a request's claim becomes a checked fact there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectorRange {
    first: u64,
    nr: u64,
}

impl SectorRange {
    /// Checks that `nr` sectors from `first` lie on a disk of this geometry.
    ///
    /// # Errors
    /// [`StoreError::Empty`], [`StoreError::Misaligned`] or [`StoreError::PastEnd`].
    pub fn on(geometry: &Geometry, first: u64, nr: u64) -> Result<Self, StoreError> {
        if nr == 0 {
            return Err(StoreError::Empty);
        }
        let block = geometry.logical.sectors();
        if !first.is_multiple_of(block) || !nr.is_multiple_of(block) {
            return Err(StoreError::Misaligned { first, nr, block });
        }
        match first.checked_add(nr) {
            Some(end) if end <= geometry.nr_sectors => Ok(Self { first, nr }),
            _ => Err(StoreError::PastEnd { first, nr, nr_sectors: geometry.nr_sectors }),
        }
    }

    /// The first sector.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// The number of sectors, at least one.
    #[must_use]
    pub const fn nr(self) -> u64 {
        self.nr
    }

    /// The sector after the last.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.first + self.nr
    }

    /// With what is missing of its first and last `unit` sectors, on a disk of `nr_sectors`.
    pub(crate) fn widened(self, unit: u64, nr_sectors: u64) -> Self {
        let first = self.first - self.first % unit;
        let end = self.end().checked_next_multiple_of(unit).unwrap_or(u64::MAX).min(nr_sectors);
        Self { first, nr: end - first }
    }

    /// What of it lies before the next multiple of `unit` sectors, and what is left. A unit is whole
    /// logical blocks.
    #[must_use]
    pub fn split(self, unit: u64) -> (Self, Option<Self>) {
        let next = (self.first / unit).checked_add(1).and_then(|n| n.checked_mul(unit));
        let end = next.map_or(self.end(), |next| next.min(self.end()));
        let part = Self { first: self.first, nr: end - self.first };
        (part, self.within(&(end..u64::MAX)))
    }

    /// The part of it that lies within `sectors`, if there is one.
    pub(crate) fn within(self, sectors: &Range<u64>) -> Option<Self> {
        let first = self.first.max(sectors.start);
        let end = self.end().min(sectors.end);
        (first < end).then(|| Self { first, nr: end - first })
    }
}

impl fmt::Display for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sectors {}+{}", self.first, self.nr)
    }
}
