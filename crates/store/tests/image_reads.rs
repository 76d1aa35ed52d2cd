//! Reads of images against a model: in pieces, several open at once, with little room to unpack.

// Miri takes many minutes, and nothing here is unsafe.
#![cfg(not(miri))]
#![allow(clippy::unwrap_used, reason = "a test may")]
mod frames;
mod images;

use std::ops::Range;
use std::rc::Rc;

use frames::{Frames, SECTOR};
use images::{Rng, memory, open, read, read_all};
use proptest::prelude::*;
use store::{
    BlockStore, Disk, Extent, FrameMemory, Image, ImageDisk, ImageError, ImageSource, Images,
    OpenRead, PageDisk, PagePool, SectorRange, StoreError, Want,
};
use xen_abi::PAGE_SIZE;

/// What a cluster is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Absent,
    Zero,
    Data,
    Compressed,
    /// What it is compressed to makes no sense.
    Garbled,
}

/// Deflate's way to hold bytes as they are.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    for (n, block) in data.chunks(32768).enumerate() {
        packed.push(u8::from((n + 1) * 32768 >= data.len()));
        let len = u16::try_from(block.len()).unwrap();
        packed.extend(len.to_le_bytes());
        packed.extend((!len).to_le_bytes());
        packed.extend(block);
    }
    packed
}

/// A qcow2 whose clusters are of these kinds, and its bytes where it has them.
fn qcow2(
    cluster_bits: u32,
    kinds: &[Kind],
    parent: Option<&str>,
    rng: &mut Rng,
) -> (Vec<u8>, Vec<Option<Vec<u8>>>) {
    let cluster = 1 << cluster_bits;
    let entries = cluster / 8;
    let nr_tables = kinds.len().div_ceil(entries);
    let l1_clusters = (nr_tables * 8).div_ceil(cluster);
    let tables = cluster * (1 + l1_clusters);
    let mut file = vec![0; tables + nr_tables * cluster];
    let put32 = |file: &mut Vec<u8>, at: usize, value: usize| {
        file[at..at + 4].copy_from_slice(&u32::try_from(value).unwrap().to_be_bytes());
    };
    let put64 = |file: &mut Vec<u8>, at: usize, value: u64| {
        file[at..at + 8].copy_from_slice(&value.to_be_bytes());
    };
    file[..4].copy_from_slice(b"QFI\xfb");
    put32(&mut file, 4, 3);
    put32(&mut file, 20, cluster_bits as usize);
    put64(&mut file, 24, (kinds.len() * cluster) as u64);
    put32(&mut file, 36, nr_tables);
    put64(&mut file, 40, cluster as u64);
    put32(&mut file, 100, 104);
    if let Some(parent) = parent {
        put64(&mut file, 8, 200);
        put32(&mut file, 16, parent.len());
        file[200..200 + parent.len()].copy_from_slice(parent.as_bytes());
    }
    for table in 0..nr_tables {
        put64(&mut file, cluster + 8 * table, (tables + table * cluster) as u64 | 1 << 63);
    }
    let mut model = Vec::new();
    for (number, kind) in kinds.iter().enumerate() {
        let mut data = vec![0; cluster];
        if !matches!(kind, Kind::Absent | Kind::Zero) {
            rng.fill(&mut data);
        }
        let entry = match kind {
            Kind::Absent => 0,
            Kind::Zero => 1,
            Kind::Data => {
                file.resize(file.len().next_multiple_of(cluster), 0xee);
                let at = file.len() as u64;
                file.extend(&data);
                at | 1 << 63
            }
            Kind::Compressed | Kind::Garbled => {
                let at = file.len();
                file.extend(match kind {
                    Kind::Garbled => vec![0xff; 8],
                    _ => stored(&data),
                });
                let more = (file.len() - 1) / 512 - at / 512;
                at as u64 | (more as u64) << (62 - (cluster_bits - 8)) | 1 << 62
            }
        };
        put64(&mut file, tables + 8 * number, entry);
        model.push((*kind != Kind::Absent).then_some(data));
    }
    (file, model)
}

/// Loads qcow2 files, each over the next, the first of which is `disk`.
fn load(
    files: &[Vec<u8>],
    nr_pages: u64,
    max_request_bytes: usize,
    odd: usize,
) -> (PagePool<Frames>, Images) {
    let bytes: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let (mut pool, places) = memory(nr_pages, &bytes, odd);
    let sources = places.into_iter().enumerate();
    let sources = sources.map(|(n, file)| ImageSource { name: name(n), file, format: None });
    let images = Images::load(&mut pool, sources.collect(), max_request_bytes);
    (pool, images)
}

fn name(n: usize) -> String {
    if n == 0 { "disk".into() } else { format!("base{n}") }
}

/// A chain of images with clusters of each kind, and all bytes of the first one's disk.
fn chain(layers: &[(u32, Vec<Kind>)], rng: &mut Rng) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut files = Vec::new();
    let mut disk: Vec<u8> = Vec::new();
    for (n, (cluster_bits, kinds)) in layers.iter().enumerate().rev() {
        let below = (n + 1 < layers.len()).then(|| name(n + 1));
        let (file, model) = qcow2(*cluster_bits, kinds, below.as_deref(), rng);
        let cluster = 1 << cluster_bits;
        disk.resize(kinds.len() * cluster, 0);
        for (number, data) in model.into_iter().enumerate() {
            if let Some(data) = data {
                disk[number * cluster..][..cluster].copy_from_slice(&data);
            }
        }
        files.insert(0, file);
    }
    (files, disk)
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Absent), Just(Kind::Zero), Just(Kind::Data), Just(Kind::Compressed)]
}

fn any_layers() -> impl Strategy<Value = Vec<(u32, Vec<Kind>)>> {
    let layer = (9..14_u32).prop_flat_map(|bits| {
        let nr = (64 << 10) >> bits;
        (Just(bits), prop::collection::vec(any_kind(), 1..=nr))
    });
    prop::collection::vec(layer, 1..4)
}

/// A read that was begun, and where its extents are.
struct Begun {
    read: OpenRead,
    bytes: Range<usize>,
    extents: Vec<Extent>,
}

fn begin(
    image: &Rc<Image>,
    pool: &mut PagePool<Frames>,
    first: u64,
    nr: u64,
) -> Result<Begun, StoreError> {
    let mut disk = ImageDisk::new(Rc::clone(image));
    let range = SectorRange::on(&BlockStore::<Frames>::geometry(&disk), first, nr)?;
    let mut extents = Vec::new();
    let read = disk.begin_read(pool, range, &mut |extent| extents.push(extent))?;
    let byte = |sector: u64| usize::try_from(sector).unwrap() * SECTOR;
    Ok(Begun { read, bytes: byte(first)..byte(first + nr), extents })
}

/// Ends a read; what it was told of holds the disk's bytes until now.
fn end(begun: Begun, pool: &mut PagePool<Frames>, disk: &[u8]) {
    let mut at = begun.bytes.start;
    for extent in begun.extents {
        let (data, len) = match extent {
            Extent::Frames { at, len_bytes } => {
                let mut data = vec![0; len_bytes];
                pool.memory().read(at, &mut data);
                (data, len_bytes)
            }
            Extent::Zero { len_bytes } => (vec![0; len_bytes], len_bytes),
            Extent::Discarded { .. } => panic!("an image discards nothing"),
        };
        assert!(data == disk[at..at + len], "bytes {at}+{len}");
        at += len;
    }
    assert_eq!(at, begun.bytes.end);
    pool.end_read(begun.read);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_are_the_whole_wherever_the_file_lies(
        layers in any_layers(),
        seed: u64,
        odd in 0..PAGE_SIZE,
        pieces in prop::collection::vec(1..80_u64, 1..40),
    ) {
        let (files, disk) = chain(&layers, &mut Rng::new(seed));
        let (mut pool, images) = load(&files, 256, 64 << 10, odd);
        prop_assert_eq!(images.refused(), []);
        let image = images.get("disk").unwrap();
        prop_assert!(read_all(image, &mut pool, 64 << 10) == disk);
        let mut first = 0;
        for nr in pieces {
            let nr = nr.min(image.nr_sectors() - first);
            end(begin(image, &mut pool, first, nr).unwrap(), &mut pool, &disk);
            first = (first + nr) % image.nr_sectors();
        }
    }

    /// Also with the pool used up, and the cache as small as it may be.
    #[test]
    fn an_open_read_keeps_its_bytes_and_one_alone_is_never_busy(
        layers in any_layers(),
        seed: u64,
        steps in prop::collection::vec((any::<prop::sample::Index>(), 1..32_u64, 0..3_u8), 1..60),
    ) {
        let (files, disk) = chain(&layers, &mut Rng::new(seed));
        let (mut pool, images) = load(&files, 256, 16 << 10, 1);
        prop_assert_eq!(images.refused(), []);
        while pool.take(Want::Exchange).is_ok() {}
        let image = images.get("disk").unwrap();
        let mut begun: Vec<Begun> = Vec::new();
        for (place, nr, what) in steps {
            if what == 0 && !begun.is_empty() {
                let one = begun.swap_remove(place.index(begun.len()));
                end(one, &mut pool, &disk);
                continue;
            }
            let first = place.index(usize::try_from(image.nr_sectors()).unwrap()) as u64;
            let nr = nr.min(image.nr_sectors() - first);
            match begin(image, &mut pool, first, nr) {
                Ok(one) => begun.push(one),
                Err(error) => {
                    prop_assert_eq!(error, StoreError::Busy);
                    prop_assert!(!begun.is_empty(), "busy with none open");
                    for one in begun.drain(..) {
                        end(one, &mut pool, &disk);
                    }
                    begun.push(begin(image, &mut pool, first, nr).unwrap());
                }
            }
        }
    }
}

#[test]
fn bytes_that_lie_together_are_one_extent_where_they_lie() {
    let kinds = [Kind::Data, Kind::Data, Kind::Zero, Kind::Absent, Kind::Absent, Kind::Data];
    let (files, _) = chain(&[(9, kinds.to_vec())], &mut Rng::new(1));
    let (mut pool, images) = load(&files, 64, 1 << 20, 77);
    let (extents, _) = read(images.get("disk").unwrap(), &mut pool, 0, 6).unwrap();
    let [
        Extent::Frames { at, len_bytes: 1024 },
        Extent::Zero { len_bytes: 1536 },
        Extent::Frames { at: last, len_bytes: 512 },
    ] = extents[..]
    else {
        panic!("{extents:?}");
    };
    assert_eq!(at.after(1024), last);
    // 77 bytes into a page, the file, whose fourth cluster it is.
    assert_eq!(usize::from(at.offset()), 77 + 3 * 512);
}

#[test]
fn the_cache_takes_its_pages_when_it_is_made_and_only_where_it_is_needed() {
    let rng = &mut Rng::new(2);
    let plain = chain(&[(12, vec![Kind::Data; 8])], rng).0;
    let (pool, _) = load(&plain, 64, 16 << 10, 0);
    let nr_all = pool.nr_total();
    assert_eq!(pool.nr_free(), nr_all);
    let packed = chain(&[(12, vec![Kind::Compressed; 8])], rng).0;
    let (mut pool, images) = load(&packed, 64, 16 << 10, 0);
    // Four pages, one more since a request need not begin at a page, and a cluster.
    assert_eq!(pool.nr_free(), nr_all - 6);
    read_all(images.get("disk").unwrap(), &mut pool, 16 << 10);
    assert_eq!(pool.nr_free(), nr_all - 6);
    // With clusters of less than a page, a page may be in two images.
    let small = chain(&[(9, vec![Kind::Compressed; 8])], rng).0;
    assert_eq!(load(&small, 64, 16 << 10, 0).0.nr_free(), nr_all - 11);

    let (pool, images) = load(&packed, 64, 1 << 20, 0);
    let free = nr_all - pool.nr_reserve();
    let [refused] = images.refused() else { panic!("{:?}", images.refused()) };
    assert_eq!(refused.error, ImageError::NoPages { needed: 258, free });
    assert_eq!(pool.nr_free(), nr_all);
}

#[test]
fn what_was_unpacked_is_not_unpacked_again() {
    let (files, disk) = chain(&[(13, vec![Kind::Compressed; 2])], &mut Rng::new(3));
    let (mut pool, places) = memory(64, &[&files[0]], 0);
    let source = ImageSource { name: "disk".into(), file: places[0], format: None };
    let images = Images::load(&mut pool, vec![source], 16 << 10);
    let image = images.get("disk").unwrap();
    end(begin(image, &mut pool, 0, 1).unwrap(), &mut pool, &disk);
    // Nobody else can do that; it shows that the clusters are not looked at again.
    pool.memory_mut().zero(places[0].at.after(3 << 13), 8192 + 5);
    end(begin(image, &mut pool, 0, 16).unwrap(), &mut pool, &disk);
    let (extents, _) = read(image, &mut pool, 0, 16).unwrap();
    assert!(matches!(extents[..], [Extent::Frames { len_bytes: 8192, .. }]), "{extents:?}");
}

#[test]
fn a_cluster_that_does_not_unpack_is_an_error_and_the_rest_is_served() {
    let kinds = [Kind::Compressed, Kind::Garbled, Kind::Compressed];
    let (files, disk) = chain(&[(12, kinds.to_vec())], &mut Rng::new(4));
    let (mut pool, images) = load(&files, 64, 16 << 10, 0);
    let image = images.get("disk").unwrap();
    // Behind three clusters and what the first one is packed to.
    let damaged = StoreError::Damaged { at: 3 * 4096 + 4096 + 5 };
    assert_eq!(damaged.to_string(), "the image is damaged at byte 16389 of its file");
    for _ in 0..3 {
        assert_eq!(read(image, &mut pool, 0, 24), Err(damaged));
        assert_eq!(read(image, &mut pool, 15, 1), Err(damaged));
        end(begin(image, &mut pool, 0, 8).unwrap(), &mut pool, &disk);
        end(begin(image, &mut pool, 16, 8).unwrap(), &mut pool, &disk);
    }
}

#[test]
fn a_disk_says_in_what_unit_it_may_have_to_unpack() {
    let unit = |layers: &[(u32, Vec<Kind>)]| {
        let (files, _) = chain(layers, &mut Rng::new(9));
        let (pool, images) = load(&files, 128, 16 << 10, 0);
        let image = Rc::clone(images.get("disk").unwrap());
        let overlay = PageDisk::overlay(Rc::clone(&image), Some(1), &pool).unwrap();
        let disks = [Disk::Image(ImageDisk::new(image)), Disk::Pages(overlay)];
        let [alone, below] = disks.map(|disk| BlockStore::<Frames>::unpack_unit_bytes(&disk));
        assert_eq!(alone, below);
        alone
    };
    let packed = |bits| (bits, vec![Kind::Compressed; 2]);
    let plain = |bits| (bits, vec![Kind::Data, Kind::Absent]);
    assert_eq!(unit(&[plain(16)]), None);
    assert_eq!(unit(&[packed(9)]), Some(512));
    assert_eq!(unit(&[plain(16), packed(12)]), Some(4096));
    assert_eq!(unit(&[packed(12), plain(12), packed(14)]), Some(16384));
}

#[test]
fn a_cluster_that_ends_too_early_is_an_error_of_all_of_it() {
    // 64 KiB, of which 32 KiB come out before the file ends.
    let (files, _) = chain(&[(16, vec![Kind::Compressed])], &mut Rng::new(5));
    let mut cut = files[0].clone();
    cut.truncate(3 * 65536 + 5 + 32768 + 5);
    let (mut pool, images) = load(&[cut], 64, 16 << 10, 0);
    let image = images.get("disk").unwrap();
    for first in [0, 8, 100] {
        assert_eq!(read(image, &mut pool, first, 8), Err(StoreError::Damaged { at: 3 * 65536 }));
    }
}

#[test]
fn a_cluster_is_unpacked_from_its_own_sectors_alone() {
    // 4096 + 5 bytes at the start of a sector take nine, and the entry says eight.
    let (mut files, _) = chain(&[(12, vec![Kind::Compressed; 2])], &mut Rng::new(8));
    let (at, l2) = (3 * 4096, 2 * 4096);
    let entry: u64 = 1 << 62 | 7 << 58 | at;
    files[0][l2..l2 + 8].copy_from_slice(&entry.to_be_bytes());
    let (mut pool, images) = load(&files, 64, 16 << 10, 0);
    let image = images.get("disk").unwrap();
    assert_eq!(read(image, &mut pool, 0, 1), Err(StoreError::Damaged { at }));
    read(image, &mut pool, 8, 1).unwrap();
}

#[test]
fn a_reader_that_goes_on_unpacks_a_cluster_once() {
    let kinds = vec![Kind::Compressed; 2];
    let (files, disk) = chain(&[(16, kinds)], &mut Rng::new(9));
    let (mut pool, places) = memory(64, &[&files[0]], 0);
    let source = ImageSource { name: "disk".into(), file: places[0], format: None };
    let images = Images::load(&mut pool, vec![source], 4096);
    let image = images.get("disk").unwrap();
    for cluster in 0..2 {
        end(begin(image, &mut pool, cluster * 128, 1).unwrap(), &mut pool, &disk);
        let at = (3 << 16) + usize::try_from(cluster).unwrap() * (65536 + 10);
        pool.memory_mut().zero(places[0].at.after(at), 65536 + 10);
        for first in 0..128 {
            end(begin(image, &mut pool, cluster * 128 + first, 1).unwrap(), &mut pool, &disk);
        }
    }
}

/// Deflate's bits, packed as it packs them.
fn bits(text: &str) -> Vec<u8> {
    let bits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').map(|byte| byte - b'0').collect();
    bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |all, bit| all << 1 | bit)).collect()
}

#[test]
fn a_cluster_that_refers_to_before_its_start_shows_nothing_of_another() {
    // The first fills the window.
    let (mut files, _) = chain(&[(15, vec![Kind::Compressed; 2])], &mut Rng::new(6));
    // 128 times 258 bytes (code 285) from one byte back (code 0), with the fixed codes.
    let packed = bits(&format!("1 10 {} 0000000", "11000101 00000".repeat(128)));
    let second = (3 << 15) + (1 << 15) + 5;
    files[0][second..second + packed.len()].copy_from_slice(&packed);
    let (mut pool, images) = load(&files, 64, 16 << 10, 0);
    let image = images.get("disk").unwrap();
    read(image, &mut pool, 0, 1).unwrap();
    assert_eq!(read(image, &mut pool, 64, 1).unwrap().1, vec![0; 512]);
}

#[test]
fn the_last_cluster_may_be_less_than_the_format_says() {
    // Compressed data ends where the file does, and not with a sector.
    let (files, disk) = chain(&[(12, vec![Kind::Absent, Kind::Compressed])], &mut Rng::new(7));
    assert!(!files[0].len().is_multiple_of(512));
    let (mut pool, image) = open(&[("disk", &files[0], None)], 9, "disk");
    assert!(read_all(&image, &mut pool, 1 << 20) == disk);
}
