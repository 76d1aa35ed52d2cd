//! Frames in a vector, and what blkback does between a begin and its end.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::cell::RefCell;
use std::rc::Rc;

use store::{
    Audit, BlockStore, Extent, FrameAddr, FrameMemory, Image, ImageFile, Mismatch, OpenWrite,
    PageDisk, PagePool, SectorRange, StoreError,
};
use xen_abi::{Gfn, PAGE_SIZE};

pub const SECTOR: usize = 512;

/// What every frame holds before it is used.
pub const POISON: u8 = 0xa5;

/// Clones are the same memory: a device has one.
#[derive(Clone, Debug)]
pub struct Frames(Rc<RefCell<Vec<u8>>>);

impl Frames {
    pub fn new(nr: usize) -> Self {
        Self(Rc::new(RefCell::new(vec![POISON; nr * PAGE_SIZE])))
    }

    fn start(at: FrameAddr) -> usize {
        usize::try_from(at.gfn().0).unwrap() * PAGE_SIZE + usize::from(at.offset())
    }
}

impl FrameMemory for Frames {
    fn read(&self, at: FrameAddr, into: &mut [u8]) {
        into.copy_from_slice(&self.0.borrow()[Self::start(at)..][..into.len()]);
    }

    fn write(&mut self, at: FrameAddr, from: &[u8]) {
        self.0.borrow_mut()[Self::start(at)..][..from.len()].copy_from_slice(from);
    }

    fn zero(&mut self, at: FrameAddr, len_bytes: usize) {
        self.0.borrow_mut()[Self::start(at)..][..len_bytes].fill(0);
    }

    fn copy(&mut self, from: FrameAddr, to: FrameAddr, len_bytes: usize) {
        let from = Self::start(from);
        self.0.borrow_mut().copy_within(from..from + len_bytes, Self::start(to));
    }

    fn load_u32(&self, at: FrameAddr) -> u32 {
        u32::from_ne_bytes(*self.0.borrow()[Self::start(at)..].first_chunk().unwrap())
    }

    fn store_u32(&mut self, at: FrameAddr, value: u32) {
        self.write(at, &value.to_ne_bytes());
    }
}

/// A pool of `nr` frames, its own table included.
pub fn pool(nr: u64) -> PagePool<Frames> {
    let frames = Frames::new(usize::try_from(nr).unwrap() + 16);
    PagePool::new(frames, &[(Gfn(16), nr)]).unwrap()
}

/// Bytes of [`image`]: no whole sector, and no whole page.
pub const IMAGE_BYTES: usize = 60_001;

/// Where it is: outside the pool, at an odd byte.
pub const IMAGE_AT: FrameAddr = FrameAddr::new(Gfn(1), 77);

/// What byte `n` of a disk over [`image`] is.
pub fn image_byte(n: usize) -> u8 {
    if n < IMAGE_BYTES { u8::try_from(n / SECTOR % 100).unwrap() + 100 } else { 0 }
}

/// An image beside the pool.
pub fn image(pool: &mut PagePool<Frames>) -> Rc<Image> {
    let bytes: Vec<u8> = (0..IMAGE_BYTES).map(image_byte).collect();
    pool.memory_mut().write(IMAGE_AT, &bytes);
    Rc::new(Image::raw(ImageFile { at: IMAGE_AT, len_bytes: IMAGE_BYTES as u64 }))
}

/// Holds the pool's books against all that has pages of it.
pub fn audit<'a>(
    pool: &PagePool<Frames>,
    disks: impl IntoIterator<Item = &'a PageDisk>,
    writes: &[&OpenWrite],
) -> Result<(), Mismatch> {
    let mut audit = Audit::new();
    for disk in disks {
        audit.disk(pool, disk)?;
    }
    writes.iter().for_each(|write| audit.write(pool, write));
    audit.finish(pool)
}

/// Copies `data` to where the extents say; less of it than they hold is a copy that fails.
pub fn fill(pool: &mut PagePool<Frames>, extents: &[Extent], mut data: &[u8]) {
    for extent in extents {
        let Extent::Frames { at, len_bytes } = *extent else { panic!("{extent:?} of a write") };
        let (now, later) = data.split_at(len_bytes.min(data.len()));
        pool.memory_mut().write(at, now);
        data = later;
    }
}

pub fn write(
    disk: &mut impl BlockStore<Frames>,
    pool: &mut PagePool<Frames>,
    first: u64,
    data: &[u8],
) -> Result<(), StoreError> {
    let nr = u64::try_from(data.len() / SECTOR).unwrap();
    let range = SectorRange::on(&disk.geometry(), first, nr)?;
    let mut extents = Vec::new();
    let open = disk.begin_write(pool, range, &mut |extent| extents.push(extent))?;
    fill(pool, &extents, data);
    disk.commit_write(pool, open).unwrap();
    Ok(())
}

pub fn read(
    disk: &mut impl BlockStore<Frames>,
    pool: &mut PagePool<Frames>,
    first: u64,
    nr: u64,
) -> Vec<u8> {
    let range = SectorRange::on(&disk.geometry(), first, nr).unwrap();
    let mut extents = Vec::new();
    let open = disk.begin_read(pool, range, &mut |extent| extents.push(extent)).unwrap();
    let data = gather(pool, &extents);
    disk.end_read(pool, open);
    data
}

/// What the extents of a read hold.
pub fn gather(pool: &PagePool<Frames>, extents: &[Extent]) -> Vec<u8> {
    let mut data = Vec::new();
    for &extent in extents {
        let start = data.len();
        match extent {
            Extent::Frames { at, len_bytes } => {
                data.resize(start + len_bytes, 0);
                pool.memory().read(at, &mut data[start..]);
            }
            Extent::Zero { len_bytes } => data.resize(start + len_bytes, 0),
            Extent::Discarded { .. } => panic!("a disk that keeps its data discards none"),
        }
    }
    data
}
