//! Images: read-only disks in files that the loader put into our memory.
//!
//! Nothing of an image is copied at the start. What its format says of where a sector's bytes are is
//! looked up in the file for each read, and the bytes are served from where they lie.
//!
//! A format is a map from bytes of the disk to a [`Source`]; the walk from an image to its parents,
//! and what becomes of a source, is the same for all of them and stands here. [`Images`] finds the
//! formats and joins images to their parents. What is compressed is unpacked into a cache of a fixed
//! size.

mod archive;
mod cache;
mod error;
mod file;
mod inflate;
mod qcow2;
mod regions;
mod set;
mod vhd;

use alloc::rc::Rc;
use core::fmt;
use core::ops::Range;

use xen_abi::PAGE_SIZE;

use crate::block_store::{BlockStore, Extent, ExtentSink, OpenRead, StoreError};
use crate::geometry::{Access, BlockSize, Geometry, SECTOR_SIZE, SectorRange};
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::PagePool;

pub use archive::{Archive, ArchiveError, Member};
pub use error::ImageError;
pub use file::ImageFile;
pub use set::{ImageSource, Images, MAX_PARENTS, RefusedImage};

use cache::{CacheOf, Cluster};
use qcow2::{Compressed, Qcow2};
use vhd::Vhd;

/// How a file holds a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageFormat {
    /// It is the disk's bytes themselves.
    Raw,
    /// Microsoft's Virtual Hard Disk: fixed, dynamic or differencing.
    Vhd,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// A read-only disk. Plain data: any number of disks may stand on it.
#[derive(Debug)]
pub struct Image {
    file: ImageFile,
    size_bytes: u64,
    map: Map,
    /// Has what this one has not.
    parent: Option<Rc<Image>>,
    /// Where it has compressed clusters.
    cache: Option<CacheOf>,
}

/// Where the bytes of a disk are, by its format.
#[derive(Debug)]
enum Map {
    Raw,
    Vhd(Vhd),
    Qcow2(Qcow2),
}

/// Where bytes of a disk are that lie together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    source: Source,
    /// How many of them, at least one.
    len_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// In the file, from this byte on.
    File(u64),
    /// Nowhere: they are zeroes.
    Zero,
    /// The parent has them; without one they are zeroes.
    Parent,
    /// In the file, compressed.
    Compressed {
        packed: Compressed,
        /// The cluster's first byte on the disk.
        offset: u64,
        /// Its length when it is unpacked.
        cluster_bytes: usize,
    },
}

impl Image {
    /// An image that is the disk's bytes themselves. What is missing of its last sector reads as
    /// zeroes.
    #[must_use]
    pub const fn raw(file: ImageFile) -> Self {
        Self { file, size_bytes: file.len_bytes, map: Map::Raw, parent: None, cache: None }
    }

    /// Capacity in sectors.
    #[must_use]
    pub const fn nr_sectors(&self) -> u64 {
        self.size_bytes.div_ceil(SECTOR_SIZE as u64)
    }

    /// The length of its compressed clusters when they are unpacked; `None` where it has none.
    fn compressed_bytes(&self) -> Option<usize> {
        match &self.map {
            Map::Raw | Map::Vhd(_) => None,
            Map::Qcow2(qcow2) => qcow2.compressed_bytes(),
        }
    }

    /// How many images it stands on, one over the other.
    fn nr_parents(&self) -> usize {
        self.chain().count() - 1
    }

    /// The image and those that it stands on.
    fn chain(&self) -> impl Iterator<Item = &Self> {
        core::iter::successors(Some(self), |image| image.parent.as_deref())
    }

    /// The length of the largest compressed clusters that a read can need, its parents' too.
    pub(crate) fn unpack_unit_bytes(&self) -> Option<u64> {
        self.chain().filter_map(Self::compressed_bytes).max().map(|bytes| bytes as u64)
    }

    /// The format of its file.
    #[must_use]
    pub const fn format(&self) -> ImageFormat {
        match self.map {
            Map::Raw => ImageFormat::Raw,
            Map::Vhd(_) => ImageFormat::Vhd,
            Map::Qcow2(_) => ImageFormat::Qcow2,
        }
    }

    /// Hands the extents of `len_bytes` bytes from byte `offset` on to `sink`; they stay as they
    /// are as long as the read is open that was begun before, or else until this returns. What is
    /// past the image's end reads as zeroes.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or [`StoreError::Busy`] where open reads hold what it needs to
    /// unpack; what `sink` got is void.
    pub(crate) fn read<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        offset: u64,
        len_bytes: usize,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        let open = pool.begin_read();
        let mut joined = Joined { sink, last: None };
        let result = self.name_extents(pool, offset, len_bytes as u64, &mut joined);
        joined.end();
        pool.end_read(open);
        result
    }

    fn name_extents<M: FrameMemory, S: ExtentSink>(
        &self,
        pool: &mut PagePool<M>,
        mut offset: u64,
        mut left: u64,
        sink: &mut Joined<'_, S>,
    ) -> Result<(), StoreError> {
        while left > 0 {
            let (image, run) = self.find(pool.memory(), offset, left)?;
            let end = offset.saturating_add(run.len_bytes);
            match run.source {
                Source::File(at) => sink.frames(image.file.addr(at), run.len_bytes),
                Source::Zero | Source::Parent => sink.zero(run.len_bytes),
                Source::Compressed { packed, offset: first, cluster_bytes } => {
                    let file = &image.file;
                    let cluster = Cluster {
                        file,
                        compressed: packed,
                        offset: first,
                        len_bytes: cluster_bytes,
                    };
                    image.unpack(pool, &cluster, offset..end, sink)?;
                }
            }
            offset = end;
            left -= run.len_bytes;
        }
        Ok(())
    }

    /// Hands the extents of bytes of a compressed cluster to `sink`.
    fn unpack<M: FrameMemory, S: ExtentSink>(
        &self,
        pool: &mut PagePool<M>,
        cluster: &Cluster<'_>,
        bytes: Range<u64>,
        sink: &mut Joined<'_, S>,
    ) -> Result<(), StoreError> {
        let damaged = StoreError::Damaged { at: cluster.compressed.at };
        let cache = self.cache.as_ref().ok_or(damaged)?;
        let page_bytes = PAGE_SIZE as u64;
        let mut at = bytes.start;
        while at < bytes.end {
            let number = at / page_bytes;
            let end = bytes.end.min((number + 1) * page_bytes);
            let page = FrameAddr::start_of(cache.page(pool, cluster, number)?);
            sink.frames(page.after(to_usize(at % page_bytes)), end - at);
            at = end;
        }
        Ok(())
    }

    /// The image, this one or one that it stands on, that has the bytes from `offset` on, and where
    /// in it they are: at least one, at most `len_bytes`.
    fn find<M: FrameMemory>(
        &self,
        memory: &M,
        offset: u64,
        mut len_bytes: u64,
    ) -> Result<(&Self, Run), StoreError> {
        let mut image = self;
        loop {
            let there = image.size_bytes.saturating_sub(offset);
            if there == 0 {
                return Ok((image, Run { source: Source::Zero, len_bytes }));
            }
            let run = image.map.find(&image.file, memory, offset, len_bytes.min(there))?;
            match (run.source, &image.parent) {
                (Source::Parent, Some(parent)) => {
                    image = parent;
                    len_bytes = run.len_bytes;
                }
                _ => return Ok((image, run)),
            }
        }
    }
}

impl Map {
    /// Where the bytes from `offset` on are. At least one and at most `len_bytes` of them, all of
    /// which are on the disk.
    fn find<M: FrameMemory>(
        &self,
        file: &ImageFile,
        memory: &M,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Run, StoreError> {
        match self {
            Self::Raw => Ok(Run { source: Source::File(offset), len_bytes }),
            Self::Vhd(vhd) => vhd.find(file, memory, offset, len_bytes),
            Self::Qcow2(qcow2) => qcow2.find(file, memory, offset, len_bytes),
        }
    }
}

/// Joins extents that lie side by side.
struct Joined<'a, S> {
    sink: &'a mut S,
    last: Option<Extent>,
}

impl<S: ExtentSink> Joined<'_, S> {
    fn frames(&mut self, at: FrameAddr, len_bytes: u64) {
        let more = to_usize(len_bytes);
        match &mut self.last {
            Some(Extent::Frames { at: first, len_bytes }) if first.after(*len_bytes) == at => {
                *len_bytes += more;
            }
            _ => self.next(Extent::Frames { at, len_bytes: more }),
        }
    }

    fn zero(&mut self, len_bytes: u64) {
        let more = to_usize(len_bytes);
        match &mut self.last {
            Some(Extent::Zero { len_bytes }) => *len_bytes += more,
            _ => self.next(Extent::Zero { len_bytes: more }),
        }
    }

    fn next(&mut self, extent: Extent) {
        if let Some(last) = self.last.replace(extent) {
            self.sink.extent(last);
        }
    }

    fn end(self) {
        if let Some(last) = self.last {
            self.sink.extent(last);
        }
    }
}

/// A length or a place in a request, which moves no more than a `usize` counts.
fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
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

    fn unpack_unit_bytes(&self) -> Option<u64> {
        self.image.unpack_unit_bytes()
    }

    fn begin_read(
        &mut self,
        pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        let bytes = SECTOR_SIZE as u64;
        let len_bytes = to_usize(range.nr() * bytes);
        pool.try_read(|pool| self.image.read(pool, range.first() * bytes, len_bytes, sink))
    }
}
