//! The disk of pages against a model, and the pool's books.

#![allow(clippy::unwrap_used, reason = "a test may")]
mod frames;

use frames::{Frames, POISON, SECTOR, fill, pool, read, write};
use proptest::prelude::*;
use store::{
    Access, BlockSize, BlockStore, Discard, Extent, FrameAddr, FrameMemory, PageDisk, PagePool,
    PoolError, Progress, SectorRange, Steps, StoreError, Want,
};
use xen_abi::{Gfn, PAGE_SIZE};

fn range(disk: &PageDisk, first: u64, nr: u64) -> SectorRange {
    SectorRange::on(&BlockStore::<Frames>::geometry(disk), first, nr).unwrap()
}

fn disk(nr_sectors: u64, cap_pages: u64, pool: &PagePool<Frames>) -> PageDisk {
    PageDisk::new(nr_sectors, BlockSize::B512, cap_pages, pool).unwrap()
}

fn clear(disk: &mut PageDisk, pool: &mut PagePool<Frames>) {
    assert_eq!(disk.clear(pool, &mut Steps::new(u32::MAX)), Progress::Done);
}

#[test]
fn a_range_is_checked_against_the_disk() {
    let geometry = BlockStore::<Frames>::geometry(&disk(100, 1, &pool(64)));
    let on = |first, nr| SectorRange::on(&geometry, first, nr);
    assert_eq!(on(0, 0), Err(StoreError::Empty));
    assert_eq!(on(99, 1).map(SectorRange::end), Ok(100));
    let past = |first, nr| Err(StoreError::PastEnd { first, nr, nr_sectors: 100 });
    assert_eq!(on(100, 1), past(100, 1));
    assert_eq!(on(99, 2), past(99, 2));
    assert_eq!(on(u64::MAX, 2), past(u64::MAX, 2));
    assert_eq!(on(1, u64::MAX), past(1, u64::MAX));

    let blocks = store::Geometry { logical: BlockSize::B4096, ..geometry };
    assert_eq!(
        SectorRange::on(&blocks, 8, 4),
        Err(StoreError::Misaligned { first: 8, nr: 4, block: 8 })
    );
    assert_eq!(
        SectorRange::on(&blocks, 4, 8),
        Err(StoreError::Misaligned { first: 4, nr: 8, block: 8 })
    );
    assert_eq!(SectorRange::on(&blocks, 8, 8).map(SectorRange::first), Ok(8));
}

#[test]
fn an_unwritten_disk_is_zero_and_takes_no_page() {
    let mut pool = pool(64);
    let free = pool.nr_free();
    let mut disk = disk(1 << 40, 50, &pool);
    assert_eq!(read(&mut disk, &mut pool, (1 << 40) - 9, 9), vec![0; 9 * SECTOR]);
    assert_eq!(pool.nr_free(), free);
}

#[test]
fn a_written_page_costs_itself_and_its_nodes_and_comes_back() {
    let mut pool = pool(64);
    let free = pool.nr_free();
    // 2^40 pages: four levels of nodes.
    let mut disk = disk(8 << 40, 50, &pool);
    write(&mut disk, &mut pool, 8 << 30, &[7; PAGE_SIZE]).unwrap();
    assert_eq!(free - pool.nr_free(), 5);
    write(&mut disk, &mut pool, 8 << 30, &[8; PAGE_SIZE]).unwrap();
    assert_eq!(free - pool.nr_free(), 5);
    assert_eq!(read(&mut disk, &mut pool, 8 << 30, 8), vec![8; PAGE_SIZE]);

    let mut calls = 1;
    while disk.clear(&mut pool, &mut Steps::new(1)) == Progress::More {
        calls += 1;
        assert!(calls < 10, "clearing five pages never ends");
    }
    assert_eq!(pool.nr_free(), free);
    assert_eq!(read(&mut disk, &mut pool, 8 << 30, 8), vec![0; PAGE_SIZE]);
}

#[test]
fn a_write_of_a_part_keeps_the_rest_and_shows_no_former_contents() {
    let mut pool = pool(64);
    let mut disk = disk(800, 50, &pool);
    write(&mut disk, &mut pool, 3, &[1; 2 * SECTOR]).unwrap();
    let mut expected = vec![0; PAGE_SIZE];
    expected[3 * SECTOR..5 * SECTOR].fill(1);
    assert_eq!(read(&mut disk, &mut pool, 0, 8), expected);

    write(&mut disk, &mut pool, 4, &[2; 7 * SECTOR]).unwrap();
    expected.resize(2 * PAGE_SIZE, 0);
    expected[4 * SECTOR..11 * SECTOR].fill(2);
    assert_eq!(read(&mut disk, &mut pool, 0, 16), expected);
}

#[test]
fn an_aborted_write_leaves_the_disk_as_it_was() {
    let mut pool = pool(64);
    let mut disk = disk(800, 50, &pool);
    write(&mut disk, &mut pool, 0, &[1; PAGE_SIZE]).unwrap();
    let free = pool.nr_free();
    let range = range(&disk, 4, 12);
    let mut extents = Vec::new();
    let open = disk.begin_write(&mut pool, range, &mut |e| extents.push(e)).unwrap();
    fill(&mut pool, &extents, &[9; 12 * SECTOR]);
    disk.abort_write(&mut pool, open);
    // The leaf was there already: all that the write reserved is back.
    assert_eq!(pool.nr_free(), free);
    let mut expected = vec![0; 2 * PAGE_SIZE];
    expected[..PAGE_SIZE].fill(1);
    assert_eq!(read(&mut disk, &mut pool, 0, 16), expected);
}

#[test]
fn a_page_that_is_being_read_does_not_change_hands() {
    let mut pool = pool(64);
    let mut disk = disk(800, 50, &pool);
    write(&mut disk, &mut pool, 0, &[1; PAGE_SIZE]).unwrap();
    let mut extents = Vec::new();
    let whole = range(&disk, 0, 8);
    let open = disk.begin_read(&mut pool, whole, &mut |e| extents.push(e)).unwrap();
    let free = pool.nr_free();
    for value in 2..20 {
        write(&mut disk, &mut pool, 0, &[value; PAGE_SIZE]).unwrap();
    }
    let [Extent::Frames { at, len_bytes: PAGE_SIZE }] = extents[..] else { panic!("{extents:?}") };
    let mut bytes = [0; PAGE_SIZE];
    pool.memory().read(at, &mut bytes);
    assert_eq!(bytes, [1; PAGE_SIZE]);
    assert_eq!(pool.nr_free(), free - 18);
    disk.end_read(&mut pool, open);
    assert_eq!(pool.nr_free(), free);
}

#[test]
fn pages_that_follow_each_other_do_so_again_when_they_are_written_anew() {
    let mut pool = pool(66);
    let mut disk = disk(8 * 8, 8, &pool);
    let whole = range(&disk, 0, 8 * 8);
    for n in 0..12 {
        write(&mut disk, &mut pool, 0, &[n; 8 * PAGE_SIZE]).unwrap();
        let mut extents = Vec::new();
        let open = disk.begin_read(&mut pool, whole, &mut |extent| extents.push(extent)).unwrap();
        assert!(
            matches!(extents[..], [Extent::Frames { len_bytes, .. }] if len_bytes == 8 * PAGE_SIZE),
            "{extents:?}"
        );
        // What is given back while a read is open goes back in its order, too.
        if n % 3 == 0 {
            write(&mut disk, &mut pool, 0, &[n; 8 * PAGE_SIZE]).unwrap();
        }
        disk.end_read(&mut pool, open);
    }
    clear(&mut disk, &mut pool);
}

#[test]
fn writes_that_meet_in_a_page_wait_where_one_keeps_a_part_of_it() {
    let mut pool = pool(64);
    let mut disk = disk(800, 50, &pool);
    let part = disk.begin_write(&mut pool, range(&disk, 1, 1), &mut |_| ()).unwrap();
    for (first, nr) in [(0, 8), (2, 1), (7, 9)] {
        let again = disk.begin_write(&mut pool, range(&disk, first, nr), &mut |_| ());
        assert_eq!(again.unwrap_err(), StoreError::Busy, "{first}+{nr}");
    }
    let beside = disk.begin_write(&mut pool, range(&disk, 8, 3), &mut |_| ()).unwrap();
    disk.commit_write(&mut pool, part).unwrap();
    let whole = disk.begin_write(&mut pool, range(&disk, 0, 8), &mut |_| ()).unwrap();
    let too = disk.begin_write(&mut pool, range(&disk, 0, 8), &mut |_| ()).unwrap();
    disk.commit_write(&mut pool, beside).unwrap();
    disk.commit_write(&mut pool, too).unwrap();
    disk.abort_write(&mut pool, whole);
}

#[test]
fn a_full_pool_refuses_more_but_still_exchanges() {
    let mut pool = pool(66);
    let (total, reserve) = (pool.nr_total(), pool.nr_reserve());
    assert_eq!((total, reserve), (64, 4));
    let mut disk = disk(1 << 20, 50, &pool);
    // Somebody else has 20 pages.
    let others: Vec<Gfn> = (0..20).map(|_| pool.take(Want::More).unwrap()).collect();
    let mut page = 0;
    let error = loop {
        match write(&mut disk, &mut pool, page * 8, &[1; PAGE_SIZE]) {
            Ok(()) => page += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, StoreError::NoMemory { free: reserve, total });
    // Two nodes, and the rest but the reserve.
    assert_eq!(page, total - 20 - reserve - 2);
    write(&mut disk, &mut pool, 0, &[2; 4 * PAGE_SIZE]).unwrap();
    assert_eq!(
        write(&mut disk, &mut pool, 0, &[3; 5 * PAGE_SIZE]),
        Err(StoreError::NoMemory { free: 0, total })
    );
    assert_eq!(read(&mut disk, &mut pool, 0, 32), vec![2; 4 * PAGE_SIZE]);
    assert_eq!(pool.nr_free(), reserve);
    clear(&mut disk, &mut pool);
    others.into_iter().for_each(|page| pool.release(page));
    assert_eq!(pool.nr_free(), total);
}

#[test]
fn the_reserve_grows_to_the_largest_request_but_not_past_a_quarter() {
    let mut pool = pool(66);
    for (asked, reserve) in [(0, 4), (3, 4), (9, 9), (5, 9), (16, 16), (17, 16), (u64::MAX, 16)] {
        pool.keep_back(asked);
        assert_eq!(pool.nr_reserve(), reserve, "{asked}");
    }
    let mut disk = disk(800, 20, &pool);
    write(&mut disk, &mut pool, 0, &[1; 16 * PAGE_SIZE]).unwrap();
    while pool.take(Want::More).is_ok() {}
    write(&mut disk, &mut pool, 0, &[2; 16 * PAGE_SIZE]).unwrap();
    let new = |cap_pages| PageDisk::new(800, BlockSize::B512, cap_pages, &pool).map(|_| ());
    assert_eq!(new(48), Err(StoreError::TooLarge { needed: 49, usable: 48 }));
}

#[test]
fn a_disk_has_no_more_pages_than_its_cap() {
    let mut pool = pool(66);
    let mut disk = disk(800, 3, &pool);
    write(&mut disk, &mut pool, 0, &[1; 2 * PAGE_SIZE]).unwrap();
    let full = Err(StoreError::CapReached { cap_pages: 3 });
    assert_eq!(write(&mut disk, &mut pool, 8, &[2; 3 * PAGE_SIZE]), full);
    // What failed is not counted, what is there may be written again.
    write(&mut disk, &mut pool, 8, &[3; 2 * PAGE_SIZE]).unwrap();
    assert_eq!(write(&mut disk, &mut pool, 24, &[4; SECTOR]), full);
    assert_eq!(read(&mut disk, &mut pool, 8, 8), vec![3; PAGE_SIZE]);

    // Two writes that bring the same page count it once.
    clear(&mut disk, &mut pool);
    let whole = range(&disk, 0, 8);
    let one = disk.begin_write(&mut pool, whole, &mut |_| ()).unwrap();
    let other = disk.begin_write(&mut pool, whole, &mut |_| ()).unwrap();
    disk.commit_write(&mut pool, one).unwrap();
    disk.commit_write(&mut pool, other).unwrap();
    write(&mut disk, &mut pool, 8, &[5; 2 * PAGE_SIZE]).unwrap();
    assert_eq!(write(&mut disk, &mut pool, 24, &[6; SECTOR]), full);
}

#[test]
fn a_disk_that_the_pool_could_never_hold_is_refused() {
    let pool = pool(66);
    let new = |nr_sectors, cap_pages| {
        PageDisk::new(nr_sectors, BlockSize::B512, cap_pages, &pool).map(|_| ())
    };
    assert_eq!(new(0, 1), Err(StoreError::Empty));
    assert_eq!(new(59 * 8, 59), Ok(()));
    assert_eq!(new(60 * 8, 60), Err(StoreError::TooLarge { needed: 61, usable: 60 }));
    // The same pages, but a table of two levels.
    assert_eq!(new(8 << 11, 59), Err(StoreError::TooLarge { needed: 61, usable: 60 }));
    let all = u64::MAX;
    assert_eq!(new(all, all), Err(StoreError::TooLarge { needed: all, usable: 60 }));
}

#[test]
fn a_pool_is_made_of_several_runs_or_not_at_all() {
    let make = |runs: &[(u64, u64)]| {
        let runs: Vec<_> = runs.iter().map(|&(first, nr)| (Gfn(first), nr)).collect();
        PagePool::new(Frames::new(4000), &runs)
    };
    assert_eq!(make(&[]).unwrap_err(), PoolError::Empty);
    assert_eq!(make(&[(5, 0)]).unwrap_err(), PoolError::Empty);
    assert_eq!(make(&[(5, 2)]).unwrap_err(), PoolError::NoRoomForTable { nr_table: 1 });
    assert_eq!(
        make(&[(5, u64::MAX)]).unwrap_err(),
        PoolError::TooLarge { nr_frames: u64::MAX - 5 }
    );
    assert_eq!(
        make(&[(5, 1), (1 << 30, 6)]).unwrap_err(),
        PoolError::TooLarge { nr_frames: (1 << 30) + 1 }
    );
    // Frame 0 is none: a table could not tell it from an absent page.
    assert_eq!(make(&[(0, 1)]).unwrap_err(), PoolError::Empty);
    // The words of 3000 frames take three; the first run is too short for them.
    let mut pool = make(&[(3000, 5), (5, 4), (100, 50)]).unwrap();
    assert_eq!(pool.nr_total(), 4 + 46 + 5);
    let mut taken = Vec::new();
    while let Ok(page) = pool.take(Want::Exchange) {
        taken.push(page.0);
    }
    taken.sort_unstable();
    let expected: Vec<u64> = (5..9).chain(104..150).chain(3000..3005).collect();
    assert_eq!(taken, expected);
    assert_eq!(pool.nr_free(), 0);
}

#[test]
fn a_range_of_bytes_runs_on_into_the_next_frame() {
    let at = FrameAddr::new(Gfn(7), 4000);
    assert_eq!(at.after(95), FrameAddr::new(Gfn(7), 4095));
    assert_eq!(at.after(96), FrameAddr::new(Gfn(8), 0));
    assert_eq!(at.after(96 + 8192), FrameAddr::new(Gfn(10), 0));
}

fn discard(
    disk: &mut PageDisk,
    pool: &mut PagePool<Frames>,
    first: u64,
    nr: u64,
    kind: Discard,
) -> u32 {
    let range = range(disk, first, nr);
    let mut calls = 1;
    while disk.discard(pool, range, kind, &mut Steps::new(3)).unwrap() == Progress::More {
        calls += 1;
    }
    calls
}

#[test]
fn a_discard_gives_whole_pages_back_in_bounded_steps() {
    let mut pool = pool(66);
    let free = pool.nr_free();
    let mut disk = disk(1 << 20, 20, &pool);
    write(&mut disk, &mut pool, 0, &[1; 20 * PAGE_SIZE]).unwrap();
    // 18 whole pages, and parts of two that stay as they are.
    assert_eq!(discard(&mut disk, &mut pool, 4, 152, Discard::Plain), 6);
    assert_eq!(free - pool.nr_free(), 2 + 2);
    assert_eq!(read(&mut disk, &mut pool, 0, 8), [1; PAGE_SIZE]);
    assert_eq!(read(&mut disk, &mut pool, 8, 144), vec![0; 18 * PAGE_SIZE]);
    // The cap counts what is there now.
    write(&mut disk, &mut pool, 1000, &[2; 17 * PAGE_SIZE]).unwrap();
    // All of the disk, its nodes included.
    discard(&mut disk, &mut pool, 0, 1 << 20, Discard::Plain);
    assert_eq!(pool.nr_free(), free);
}

#[test]
fn a_secure_discard_leaves_nothing_of_what_it_covers() {
    let mut pool = pool(66);
    let mut disk = disk(84, 20, &pool);
    write(&mut disk, &mut pool, 0, &[0x77; 84 * SECTOR]).unwrap();
    discard(&mut disk, &mut pool, 3, 10, Discard::Secure);
    let mut expected = vec![0x77; 84 * SECTOR];
    expected[3 * SECTOR..13 * SECTOR].fill(0);
    assert_eq!(read(&mut disk, &mut pool, 0, 84), expected);
    // The disk's last page ends with the disk.
    discard(&mut disk, &mut pool, 0, 84, Discard::Secure);
    let nr_pages = pool.nr_free();
    assert_eq!(nr_pages, pool.nr_total());
    let mut seen = [0; PAGE_SIZE];
    for gfn in 16..16 + 66 {
        pool.memory().read(FrameAddr::start_of(Gfn(gfn)), &mut seen);
        assert!(!seen.contains(&0x77), "frame {gfn}");
    }
}

#[test]
fn a_discard_waits_for_open_writes() {
    let mut pool = pool(66);
    let mut disk = disk(800, 50, &pool);
    let all = range(&disk, 0, 800);
    let try_discard = |disk: &mut PageDisk, pool: &mut PagePool<Frames>, kind| {
        disk.discard(pool, all, kind, &mut Steps::new(1000))
    };
    let open = disk.begin_write(&mut pool, all, &mut |_| ());
    assert_eq!(open.unwrap_err(), StoreError::CapReached { cap_pages: 50 });
    let part = range(&disk, 0, 8);
    let open = disk.begin_write(&mut pool, part, &mut |_| ()).unwrap();
    for kind in [Discard::Plain, Discard::Secure] {
        assert_eq!(try_discard(&mut disk, &mut pool, kind), Err(StoreError::Busy));
    }
    disk.commit_write(&mut pool, open).unwrap();
    assert_eq!(try_discard(&mut disk, &mut pool, Discard::Plain), Ok(Progress::Done));
}

#[test]
fn a_secure_discard_erases_when_the_reads_that_are_open_have_ended() {
    let mut pool = pool(66);
    let mut disk = disk(16, 50, &pool);
    write(&mut disk, &mut pool, 0, &[0x77; 16 * SECTOR]).unwrap();
    let mut extents = Vec::new();
    let all = range(&disk, 0, 16);
    let open = disk.begin_read(&mut pool, all, &mut |e| extents.push(e)).unwrap();
    // One whole page, and a part of another.
    discard(&mut disk, &mut pool, 2, 14, Discard::Secure);
    let [Extent::Frames { at, len_bytes: 8192 }] = extents[..] else { panic!("{extents:?}") };
    let mut seen = [0; 2 * PAGE_SIZE];
    pool.memory().read(at, &mut seen);
    assert_eq!(seen, [0x77; 2 * PAGE_SIZE]);
    disk.end_read(&mut pool, open);
    pool.memory().read(at, &mut seen);
    assert_eq!(seen, [0; 2 * PAGE_SIZE]);
    assert_eq!(read(&mut disk, &mut pool, 0, 2), [0x77; 2 * SECTOR]);
    assert_eq!(read(&mut disk, &mut pool, 2, 14), [0; 14 * SECTOR]);
}

#[test]
fn a_disk_grows_and_keeps_what_it_has() {
    let mut pool = pool(66);
    let mut disk = disk(8, 1, &pool);
    write(&mut disk, &mut pool, 0, &[6; PAGE_SIZE]).unwrap();
    assert_eq!(disk.grow(&mut pool, 7, 1), Err(StoreError::Shrinks { wanted: 7, nr_sectors: 8 }));
    assert_eq!(disk.grow(&mut pool, 800, 60), Err(StoreError::TooLarge { needed: 61, usable: 60 }));
    // From one level of nodes to four.
    disk.grow(&mut pool, 8 << 31, 20).unwrap();
    assert_eq!(read(&mut disk, &mut pool, 0, 8), [6; PAGE_SIZE]);
    let last = (8 << 31) - 8;
    write(&mut disk, &mut pool, last, &[7; PAGE_SIZE]).unwrap();
    assert_eq!(read(&mut disk, &mut pool, last, 8), [7; PAGE_SIZE]);
    assert_eq!(read(&mut disk, &mut pool, 0, 8), [6; PAGE_SIZE]);
    clear(&mut disk, &mut pool);
    assert_eq!(pool.nr_free(), pool.nr_total());
}

#[test]
fn a_disk_of_large_blocks_has_whole_ones() {
    let pool = pool(66);
    let new = |nr_sectors| PageDisk::new(nr_sectors, BlockSize::B4096, 4, &pool);
    assert_eq!(new(12).map(|_| ()), Err(StoreError::Misaligned { first: 0, nr: 12, block: 8 }));
    let geometry = BlockStore::<Frames>::geometry(&new(16).unwrap());
    assert_eq!((geometry.logical, geometry.physical_bytes), (BlockSize::B4096, 4096));
}

/// Something to do with one of two disks.
#[derive(Clone, Debug)]
enum Step {
    Write { disk: usize, first: u64, nr: u64, value: u8, commit: bool },
    Read { disk: usize, first: u64, nr: u64 },
    Discard { disk: usize, first: u64, nr: u64, secure: bool },
    Clear { disk: usize },
}

const NR_SECTORS: u64 = 300;

fn step() -> impl Strategy<Value = Step> {
    let span = (0..NR_SECTORS).prop_flat_map(|first| (Just(first), 1..=(NR_SECTORS - first)));
    prop_oneof![
        6 => (0..2usize, span.clone(), 1..POISON, proptest::bool::weighted(0.8)).prop_map(
            |(disk, (first, nr), value, commit)| Step::Write { disk, first, nr, value, commit }
        ),
        3 => (0..2usize, span.clone()).prop_map(|(disk, (first, nr))| Step::Read { disk, first, nr }),
        2 => (0..2usize, span.clone(), any::<bool>()).prop_map(|(disk, (first, nr), secure)| {
            Step::Discard { disk, first, nr, secure }
        }),
        1 => (0..2usize).prop_map(|disk| Step::Clear { disk }),
    ]
}

proptest! {
    /// Two disks in one pool of poisoned pages, so small that writes fail for want of memory, and
    /// copies that fail: each disk equals its model, no byte of another owner is ever seen, and
    /// the pool's books are right throughout.
    #[test]
    fn two_disks_equal_their_models(steps in proptest::collection::vec(step(), 1..60)) {
        let mut pool = pool(66);
        let total = pool.nr_total();
        let mut disks = [disk(NR_SECTORS, 38, &pool), disk(NR_SECTORS, 20, &pool)];
        let mut models = [vec![0; 300 * SECTOR], vec![0; 300 * SECTOR]];
        for step in steps {
            match step {
                Step::Write { disk, first, nr, value, commit } => {
                    let data = vec![value; usize::try_from(nr).unwrap() * SECTOR];
                    let at = usize::try_from(first).unwrap() * SECTOR;
                    if commit {
                        if write(&mut disks[disk], &mut pool, first, &data).is_ok() {
                            models[disk][at..at + data.len()].copy_from_slice(&data);
                        }
                    } else {
                        let range = range(&disks[disk], first, nr);
                        let mut extents = Vec::new();
                        if let Ok(open) =
                            disks[disk].begin_write(&mut pool, range, &mut |e| extents.push(e))
                        {
                            // The copy fails half-way.
                            fill(&mut pool, &extents, &data[..data.len() / 2]);
                            disks[disk].abort_write(&mut pool, open);
                        }
                    }
                }
                Step::Read { disk, first, nr } => {
                    let at = usize::try_from(first).unwrap() * SECTOR;
                    let bytes = read(&mut disks[disk], &mut pool, first, nr);
                    prop_assert_eq!(&bytes[..], &models[disk][at..at + bytes.len()]);
                }
                Step::Discard { disk, first, nr, secure } => {
                    let kind = if secure { Discard::Secure } else { Discard::Plain };
                    discard(&mut disks[disk], &mut pool, first, nr, kind);
                    let whole = if secure {
                        first..first + nr
                    } else {
                        let end = first + nr;
                        first.next_multiple_of(8)..if end == NR_SECTORS { end } else { end / 8 * 8 }
                    };
                    for sector in whole {
                        let at = usize::try_from(sector).unwrap() * SECTOR;
                        models[disk][at..at + SECTOR].fill(0);
                    }
                }
                Step::Clear { disk } => {
                    clear(&mut disks[disk], &mut pool);
                    models[disk].fill(0);
                }
            }
        }
        for (disk, model) in disks.iter_mut().zip(&models) {
            prop_assert_eq!(&read(disk, &mut pool, 0, NR_SECTORS), model);
            clear(disk, &mut pool);
        }
        prop_assert_eq!(pool.nr_free(), total);
    }
}

#[test]
fn a_disk_that_shrank_and_grew_again_has_zeroes_where_it_was_cut() {
    let mut pool = pool(64);
    let free = pool.nr_free();
    let mut disk = disk(80, 10, &pool);
    write(&mut disk, &mut pool, 0, &[7; 80 * SECTOR]).unwrap();
    let mut twin = disk.snapshot(&mut pool, Access::ReadWrite).unwrap();

    assert_eq!(
        disk.shrink(&mut pool, 81, &mut Steps::new(99)),
        Err(StoreError::Shrinks { wanted: 81, nr_sectors: 80 })
    );
    let mut calls = 1;
    while disk.shrink(&mut pool, 13, &mut Steps::new(3)).unwrap() == Progress::More {
        calls += 1;
    }
    assert!(calls <= 5, "{calls}");
    assert_eq!(BlockStore::<Frames>::geometry(&disk).nr_sectors, 13);
    assert_eq!((disk.usage().nr_pages, disk.usage().cap_pages), (2, 2));
    disk.grow(&mut pool, 24, 3).unwrap();
    let kept = [[7; 13 * SECTOR].as_slice(), &[0; 11 * SECTOR]].concat();
    assert_eq!(read(&mut disk, &mut pool, 0, 24), kept);
    assert_eq!(read(&mut twin, &mut pool, 0, 80), vec![7; 80 * SECTOR]);
    clear(&mut disk, &mut pool);
    clear(&mut twin, &mut pool);
    assert_eq!(pool.nr_free(), free);
}
