//! Overlays, snapshots and clones: what they read, what they cost, and who has which page.

#![allow(clippy::unwrap_used, reason = "a test may")]
mod frames;

use std::rc::Rc;

use frames::{
    Frames, IMAGE_AT, IMAGE_BYTES, POISON, SECTOR, audit, fill, image, image_byte, pool, read,
    write,
};
use store::{
    Access, BlockSize, BlockStore, Discard, Disk, Extent, FrameAddr, FrameMemory, Geometry,
    ImageDisk, NullDisk, PageDisk, PagePool, Progress, SectorRange, SecureDiscard, Steps,
    StoreError, Usage, Want,
};
use xen_abi::{Gfn, PAGE_SIZE};

/// Sectors that one lowest node of a table is for.
const RUN: u64 = 8 << 10;

fn geometry(disk: &impl BlockStore<Frames>) -> Geometry {
    disk.geometry()
}

fn range(disk: &impl BlockStore<Frames>, first: u64, nr: u64) -> SectorRange {
    SectorRange::on(&disk.geometry(), first, nr).unwrap()
}

fn disk(nr_sectors: u64, cap_pages: u64, pool: &PagePool<Frames>) -> PageDisk {
    PageDisk::new(nr_sectors, BlockSize::B512, cap_pages, pool).unwrap()
}

fn clear(mut disk: PageDisk, pool: &mut PagePool<Frames>) {
    assert_eq!(disk.clear(pool, &mut Steps::new(u32::MAX)), Progress::Done);
}

fn discard(
    disk: &mut PageDisk,
    pool: &mut PagePool<Frames>,
    first: u64,
    nr: u64,
    discard: Discard,
) -> Result<Progress, StoreError> {
    let range = range(disk, first, nr);
    disk.discard(pool, range, discard, &mut Steps::new(u32::MAX))
}

fn extents(
    disk: &mut impl BlockStore<Frames>,
    pool: &mut PagePool<Frames>,
    first: u64,
    nr: u64,
) -> Vec<Extent> {
    let range = range(disk, first, nr);
    let mut extents = Vec::new();
    let open = disk.begin_read(pool, range, &mut |extent| extents.push(extent)).unwrap();
    disk.end_read(pool, open);
    extents
}

fn usage(nr_pages: u64, cap_pages: u64, nr_nodes: u64) -> Usage {
    Usage { nr_pages, cap_pages, nr_nodes }
}

/// The bytes of sectors over the image.
fn base(first: u64, nr: u64) -> Vec<u8> {
    let byte = |sector| usize::try_from(sector).unwrap() * SECTOR;
    (byte(first)..byte(first + nr)).map(image_byte).collect()
}

fn is_anywhere(pool: &PagePool<Frames>, value: u8) -> bool {
    let mut seen = [0; PAGE_SIZE];
    (0..pool.nr_total()).any(|index| {
        pool.memory().read(FrameAddr::start_of(Gfn(18 + index)), &mut seen);
        seen.contains(&value)
    })
}

#[test]
fn an_overlay_is_the_image_until_it_is_written() {
    let mut pool = pool(66);
    let image = image(&mut pool);
    let mut disk = PageDisk::overlay(image, Some(20), &pool).unwrap();
    assert_eq!(geometry(&disk).nr_sectors, 118);
    assert_eq!(geometry(&disk).discard.unwrap().secure, SecureDiscard::No);
    assert_eq!(read(&mut disk, &mut pool, 0, 118), base(0, 118));
    // A run of absent pages is asked for at once, and served where the image lies.
    let whole = Extent::Frames { at: IMAGE_AT, len_bytes: IMAGE_BYTES };
    let rest = Extent::Zero { len_bytes: 118 * SECTOR - IMAGE_BYTES };
    assert_eq!(extents(&mut disk, &mut pool, 0, 118), [whole, rest]);
    assert_eq!(disk.usage(), usage(0, 20, 0));

    // A part of a page: the rest is the image's.
    write(&mut disk, &mut pool, 9, &[1; 2 * SECTOR]).unwrap();
    write(&mut disk, &mut pool, 117, &[2; SECTOR]).unwrap();
    let mut expected = base(0, 118);
    expected[9 * SECTOR..11 * SECTOR].fill(1);
    expected[117 * SECTOR..].fill(2);
    assert_eq!(read(&mut disk, &mut pool, 0, 118), expected);
    assert_eq!(disk.usage(), usage(2, 20, 1));
    let named = extents(&mut disk, &mut pool, 0, 118);
    assert!(
        matches!(
            named[..],
            [
                Extent::Frames { at: IMAGE_AT, len_bytes: 4096 },
                Extent::Frames { len_bytes: 4096, .. },
                Extent::Frames { at: third, len_bytes: 49152 },
                Extent::Frames { len_bytes: 3072, .. },
            ] if third == IMAGE_AT.after(8192)
        ),
        "{named:?}"
    );

    // What the disk gives up shows the image again.
    assert_eq!(discard(&mut disk, &mut pool, 0, 118, Discard::Secure), Err(StoreError::NotSecure));
    assert_eq!(discard(&mut disk, &mut pool, 8, 110, Discard::Plain), Ok(Progress::Done));
    assert_eq!(read(&mut disk, &mut pool, 0, 118), base(0, 118));
    assert_eq!(disk.usage(), usage(0, 20, 0));
    audit(&pool, [&disk], &[]).unwrap();
}

#[test]
fn what_a_partial_write_leaves_over_the_images_end_is_zero() {
    let mut pool = pool(66);
    let image = image(&mut pool);
    let mut disk = PageDisk::overlay(image, Some(20), &pool).unwrap();
    disk.grow(&mut pool, 160, 20).unwrap();
    write(&mut disk, &mut pool, 116, &[3; SECTOR]).unwrap();
    let mut expected = base(0, 160);
    expected[116 * SECTOR..117 * SECTOR].fill(3);
    assert_eq!(read(&mut disk, &mut pool, 0, 160), expected);
}

#[test]
fn an_overlay_without_a_cap_has_what_it_needs_or_what_there_is() {
    let mut large = pool(66);
    let image = image(&mut large);
    let cap = |pool: &PagePool<Frames>, cap| {
        PageDisk::overlay(Rc::clone(&image), cap, pool).map(|disk| disk.usage().cap_pages)
    };
    assert_eq!(cap(&large, None), Ok(15));
    assert_eq!(cap(&large, Some(3)), Ok(3));
    assert_eq!(cap(&large, Some(60)), Err(StoreError::TooLarge { needed: 61, usable: 60 }));
    // Ten pages, one of them a node.
    assert_eq!(cap(&pool(12), None), Ok(9));
}

#[test]
fn a_snapshot_stays_as_it_is_and_a_clone_goes_its_own_way() {
    let mut pool = pool(130);
    let mut disk = disk(2 * RUN, 20, &pool);
    write(&mut disk, &mut pool, RUN - 8, &[1; 2 * PAGE_SIZE]).unwrap();
    let free = pool.nr_free();
    let mut snapshot = disk.snapshot(&mut pool, Access::ReadOnly).unwrap();
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    assert_eq!(pool.nr_free(), free);
    for disk in [&disk, &snapshot, &clone] {
        assert_eq!(disk.usage(), usage(2, 20, 3));
    }
    // The root, one lowest node, the page.
    write(&mut clone, &mut pool, RUN, &[2; PAGE_SIZE]).unwrap();
    assert_eq!(free - pool.nr_free(), 3);
    // And only the page.
    write(&mut clone, &mut pool, RUN + 8, &[3; SECTOR]).unwrap();
    assert_eq!(free - pool.nr_free(), 4);
    // Nothing that is its own already.
    write(&mut clone, &mut pool, RUN, &[4; SECTOR]).unwrap();
    assert_eq!(free - pool.nr_free(), 4);
    audit(&pool, [&disk, &snapshot, &clone], &[]).unwrap();

    let mut expected = vec![1; 3 * PAGE_SIZE];
    expected[2 * PAGE_SIZE..].fill(0);
    assert_eq!(read(&mut disk, &mut pool, RUN - 8, 24), expected);
    assert_eq!(read(&mut snapshot, &mut pool, RUN - 8, 24), expected);
    expected[PAGE_SIZE..PAGE_SIZE + SECTOR].fill(4);
    expected[PAGE_SIZE + SECTOR..2 * PAGE_SIZE].fill(2);
    expected[2 * PAGE_SIZE..2 * PAGE_SIZE + SECTOR].fill(3);
    assert_eq!(read(&mut clone, &mut pool, RUN - 8, 24), expected);

    clear(disk, &mut pool);
    clear(clone, &mut pool);
    assert_eq!(read(&mut snapshot, &mut pool, RUN, 8), [1; PAGE_SIZE]);
    audit(&pool, [&snapshot], &[]).unwrap();
    clear(snapshot, &mut pool);
    assert_eq!(pool.nr_free(), pool.nr_total());
}

#[test]
fn a_snapshot_is_never_written() {
    let mut pool = pool(66);
    let mut disk = disk(800, 20, &pool);
    write(&mut disk, &mut pool, 0, &[1; PAGE_SIZE]).unwrap();
    let mut snapshot = disk.snapshot(&mut pool, Access::ReadOnly).unwrap();
    assert_eq!(geometry(&snapshot).access, Access::ReadOnly);
    assert_eq!(geometry(&snapshot).discard, None);
    let refused = Err(StoreError::ReadOnly);
    assert_eq!(write(&mut snapshot, &mut pool, 0, &[2; SECTOR]), refused);
    let refused = Err(StoreError::ReadOnly);
    assert_eq!(discard(&mut snapshot, &mut pool, 0, 8, Discard::Plain), refused);
    assert_eq!(snapshot.discard_all(&mut pool, &mut Steps::new(9)), refused);
    assert_eq!(read(&mut snapshot, &mut pool, 0, 8), [1; PAGE_SIZE]);
    // A clone of it is a disk of its own.
    let mut clone = snapshot.snapshot(&mut pool, Access::ReadWrite).unwrap();
    write(&mut clone, &mut pool, 0, &[2; SECTOR]).unwrap();
    assert_eq!(read(&mut snapshot, &mut pool, 0, 8), [1; PAGE_SIZE]);
}

#[test]
fn a_snapshot_keeps_its_size() {
    let mut pool = pool(66);
    let mut disk = disk(800, 20, &pool);
    write(&mut disk, &mut pool, 0, &[1; 4 * PAGE_SIZE]).unwrap();
    let mut snapshot = disk.snapshot(&mut pool, Access::ReadOnly).unwrap();
    let free = pool.nr_free();
    for nr_sectors in [0, 8, 20, 800, 2 * RUN] {
        let shrunk = snapshot.shrink(&mut pool, nr_sectors, &mut Steps::new(u32::MAX));
        assert_eq!(shrunk, Err(StoreError::ReadOnly));
        assert_eq!(snapshot.grow(&mut pool, nr_sectors, 21), Err(StoreError::ReadOnly));
    }
    assert_eq!((snapshot.usage(), pool.nr_free()), (usage(4, 20, 1), free));
    assert_eq!(geometry(&snapshot).nr_sectors, 800);
    assert_eq!(read(&mut snapshot, &mut pool, 0, 32), [1; 4 * PAGE_SIZE]);
}

#[test]
fn nothing_happens_to_a_disk_beside_an_open_write() {
    let mut pool = pool(66);
    let mut disk = disk(800, 20, &pool);
    let part = range(&disk, 0, 8);
    let open = disk.begin_write(&mut pool, part, &mut |_| ()).unwrap();
    let busy = StoreError::Busy;
    assert_eq!(disk.snapshot(&mut pool, Access::ReadOnly).unwrap_err(), busy);
    assert_eq!(disk.grow(&mut pool, 1600, 20), Err(busy));
    assert_eq!(disk.discard_all(&mut pool, &mut Steps::new(9)), Err(busy));
    audit(&pool, [&disk], &[&open]).unwrap();
    disk.abort_write(&mut pool, open);
    assert_eq!(geometry(&disk).nr_sectors, 800);
    assert!(disk.snapshot(&mut pool, Access::ReadOnly).is_ok());
}

#[test]
fn only_what_nobody_shares_is_exchanged_for_pages_of_the_reserve() {
    let mut pool = pool(66);
    let mut disk = disk(800, 20, &pool);
    write(&mut disk, &mut pool, 0, &[1; 2 * PAGE_SIZE]).unwrap();
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    write(&mut clone, &mut pool, 0, &[2; PAGE_SIZE]).unwrap();
    while pool.take(Want::More).is_ok() {}
    let full = Err(StoreError::NoMemory { free: 4, total: 64 });
    // Both have the first page alone, and share the second.
    for disk in [&mut disk, &mut clone] {
        write(disk, &mut pool, 0, &[3; PAGE_SIZE]).unwrap();
        assert_eq!(write(disk, &mut pool, 8, &[4; PAGE_SIZE]), full);
        assert_eq!(read(disk, &mut pool, 0, 16)[PAGE_SIZE..], [1; PAGE_SIZE]);
    }
    // Once the other has dropped it, it is this one's alone.
    clear(clone, &mut pool);
    write(&mut disk, &mut pool, 0, &[5; 2 * PAGE_SIZE]).unwrap();
    assert_eq!(read(&mut disk, &mut pool, 0, 16), [5; 2 * PAGE_SIZE]);
}

#[test]
fn a_shared_node_that_a_discard_covers_is_dropped_without_a_copy() {
    let mut pool = pool(66);
    let mut disk = disk(3 * RUN, 20, &pool);
    for run in 0..3 {
        write(&mut disk, &mut pool, run * RUN, &[1; 3 * PAGE_SIZE]).unwrap();
    }
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    let free = pool.nr_free();
    // The root is copied, two lowest nodes are dropped, each looked through: 16 steps each.
    let range = range(&clone, RUN, 2 * RUN);
    let again = clone.discard(&mut pool, range, Discard::Plain, &mut Steps::new(16));
    assert_eq!(again, Ok(Progress::More));
    assert_eq!(clone.usage(), usage(9, 20, 4));
    let again = clone.discard(&mut pool, range, Discard::Plain, &mut Steps::new(16));
    assert_eq!(again, Ok(Progress::More));
    assert_eq!(clone.usage(), usage(6, 20, 3));
    audit(&pool, [&disk, &clone], &[]).unwrap();
    let again = clone.discard(&mut pool, range, Discard::Plain, &mut Steps::new(1));
    assert_eq!(again, Ok(Progress::Done));
    assert_eq!(clone.usage(), usage(3, 20, 2));
    assert_eq!(free - pool.nr_free(), 1);
    audit(&pool, [&disk, &clone], &[]).unwrap();

    // One that it covers a part of is copied, unless there is nothing to remove.
    assert_eq!(discard(&mut clone, &mut pool, 24, 800, Discard::Plain), Ok(Progress::Done));
    assert_eq!(free - pool.nr_free(), 1);
    assert_eq!(discard(&mut clone, &mut pool, 8, 8, Discard::Plain), Ok(Progress::Done));
    assert_eq!(free - pool.nr_free(), 2);
    assert_eq!(clone.usage(), usage(2, 20, 2));
    audit(&pool, [&disk, &clone], &[]).unwrap();
    assert_eq!(read(&mut disk, &mut pool, 0, 24), [1; 3 * PAGE_SIZE]);
    let mut expected = vec![1; 3 * PAGE_SIZE];
    expected[PAGE_SIZE..2 * PAGE_SIZE].fill(0);
    assert_eq!(read(&mut clone, &mut pool, 0, 24), expected);
}

#[test]
fn a_full_pool_takes_shared_pages_back_and_says_what_it_cannot_copy() {
    let mut pool = pool(66);
    let mut disk = disk(3 * RUN, 20, &pool);
    write(&mut disk, &mut pool, 0, &[1; 3 * PAGE_SIZE]).unwrap();
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    while pool.take(Want::More).is_ok() {}
    let full = Err(StoreError::NoMemory { free: 4, total: 64 });
    assert_eq!(discard(&mut clone, &mut pool, 0, 8, Discard::Plain), full);
    assert_eq!(clone.usage(), usage(3, 20, 2));
    // All of the disk at once needs no copy.
    assert_eq!(discard(&mut clone, &mut pool, 0, 3 * RUN, Discard::Plain), Ok(Progress::Done));
    assert_eq!(clone.usage(), usage(0, 20, 0));
    assert_eq!(read(&mut clone, &mut pool, 0, 24), [0; 3 * PAGE_SIZE]);
    assert_eq!(read(&mut disk, &mut pool, 0, 24), [1; 3 * PAGE_SIZE]);
}

#[test]
fn a_full_pool_takes_back_all_that_needs_no_copy() {
    let mut pool = pool(66);
    let mut disk = disk(3 * RUN, 20, &pool);
    write(&mut disk, &mut pool, 0, &[1; 3 * PAGE_SIZE]).unwrap();
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    write(&mut clone, &mut pool, RUN, &[2; 3 * PAGE_SIZE]).unwrap();
    while pool.take(Want::More).is_ok() {}
    // The first node is shared and stays in part; what the clone has alone makes room for its copy.
    let from = range(&clone, 8, 3 * RUN - 8);
    let first = clone.discard(&mut pool, from, Discard::Plain, &mut Steps::new(u32::MAX));
    assert_eq!((first, clone.usage()), (Ok(Progress::More), usage(3, 20, 2)));
    let last = clone.discard(&mut pool, from, Discard::Plain, &mut Steps::new(u32::MAX));
    assert_eq!((last, clone.usage()), (Ok(Progress::Done), usage(1, 20, 2)));
    assert_eq!(read(&mut disk, &mut pool, 0, 24), [1; 3 * PAGE_SIZE]);
}

#[test]
fn a_copy_that_cannot_be_had_ends_a_discard_of_few_steps_too() {
    let mut pool = pool(66);
    let mut disk = disk(4 * RUN, 20, &pool);
    write(&mut disk, &mut pool, 0, &[1; 2 * PAGE_SIZE]).unwrap();
    write(&mut disk, &mut pool, RUN, &[1; 2 * PAGE_SIZE]).unwrap();
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    write(&mut clone, &mut pool, 3 * RUN, &[2; PAGE_SIZE]).unwrap();
    while pool.take(Want::More).is_ok() {}
    let part = range(&clone, 8, RUN);
    let mut calls =
        (0..9).map(|_| clone.discard(&mut pool, part, Discard::Plain, &mut Steps::new(1)));
    let full = Err(StoreError::NoMemory { free: 4, total: 64 });
    assert_eq!(calls.find(|call| *call != Ok(Progress::More)), Some(full));
}

#[test]
fn a_full_pool_empties_what_is_shared_with_copies_from_the_reserve() {
    let mut pool = pool(66);
    // Three levels: the node over all that is written is copied, emptied and dropped.
    let mut disk = disk(RUN << 11, 20, &pool);
    for run in 0..3 {
        write(&mut disk, &mut pool, run * RUN, &[1; PAGE_SIZE]).unwrap();
    }
    write(&mut disk, &mut pool, RUN << 10, &[2; PAGE_SIZE]).unwrap();
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    // The clone has a root of its own.
    write(&mut clone, &mut pool, RUN << 10, &[3; PAGE_SIZE]).unwrap();
    while pool.take(Want::More).is_ok() {}
    let free = pool.nr_free();
    assert_eq!(discard(&mut clone, &mut pool, 0, RUN << 10, Discard::Plain), Ok(Progress::Done));
    assert_eq!((clone.usage(), pool.nr_free()), (usage(1, 20, 3), free));
    assert_eq!(read(&mut disk, &mut pool, 2 * RUN, 8), [1; PAGE_SIZE]);
}

#[test]
fn a_discard_of_nothing_copies_no_node() {
    let mut pool = pool(66);
    let mut disk = disk(RUN << 11, 20, &pool);
    write(&mut disk, &mut pool, 8, &[1; PAGE_SIZE]).unwrap();
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    let free = pool.nr_free();
    for (first, nr) in [(0, 8), (16, RUN), (RUN, RUN), (RUN << 10, RUN << 10)] {
        assert_eq!(discard(&mut clone, &mut pool, first, nr, Discard::Plain), Ok(Progress::Done));
        assert_eq!(pool.nr_free(), free, "{first}+{nr}");
    }
}

#[test]
fn a_disk_lets_go_of_what_others_have_without_a_page_or_a_step_for_it() {
    let mut pool = pool(130);
    let total = pool.nr_total();
    // Three levels; half of the disk is in another node of the middle.
    let far = RUN << 10;
    let mut disk = disk(2 * far, 20, &pool);
    for first in [0, far] {
        write(&mut disk, &mut pool, first, &[1; 3 * PAGE_SIZE]).unwrap();
    }
    assert_eq!(disk.usage(), usage(6, 20, 5));
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    // The root is copied, one node of the middle and below it are not.
    write(&mut clone, &mut pool, far, &[2; PAGE_SIZE]).unwrap();
    let mut others = Vec::new();
    while let Ok(page) = pool.take(Want::More) {
        others.push(page);
    }
    // Its own page and three nodes, and what it drops of the other's: two pages, one node.
    let mut calls = 1;
    while clone.clear(&mut pool, &mut Steps::new(1)) == Progress::More {
        assert_eq!(clone.usage(), usage(0, 20, 0), "a disk that is cleared is empty");
        calls += 1;
    }
    assert_eq!(calls, 1 + 3 + 3);
    let after = u64::try_from(others.len()).unwrap() + 6 + 5;
    assert_eq!(total - pool.nr_free(), after);
    assert_eq!(read(&mut disk, &mut pool, far, 24), [1; 3 * PAGE_SIZE]);
    // The last one to have them gives them back, a step each.
    let snapshot = disk.snapshot(&mut pool, Access::ReadOnly).unwrap();
    assert_eq!(disk.discard_all(&mut pool, &mut Steps::new(1)), Ok(Progress::Done));
    clear(snapshot, &mut pool);
    others.into_iter().for_each(|page| pool.release(page));
    assert_eq!(pool.nr_free(), total);
}

#[test]
fn a_disk_is_empty_from_the_first_step_of_discarding_all() {
    let mut pool = pool(66);
    let mut disk = disk(800, 20, &pool);
    write(&mut disk, &mut pool, 0, &[1; 5 * PAGE_SIZE]).unwrap();
    assert_eq!(disk.discard_all(&mut pool, &mut Steps::new(2)), Ok(Progress::More));
    assert_eq!(read(&mut disk, &mut pool, 0, 40), [0; 5 * PAGE_SIZE]);
    // What is written now stays.
    write(&mut disk, &mut pool, 0, &[2; PAGE_SIZE]).unwrap();
    audit(&pool, [&disk], &[]).unwrap();
    assert_eq!(disk.discard_all(&mut pool, &mut Steps::new(9)), Ok(Progress::Done));
    assert_eq!(read(&mut disk, &mut pool, 0, 16)[..PAGE_SIZE], [2; PAGE_SIZE]);
    assert_eq!(pool.nr_total() - pool.nr_free(), 2);
    // A disk that goes takes all with it.
    assert_eq!(disk.discard_all(&mut pool, &mut Steps::new(0)), Ok(Progress::More));
    write(&mut disk, &mut pool, 0, &[3; PAGE_SIZE]).unwrap();
    clear(disk, &mut pool);
    assert_eq!(pool.nr_free(), pool.nr_total());
}

#[test]
fn a_secure_discard_erases_what_the_last_disk_gives_up() {
    const SECRET: u8 = 0x77;
    let mut pool = pool(66);
    let mut disk = disk(2 * RUN, 20, &pool);
    // Two whole pages and a part of one, in two lowest nodes.
    write(&mut disk, &mut pool, 0, &[SECRET; 2 * PAGE_SIZE]).unwrap();
    write(&mut disk, &mut pool, RUN, &[SECRET; SECTOR]).unwrap();
    assert_eq!(geometry(&disk).discard.unwrap().secure, SecureDiscard::Offered);
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    for disk in [&disk, &clone] {
        assert_eq!(geometry(disk).discard.unwrap().secure, SecureDiscard::Shared);
    }
    // A part of the first page, too.
    assert_eq!(discard(&mut disk, &mut pool, 1, 2 * RUN - 1, Discard::Secure), Ok(Progress::Done));
    assert_eq!(read(&mut disk, &mut pool, 0, 1), [SECRET; SECTOR]);
    assert_eq!(read(&mut disk, &mut pool, 1, 15), [0; 15 * SECTOR]);
    assert_eq!(read(&mut disk, &mut pool, RUN, 8)[SECTOR..], [0; 7 * SECTOR]);
    assert_eq!(read(&mut clone, &mut pool, 0, 16), [SECRET; 2 * PAGE_SIZE]);
    audit(&pool, [&disk, &clone], &[]).unwrap();

    // The sector that was kept goes as well; then the clone has the last of it.
    discard(&mut disk, &mut pool, 0, 8, Discard::Secure).unwrap();
    clear(clone, &mut pool);
    assert!(!is_anywhere(&pool, SECRET));
    assert_eq!(geometry(&disk).discard.unwrap().secure, SecureDiscard::Offered);
}

#[test]
fn a_secure_discard_of_a_whole_shared_node_erases_its_pages_in_the_end() {
    const SECRET: u8 = 0x77;
    let mut pool = pool(66);
    let mut disk = disk(800, 20, &pool);
    write(&mut disk, &mut pool, 0, &[SECRET; 3 * PAGE_SIZE]).unwrap();
    let snapshot = disk.snapshot(&mut pool, Access::ReadOnly).unwrap();
    assert_eq!(discard(&mut disk, &mut pool, 0, 800, Discard::Secure), Ok(Progress::Done));
    assert_eq!(disk.usage(), usage(0, 20, 0));
    assert!(is_anywhere(&pool, SECRET));
    clear(snapshot, &mut pool);
    assert!(!is_anywhere(&pool, SECRET));
}

#[test]
fn writes_that_fail_do_not_fill_the_pool_with_nodes() {
    let mut pool = pool(66);
    let mut disk = disk(RUN << 10, 3, &pool);
    let mut nr_opened = 0;
    let error = loop {
        let page = range(&disk, nr_opened * RUN, 8);
        match disk.begin_write(&mut pool, page, &mut |_| ()) {
            Ok(open) => disk.abort_write(&mut pool, open),
            Err(error) => break error,
        }
        nr_opened += 1;
    };
    assert_eq!(error, StoreError::CapReached { cap_pages: 3 });
    // Three pages side by side take five with their nodes: the last of them was for a page.
    assert_eq!((nr_opened, disk.usage()), (3, usage(0, 3, 4)));
    write(&mut disk, &mut pool, 0, &[1; PAGE_SIZE]).unwrap();
    assert_eq!(pool.nr_total() - pool.nr_free(), 5);
    // Discarding gives the empty ones back.
    assert_eq!(discard(&mut disk, &mut pool, 0, RUN << 10, Discard::Plain), Ok(Progress::Done));
    assert_eq!(pool.nr_free(), pool.nr_total());
}

#[test]
fn a_disk_takes_no_more_of_the_pool_than_was_said_when_it_was_made() {
    let mut pool = pool(66);
    // Three levels, the cap's pages side by side take 12 + 3.
    let mut disk = disk(RUN << 11, 12, &pool);
    let far = |n| n * RUN;
    let mut nr = 0;
    let error = loop {
        match write(&mut disk, &mut pool, far(nr), &[1; PAGE_SIZE]) {
            Ok(()) => nr += 1,
            Err(error) => break error,
        }
    };
    // A lowest node for each page.
    assert_eq!(error, StoreError::CapReached { cap_pages: 12 });
    assert_eq!((nr, disk.usage()), (6, usage(6, 12, 8)));
    // What is left is no room for another node, but for a page.
    write(&mut disk, &mut pool, far(5), &[2; 2 * PAGE_SIZE]).unwrap();
    assert_eq!(write(&mut disk, &mut pool, 8, &[2; PAGE_SIZE]), Err(error));
    assert_eq!(pool.nr_total() - pool.nr_free(), 15);

    // Whatever the order, all of a disk that has its cap in pages can be written.
    let mut whole = PageDisk::new(8 * 20, BlockSize::B512, 20, &pool).unwrap();
    for page in (0..20).rev() {
        write(&mut whole, &mut pool, 8 * page, &[3; PAGE_SIZE]).unwrap();
    }
    assert_eq!(whole.usage(), usage(20, 20, 1));
}

#[test]
fn what_a_disk_is_to_have_when_it_has_grown_must_fit_the_pool() {
    let mut pool = pool(66);
    let mut disk = disk(800, 59, &pool);
    // The cap stays, and the table gets another level.
    let error = Err(StoreError::TooLarge { needed: 61, usable: 60 });
    assert_eq!(disk.grow(&mut pool, 2 * RUN, 1), error);
    assert_eq!(geometry(&disk).nr_sectors, 800);
}

#[test]
fn a_table_that_is_shared_grows_for_one_of_its_disks() {
    let mut pool = pool(130);
    let mut disk = disk(800, 20, &pool);
    write(&mut disk, &mut pool, 0, &[1; PAGE_SIZE]).unwrap();
    let mut clone = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();
    clone.grow(&mut pool, 2 * RUN, 20).unwrap();
    assert_eq!((disk.usage(), clone.usage()), (usage(1, 20, 1), usage(1, 20, 2)));
    write(&mut clone, &mut pool, 2 * RUN - 8, &[2; PAGE_SIZE]).unwrap();
    write(&mut clone, &mut pool, 0, &[3; SECTOR]).unwrap();
    write(&mut disk, &mut pool, 8, &[4; SECTOR]).unwrap();
    audit(&pool, [&disk, &clone], &[]).unwrap();
    assert_eq!(read(&mut disk, &mut pool, 0, 1), [1; SECTOR]);
    assert_eq!(read(&mut clone, &mut pool, 0, 2)[SECTOR..], [1; SECTOR]);
    assert_eq!(read(&mut clone, &mut pool, 8, 1), [0; SECTOR]);
}

#[test]
fn a_disk_has_at_most_as_many_sectors_as_64_bits_count_bytes() {
    let pool = pool(66);
    let max = u64::MAX / 512;
    let new = |nr_sectors| PageDisk::new(nr_sectors, BlockSize::B512, 1, &pool).map(|_| ());
    assert_eq!(new(max), Ok(()));
    let error = StoreError::TooManySectors { nr_sectors: max + 1, max };
    assert_eq!(new(max + 1), Err(error));
}

#[test]
fn the_last_page_of_the_largest_disk_is_written_and_discarded() {
    let mut pool = pool(66);
    let nr_sectors = u64::MAX / 512;
    let mut disk = disk(nr_sectors, 9, &pool);
    write(&mut disk, &mut pool, nr_sectors - 9, &[1; 9 * SECTOR]).unwrap();
    assert_eq!(read(&mut disk, &mut pool, nr_sectors - 9, 9), [1; 9 * SECTOR]);
    assert_eq!(discard(&mut disk, &mut pool, 0, nr_sectors, Discard::Plain), Ok(Progress::Done));
    assert_eq!(pool.nr_free(), pool.nr_total());
}

#[test]
fn an_image_is_a_disk_that_is_never_written() {
    let mut pool = pool(66);
    let mut disk = Disk::Image(ImageDisk::new(image(&mut pool)));
    assert_eq!(geometry(&disk).nr_sectors, 118);
    assert_eq!(read(&mut disk, &mut pool, 1, 117), base(1, 117));
    assert_eq!(write(&mut disk, &mut pool, 0, &[0; SECTOR]), Err(StoreError::ReadOnly));
    let all = range(&disk, 0, 118);
    let given_up = disk.discard(&mut pool, all, Discard::Plain, &mut Steps::new(9));
    assert_eq!(given_up, Err(StoreError::ReadOnly));
    assert_eq!(disk.clear(&mut pool, &mut Steps::new(0)), Progress::Done);
}

#[test]
fn a_null_disk_answers_everything_and_keeps_nothing() {
    let mut pool = pool(66);
    let free = pool.nr_free();
    let new = |nr_sectors| NullDisk::new(nr_sectors, BlockSize::B4096).map(|_| ());
    assert_eq!(new(0), Err(StoreError::Empty));
    assert_eq!(new(9), Err(StoreError::Misaligned { first: 0, nr: 9, block: 8 }));
    let mut null = NullDisk::new(800, BlockSize::B4096).unwrap();
    assert_eq!(null.resize(0), Err(StoreError::Empty));
    null.resize(792).unwrap();
    null.resize(1600).unwrap();
    let mut disk = Disk::Null(null);
    assert_eq!((geometry(&disk).nr_sectors, geometry(&disk).physical_bytes), (1600, 4096));
    let mut extents = Vec::new();
    let some = range(&disk, 8, 16);
    let open = disk.begin_write(&mut pool, some, &mut |extent| extents.push(extent)).unwrap();
    assert_eq!(extents, [Extent::Discarded { len_bytes: 8192 }]);
    disk.commit_write(&mut pool, open).unwrap();
    assert_eq!(read(&mut disk, &mut pool, 8, 16), [0; 8192]);
    for kind in [Discard::Plain, Discard::Secure] {
        let given_up = disk.discard(&mut pool, some, kind, &mut Steps::new(0));
        assert_eq!(given_up, Ok(Progress::Done));
    }
    assert_eq!(disk.flush(&mut pool), Ok(Progress::Done));
    assert_eq!(disk.clear(&mut pool, &mut Steps::new(0)), Progress::Done);
    assert_eq!(pool.nr_free(), free);
}

#[test]
fn no_page_shows_what_it_held_before_where_a_copy_fails() {
    let mut pool = pool(66);
    let image = image(&mut pool);
    let mut disk = PageDisk::overlay(image, Some(20), &pool).unwrap();
    for nr_copied in 0..24 {
        let some = range(&disk, 4, 24);
        let mut extents = Vec::new();
        let open = disk.begin_write(&mut pool, some, &mut |e| extents.push(e)).unwrap();
        // The pages in order, each named to its end: what was not copied is poison.
        let mut named = 0;
        for extent in &extents {
            let Extent::Frames { at, len_bytes } = *extent else { panic!("{extent:?}") };
            let mut seen = vec![0; len_bytes];
            pool.memory().read(at, &mut seen);
            if nr_copied == 0 {
                assert!(seen.iter().all(|&byte| byte == POISON));
            }
            named += len_bytes;
        }
        assert_eq!(named, 24 * SECTOR);
        fill(&mut pool, &extents, &vec![0xee; nr_copied * SECTOR]);
        disk.abort_write(&mut pool, open);
        assert_eq!(read(&mut disk, &mut pool, 0, 118), base(0, 118));
        audit(&pool, [&disk], &[]).unwrap();
    }
}
