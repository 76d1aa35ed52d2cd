//! A boot module of any bytes: an archive of images, or one image.

use std::rc::Rc;

use sim::OwnFrames;
use store::{
    Archive, BlockStore, Extent, FrameAddr, FrameMemory, Image, ImageDisk, ImageFile, ImageFormat,
    ImageSource, Images, PagePool, SectorRange,
};
use xen_abi::{Gfn, PAGE_SIZE};

use crate::input::Input;

const SECTOR: usize = 512;
const POOL_PAGES: u64 = 64;
const MAX_REQUEST_BYTES: usize = 32 << 10;

/// The first frame of the module. It ends with its last frame, and there is nothing around it.
const MODULE: Gfn = Gfn(0x1000);

/// First how the rest is taken, then the module.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.u8();
    let format = match how & 3 {
        0 => None,
        1 => Some(ImageFormat::Raw),
        2 => Some(ImageFormat::Vhd),
        _ => Some(ImageFormat::Qcow2),
    };
    let mut module = input.take(usize::MAX);
    if how & 4 != 0 {
        module = stretched(&module, 1 << 14);
    }
    if how & 8 != 0 {
        seal(&mut module);
    }
    let nr_frames = module.len().div_ceil(PAGE_SIZE).max(1);
    let at = FrameAddr::start_of(MODULE).after(nr_frames * PAGE_SIZE - module.len());
    let free = (Gfn(1), POOL_PAGES);
    let mut memory = OwnFrames::new(&[free, (MODULE, nr_frames as u64)]);
    memory.write(at, &module);
    let pool = PagePool::new(memory, &[free]);
    let mut pool = pool.unwrap_or_else(|error| panic!("{error}"));
    let file = ImageFile { at, len_bytes: module.len() as u64 };
    let sources = sources(&pool, file, format);
    let nr_sources = sources.len();
    let images = Images::load(&mut pool, sources, MAX_REQUEST_BYTES);
    assert_eq!(images.iter().count() + images.refused().len(), nr_sources);
    for refused in images.refused() {
        assert!(!refused.error.to_string().is_empty());
        assert!(nr_sources > 1 || images.get(&refused.name).is_none());
    }
    for (_, image) in images.iter() {
        check(&mut pool, image);
    }
    let mut after = vec![0; module.len()];
    pool.memory().read(at, &mut after);
    assert_eq!(after, module, "the module is never written");
}

/// The members of an archive, or the module itself.
fn sources(
    pool: &PagePool<OwnFrames>,
    module: ImageFile,
    format: Option<ImageFormat>,
) -> Vec<ImageSource> {
    let Some(archive) = Archive::open(pool.memory(), module) else {
        return vec![ImageSource { name: "disk".into(), file: module, format }];
    };
    let mut sources = Vec::new();
    for member in archive {
        match member {
            Ok(member) => {
                check_inside(
                    member.file.at,
                    member.file.len_bytes.try_into().unwrap_or(usize::MAX),
                    module,
                );
                let name = member.file_name().into();
                sources.push(ImageSource { name, file: member.file, format: None });
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    sources
}

fn check_inside(at: FrameAddr, len_bytes: usize, module: ImageFile) {
    let byte = |at: FrameAddr| at.gfn().0 * PAGE_SIZE as u64 + u64::from(at.offset());
    let (start, module_start) = (byte(at), byte(module.at));
    let end = start.checked_add(len_bytes as u64);
    let module_end = module_start + module.len_bytes;
    assert!(start >= module_start && end.is_some_and(|end| end <= module_end), "outside");
}

/// Reads the start and the end of an image, whole and in pieces, and again.
fn check(pool: &mut PagePool<OwnFrames>, image: &Rc<Image>) {
    let nr_sectors = image.nr_sectors();
    assert!(nr_sectors > 0);
    let free = pool.nr_free();
    let max = (MAX_REQUEST_BYTES / SECTOR) as u64;
    for first in [0, nr_sectors / 2, nr_sectors.saturating_sub(max)] {
        let nr = max.min(nr_sectors - first);
        let whole = read(pool, image, first, nr);
        assert_eq!(read(pool, image, first, nr), whole, "the same read again");
        for at in (0..nr).step_by(7) {
            let piece = read(pool, image, first + at, 7.min(nr - at));
            if let (Some(whole), Some(piece)) = (&whole, piece) {
                let start = usize::try_from(at).expect("small") * SECTOR;
                assert_eq!(whole[start..start + piece.len()], piece, "a piece of it");
            }
        }
    }
    assert_eq!(pool.nr_free(), free, "reads take no pages");
}

/// The bytes of some sectors; `None` where they cannot be had.
fn read(pool: &mut PagePool<OwnFrames>, image: &Rc<Image>, first: u64, nr: u64) -> Option<Vec<u8>> {
    let mut disk = ImageDisk::new(Rc::clone(image));
    let geometry = BlockStore::<OwnFrames>::geometry(&disk);
    let range = SectorRange::on(&geometry, first, nr).unwrap_or_else(|error| panic!("{error}"));
    let mut extents = Vec::new();
    let open = match disk.begin_read(pool, range, &mut |extent| extents.push(extent)) {
        Ok(open) => open,
        Err(store::StoreError::Damaged { .. }) => return None,
        Err(error) => panic!("{error}"),
    };
    let mut data = Vec::new();
    for extent in extents {
        let start = data.len();
        match extent {
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
    Some(data)
}

/// Each sector of the input at the start of so many bytes, so that a small input is a file of large
/// clusters.
fn stretched(module: &[u8], step: usize) -> Vec<u8> {
    let mut far = Vec::new();
    for (n, sector) in module.chunks(SECTOR).take(9).enumerate() {
        far.resize(n * step, 0);
        far.extend(sector);
    }
    far.resize(far.len().next_multiple_of(step), 0);
    far
}

/// Makes the checksums of a VHD right, which mutations do not.
fn seal(module: &mut [u8]) {
    let footer = module.len().saturating_sub(SECTOR);
    for (at, len, sum_at) in [(SECTOR, 2 * SECTOR, 36), (footer, SECTOR, 64), (0, SECTOR, 64)] {
        if let Some(part) = module.get_mut(at..at + len) {
            part[sum_at..sum_at + 4].fill(0);
            let sum: u32 = part.iter().map(|byte| u32::from(*byte)).sum();
            part[sum_at..sum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
        }
    }
}
