//! Files in frames, at byte offsets that no page has, and images of them.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::rc::Rc;

use store::{
    BlockStore, Extent, FrameAddr, FrameMemory, Image, ImageDisk, ImageFile, ImageFormat,
    ImageSource, Images, PagePool, SectorRange, StoreError,
};
use xen_abi::{Gfn, PAGE_SIZE};

use crate::frames::{Frames, SECTOR};

/// What a request in these tests reads at most.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;

/// Where the pool's frames begin.
const POOL: u64 = 16;

/// A pool of `nr_pages` pages, and files behind it: each at a byte offset of its own, odd by `odd`.
pub fn memory(nr_pages: u64, files: &[&[u8]], odd: usize) -> (PagePool<Frames>, Vec<ImageFile>) {
    let total: usize = files.iter().map(|file| file.len() + 2 * PAGE_SIZE).sum();
    let first = usize::try_from(POOL + nr_pages).unwrap();
    let mut frames = Frames::new(first + total.div_ceil(PAGE_SIZE) + 1);
    let mut at = FrameAddr::start_of(Gfn(POOL + nr_pages)).after(odd);
    let mut places = Vec::new();
    for file in files {
        frames.write(at, file);
        places.push(ImageFile { at, len_bytes: file.len() as u64 });
        at = at.after(file.len() + odd);
    }
    (PagePool::new(frames, &[(Gfn(POOL), nr_pages)]).unwrap(), places)
}

/// Files by their names, and formats where they are not to be found.
pub type Files<'a> = [(&'a str, &'a [u8], Option<ImageFormat>)];

pub fn load(files: &Files<'_>, odd: usize) -> (PagePool<Frames>, Images) {
    let bytes: Vec<&[u8]> = files.iter().map(|file| file.1).collect();
    let (mut pool, places) = memory(2048, &bytes, odd);
    let sources = files.iter().zip(places).map(|(&(name, _, format), file)| ImageSource {
        name: name.into(),
        file,
        format,
    });
    let images = Images::load(&mut pool, sources.collect(), MAX_REQUEST_BYTES);
    (pool, images)
}

/// The image of a name, of files that are all fine.
pub fn open(files: &Files<'_>, odd: usize, name: &str) -> (PagePool<Frames>, Rc<Image>) {
    let (pool, images) = load(files, odd);
    assert_eq!(images.refused(), []);
    (pool, Rc::clone(images.get(name).unwrap()))
}

/// The extents of a read, and its bytes.
pub fn read(
    image: &Rc<Image>,
    pool: &mut PagePool<Frames>,
    first: u64,
    nr: u64,
) -> Result<(Vec<Extent>, Vec<u8>), StoreError> {
    let mut disk = ImageDisk::new(Rc::clone(image));
    let range = SectorRange::on(&BlockStore::<Frames>::geometry(&disk), first, nr)?;
    let mut extents = Vec::new();
    let open = disk.begin_read(pool, range, &mut |extent| extents.push(extent))?;
    let mut data = Vec::new();
    for extent in &extents {
        let start = data.len();
        match *extent {
            Extent::Frames { at, len_bytes } => {
                data.resize(start + len_bytes, 0);
                pool.memory().read(at, &mut data[start..]);
            }
            Extent::Zero { len_bytes } => data.resize(start + len_bytes, 0),
            Extent::Discarded { .. } => panic!("an image discards nothing"),
        }
    }
    disk.end_read(pool, open);
    assert_eq!(data.len() as u64, nr * SECTOR as u64);
    Ok((extents, data))
}

/// All of an image, in requests of at most `len_bytes` bytes.
pub fn read_all(image: &Rc<Image>, pool: &mut PagePool<Frames>, len_bytes: usize) -> Vec<u8> {
    let step = (len_bytes / SECTOR) as u64;
    let mut data = Vec::new();
    let mut first = 0;
    while first < image.nr_sectors() {
        let nr = step.min(image.nr_sectors() - first);
        data.extend(read(image, pool, first, nr).unwrap().1);
        first += nr;
    }
    data
}

/// Numbers out of a seed (xorshift64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 8) % bound
    }

    /// 1 to 256, and small ones as often as large ones.
    pub fn run_of_sectors(&mut self) -> u64 {
        let bits = self.below(9);
        1 + self.below(1 << bits)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A disk's contents: runs of random bytes, of bytes that compress well, and holes.
pub fn contents(len_bytes: usize, rng: &mut Rng) -> Vec<u8> {
    let mut data = vec![0; len_bytes];
    let mut at = 0;
    while at < len_bytes {
        let run = SECTOR as u64 * rng.run_of_sectors();
        let end = len_bytes.min(at + usize::try_from(run).unwrap());
        match rng.below(4) {
            0 => {}
            1 => data[at..end].fill(rng.next().to_le_bytes()[3]),
            2 => {
                for chunk in data[at..end].chunks_mut(8) {
                    let bytes = (rng.next() & 0x0303_0303_0303_0303).to_le_bytes();
                    chunk.copy_from_slice(&bytes[..chunk.len()]);
                }
            }
            _ => rng.fill(&mut data[at..end]),
        }
        at = end;
    }
    data
}
