//! What a disk is: the [`BlockStore`] interface, the page pool, and the stores.
//!
//! A store names places in our own frames and never sees a guest's memory; whoever serves a guest
//! copies. All pages come from one [`PagePool`], reached through the seam [`FrameMemory`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod audit;
mod block_store;
mod buffers;
mod device;
mod device_disk;
mod disk;
mod geometry;
mod image;
mod joined;
mod lent;
mod memory;
mod null;
mod page_disk;
mod pool;
mod table;

pub use audit::{Audit, Mismatch};
pub use block_store::{
    BlockStore, Discard, Extent, ExtentSink, Flushing, Naming, OpenRead, OpenWrite, Progress,
    Steps, StoreError, Token,
};
pub use buffers::{Buffer, Buffers, PageNumber, PartLimits};
pub use device::{Completion, Device, Failure, Refusal, Refused, Request, Tag};
pub use device_disk::{DeviceDisk, Overlay, Shared, Slice};
pub use disk::Disk;
pub use geometry::{
    Access, BlockSize, DiscardLimits, Geometry, SECTOR_SHIFT, SECTOR_SIZE, SECTORS_PER_PAGE,
    SectorRange, SecureDiscard,
};
pub use image::{
    Archive, ArchiveError, Image, ImageDisk, ImageError, ImageFile, ImageFormat, ImageSource,
    Images, MAX_PARENTS, Member, RefusedImage,
};
pub use lent::{Direction, Lease, Lent};
pub use memory::{FrameAddr, FrameMemory};
pub use null::NullDisk;
pub use page_disk::{PageDisk, Usage};
pub use pool::{PagePool, PoolError, Want};
