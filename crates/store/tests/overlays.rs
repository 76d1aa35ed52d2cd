//! Copy-on-write in memory over a disk on a device.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod device;
mod frames;

use device::{Fake, Lab, NR_SECTORS, begin, begin_write, byte, plenty, range, read};
use frames::{Frames, SECTOR, audit};
use store::{
    Access, BlockSize, BlockStore, Discard, DiscardLimits, Disk, Failure, Flushing, Geometry,
    Naming, OpenWrite, Overlay, Progress, Request, SecureDiscard, StoreError, Want,
};

fn bytes(first: u64, nr: u64) -> Vec<u8> {
    let first = usize::try_from(first).unwrap() * SECTOR;
    (first..first + usize::try_from(nr).unwrap() * SECTOR).map(byte).collect()
}

const OURS: u8 = 0xee;

fn data(nr: usize) -> Vec<u8> {
    vec![OURS; nr * SECTOR]
}

/// Over a slice that ends within a page.
fn overlay(lab: &Lab) -> Overlay {
    Overlay::new(lab.slice(16, 93), None, &lab.pool).unwrap()
}

/// What is read where all is in own pages.
fn read_at_once(disk: &mut Overlay, lab: &mut Lab, first: u64, nr: u64) -> Vec<u8> {
    frames::read(disk, &mut lab.pool, first, nr)
}

/// A write whose data has to wait: it is copied, when what it needs is there.
fn resume(
    disk: &mut Overlay,
    lab: &mut Lab,
    write: &mut OpenWrite,
    data: &[u8],
) -> Result<(), StoreError> {
    let mut extents = Vec::new();
    disk.resume_write(&mut lab.pool, write, &mut |extent| extents.push(extent))?;
    assert_eq!(write.naming(), Naming::Done);
    frames::fill(&mut lab.pool, &extents, data);
    Ok(())
}

fn write(disk: &mut Overlay, lab: &mut Lab, first: u64, data: &[u8]) {
    let mut write = begin_write(disk, lab, first, data).unwrap();
    if write.naming() == Naming::Later {
        lab.finish();
        resume(disk, lab, &mut write, data).unwrap();
    }
    assert_eq!(disk.commit_write(&mut lab.pool, write), Ok(Progress::Done));
}

fn end(mut disk: Overlay, mut lab: Lab) {
    assert_eq!(disk.clear(&mut lab.pool, &mut plenty()), Progress::Done);
    assert!(lab.log().iter().all(|request| matches!(request, Request::Read { .. })));
    lab.fake(|fake| assert_eq!(fake.disk, bytes(0, NR_SECTORS)));
    lab.assert_clean();
}

#[test]
fn what_was_not_written_is_the_bases() {
    let mut lab = Lab::new();
    let mut disk = overlay(&lab);
    assert_eq!(read(&mut disk, &mut lab, 3, 90), bytes(19, 90));
    assert_eq!(lab.log(), [Request::Read { sector: 19, buffer: 90 }]);
    end(disk, lab);
}

#[test]
fn what_was_written_is_its_own_and_asks_nobody() {
    let mut lab = Lab::new();
    let mut disk = overlay(&lab);
    let open = begin_write(&mut disk, &mut lab, 8, &data(16)).unwrap();
    assert_eq!(open.naming(), Naming::Done);
    assert_eq!(disk.commit_write(&mut lab.pool, open), Ok(Progress::Done));
    assert_eq!(read_at_once(&mut disk, &mut lab, 9, 15), data(15));
    assert_eq!(lab.log(), []);
    // Own pages win where some are not.
    let found = read(&mut disk, &mut lab, 6, 20);
    assert_eq!(found, [bytes(22, 2), data(16), bytes(40, 2)].concat());
    assert_eq!(lab.log(), [Request::Read { sector: 22, buffer: 20 }]);
    end(disk, lab);
}

#[test]
fn a_write_fetches_what_it_keeps_and_no_more() {
    // First sector, how many, what is fetched of the device (from sector 16 on).
    let table = [
        (0, 8, None),
        (8, 32, None),
        (3, 2, Some((0, 8))),
        (0, 3, Some((3, 5))),
        (5, 3, Some((0, 5))),
        (5, 30, Some((0, 40))),
        (5, 11, Some((0, 5))),
        (8, 12, Some((20, 4))),
        // The last page ends with the disk.
        (88, 5, None),
        (88, 3, Some((91, 2))),
    ];
    for (first, nr, fetched) in table {
        let mut lab = Lab::new();
        let mut disk = overlay(&lab);
        let mut open = begin_write(&mut disk, &mut lab, first, &data(nr)).unwrap();
        let fetch = fetched.map(|(at, nr)| Request::Read { sector: 16 + at, buffer: nr });
        assert_eq!(lab.log(), Vec::from_iter(fetch), "{first}+{nr}");
        if fetched.is_some() {
            assert_eq!(open.naming(), Naming::Later);
            assert!(!BlockStore::<Frames>::is_ready(&disk, open.token().unwrap()));
            lab.finish();
            assert!(BlockStore::<Frames>::is_ready(&disk, open.token().unwrap()));
            resume(&mut disk, &mut lab, &mut open, &data(nr)).unwrap();
        }
        assert_eq!(open.token(), None);
        audit(&lab.pool, [disk.pages()], &[&open]).unwrap();
        disk.commit_write(&mut lab.pool, open).unwrap();
        audit(&lab.pool, [disk.pages()], &[]).unwrap();
        let mut expected = bytes(16, 93);
        let start = usize::try_from(first).unwrap() * SECTOR;
        expected[start..start + nr * SECTOR].fill(OURS);
        assert_eq!(read(&mut disk, &mut lab, 0, 93), expected, "{first}+{nr}");
        // Nothing is fetched where the page is there.
        lab.log();
        write(&mut disk, &mut lab, first, &data(1));
        assert_eq!(lab.log(), []);
        end(disk, lab);
    }
}

#[test]
fn what_waits_for_its_edges_is_open() {
    let mut lab = Lab::new();
    let mut disk = overlay(&lab);
    let mut open = begin_write(&mut disk, &mut lab, 3, &data(7)).unwrap();
    let busy = Err(StoreError::Busy);
    // In a page with it, whole or not.
    for (first, nr) in [(0, 8), (8, 1), (7, 20)] {
        assert_eq!(begin_write(&mut disk, &mut lab, first, &data(nr)).map(|_| ()), busy);
    }
    let all = range(&disk, 0, 93);
    let discard = disk.discard(&mut lab.pool, all, Discard::Plain, &mut plenty());
    assert_eq!(discard.map(|_| ()), busy);
    write(&mut disk, &mut lab, 16, &data(8));
    lab.finish();
    resume(&mut disk, &mut lab, &mut open, &data(7)).unwrap();
    assert_eq!(begin_write(&mut disk, &mut lab, 8, &data(1)).map(|_| ()), busy);
    disk.commit_write(&mut lab.pool, open).unwrap();
    write(&mut disk, &mut lab, 9, &[1; SECTOR]);
    let expected = [bytes(16, 3), data(6), vec![1; SECTOR], bytes(26, 6), data(8), bytes(40, 69)];
    assert_eq!(read(&mut disk, &mut lab, 0, 93), expected.concat());
    end(disk, lab);
}

#[test]
fn a_write_that_is_given_up_leaves_the_disk_as_it_was() {
    let mut lab = Lab::new();
    let mut disk = overlay(&lab);
    // Before its edges are there, when they are, and when it has its pages.
    let open = begin_write(&mut disk, &mut lab, 3, &data(7)).unwrap();
    disk.abort_write(&mut lab.pool, open);
    lab.fake(Fake::finish_all);
    assert!(!lab.pump());
    let open = begin_write(&mut disk, &mut lab, 3, &data(7)).unwrap();
    lab.finish();
    disk.abort_write(&mut lab.pool, open);
    let mut open = begin_write(&mut disk, &mut lab, 3, &data(7)).unwrap();
    lab.finish();
    resume(&mut disk, &mut lab, &mut open, &data(7)).unwrap();
    disk.abort_write(&mut lab.pool, open);
    // It is not committed by mistake.
    let open = begin_write(&mut disk, &mut lab, 3, &data(7)).unwrap();
    assert_eq!(disk.commit_write(&mut lab.pool, open), Err(StoreError::Stale));
    lab.fake(Fake::finish_all);
    assert!(!lab.pump());
    assert_eq!(disk.pages().usage().nr_pages, 0);
    assert_eq!(read(&mut disk, &mut lab, 0, 93), bytes(16, 93));
    end(disk, lab);
}

#[test]
fn a_base_that_fails_fails_what_needs_it() {
    let mut lab = Lab::new();
    let mut disk = overlay(&lab);
    write(&mut disk, &mut lab, 8, &data(8));
    let reading = begin(&mut disk, &mut lab, 0, 20).unwrap();
    let mut writing = begin_write(&mut disk, &mut lab, 3, &data(7)).unwrap();
    lab.fake(|fake| (0..2).for_each(|_| fake.finish(0, Err(Failure::Device))));
    assert!(lab.pump());
    let error = StoreError::Device(Failure::Device);
    assert_eq!(device::resume(&mut disk, &mut lab, reading, 0, 20), Err(error));
    assert_eq!(resume(&mut disk, &mut lab, &mut writing, &data(7)), Err(error));
    disk.abort_write(&mut lab.pool, writing);
    let reading = begin(&mut disk, &mut lab, 0, 20).unwrap();
    let gone = lab.device.borrow_mut().disconnect();
    let error = StoreError::Device(Failure::Gone);
    assert_eq!(device::resume(&mut disk, &mut lab, reading, 0, 20), Err(error));
    assert_eq!(begin(&mut disk, &mut lab, 0, 20).map(|_| ()), Err(error));
    assert_eq!(begin_write(&mut disk, &mut lab, 3, &data(7)).map(|_| ()), Err(error));
    // What is its own is there.
    assert_eq!(read_at_once(&mut disk, &mut lab, 8, 8), data(8));
    write(&mut disk, &mut lab, 9, &data(3));
    write(&mut disk, &mut lab, 16, &data(8));
    let mut fake = gone.unwrap();
    fake.log.retain(|request| matches!(request, Request::Read { .. }));
    fake.finish_all();
    lab.device.borrow_mut().connect(Fake::new(lab.pool.memory()));
    end(disk, lab);
}

#[test]
fn an_open_read_keeps_its_bytes() {
    let mut lab = Lab::new();
    let mut disk = overlay(&lab);
    write(&mut disk, &mut lab, 8, &data(8));
    let mut open = begin(&mut disk, &mut lab, 0, 20).unwrap();
    lab.finish();
    // All that was written when it is resumed is in it, and what comes after is not.
    write(&mut disk, &mut lab, 16, &[1; 8 * SECTOR]);
    let mut extents = Vec::new();
    let all = range(&disk, 0, 20);
    let mut sink = |extent| extents.push(extent);
    disk.resume_read(&mut lab.pool, &mut open, all, &mut sink).unwrap();
    for first in [8, 16] {
        write(&mut disk, &mut lab, first, &[2; 8 * SECTOR]);
    }
    let disk_now = range(&disk, 0, 93);
    disk.discard(&mut lab.pool, disk_now, Discard::Plain, &mut plenty()).unwrap();
    write(&mut disk, &mut lab, 32, &[3; 16 * SECTOR]);
    let expected = [bytes(16, 8), data(8), vec![1; 4 * SECTOR]].concat();
    assert_eq!(frames::gather(&lab.pool, &extents), expected);
    disk.end_read(&mut lab.pool, open);
    end(disk, lab);
}

#[test]
fn what_goes_while_a_read_is_under_way_is_the_bases() {
    let mut lab = Lab::new();
    let mut disk = overlay(&lab);
    write(&mut disk, &mut lab, 8, &data(8));
    let open = begin(&mut disk, &mut lab, 0, 20).unwrap();
    let all = range(&disk, 0, 93);
    let done = disk.discard(&mut lab.pool, all, Discard::Plain, &mut plenty());
    assert_eq!(done, Ok(Progress::Done));
    lab.finish();
    let (_, found) = device::resume(&mut disk, &mut lab, open, 0, 20).unwrap();
    assert_eq!(found, bytes(16, 20));
    end(disk, lab);
}

#[test]
fn it_says_of_itself_what_it_is() {
    let mut lab = Lab::with(|fake| {
        fake.geometry.logical = BlockSize::B1024;
        fake.geometry.access = Access::ReadOnly;
        fake.flushing = Flushing::No;
    });
    let mut disk = Disk::Overlay(Overlay::new(lab.disk(), Some(7), &lab.pool).unwrap());
    let geometry = Geometry {
        nr_sectors: NR_SECTORS,
        logical: BlockSize::B1024,
        physical_bytes: 4096,
        access: Access::ReadWrite,
        discard: Some(DiscardLimits { granularity_bytes: 4096, secure: SecureDiscard::No }),
    };
    assert_eq!(BlockStore::<Frames>::geometry(&disk), geometry);
    assert_eq!(BlockStore::<Frames>::flushing(&disk), Flushing::Offered);
    assert_eq!(disk.flush(&mut lab.pool), Ok(Progress::Done));
    let all = range(&disk, 0, 8);
    let error = disk.discard(&mut lab.pool, all, Discard::Secure, &mut plenty());
    assert_eq!(error, Err(StoreError::NotSecure));
    let usage = disk.usage().unwrap();
    assert_eq!((usage.nr_pages, usage.cap_pages, usage.nr_nodes), (0, 7, 0));
    // It stays as large as it was.
    lab.fake(|fake| fake.geometry.nr_sectors = 300);
    assert_eq!(BlockStore::<Frames>::geometry(&disk).nr_sectors, NR_SECTORS);
    assert_eq!(Disk::Device(lab.disk()).usage(), None);
    lab.assert_clean();
}

#[test]
fn what_finds_no_page_may_find_one_later() {
    let mut lab = Lab::new();
    let mut disk = overlay(&lab);
    // Two pages and a node, and there are only two in all.
    let mut open = begin_write(&mut disk, &mut lab, 3, &data(7)).unwrap();
    lab.finish();
    let mut taken: Vec<_> = std::iter::from_fn(|| lab.pool.take(Want::More).ok()).collect();
    let free = |lab: &mut Lab, taken: &mut Vec<_>| lab.pool.release(taken.pop().unwrap());
    free(&mut lab, &mut taken);
    free(&mut lab, &mut taken);
    let (free_pages, total) = (lab.pool.nr_free() - 2, lab.pool.nr_total());
    let no_memory = Err(StoreError::NoMemory { free: free_pages, total });
    assert_eq!(resume(&mut disk, &mut lab, &mut open, &data(7)), no_memory);
    assert_eq!(open.naming(), Naming::Later);
    // The node stays.
    assert_eq!(lab.pool.nr_free(), free_pages + 1);
    free(&mut lab, &mut taken);
    resume(&mut disk, &mut lab, &mut open, &data(7)).unwrap();
    disk.commit_write(&mut lab.pool, open).unwrap();
    taken.drain(..).for_each(|page| lab.pool.release(page));
    let expected = [bytes(16, 3), data(7), bytes(26, 83)].concat();
    assert_eq!(read(&mut disk, &mut lab, 0, 93), expected);
    end(disk, lab);
}

#[test]
fn a_full_overlay_refuses_when_its_edges_are_there() {
    let mut lab = Lab::new();
    let mut disk = Overlay::new(lab.disk(), Some(1), &lab.pool).unwrap();
    write(&mut disk, &mut lab, 8, &data(8));
    let mut open = begin_write(&mut disk, &mut lab, 3, &data(2)).unwrap();
    lab.finish();
    let error = resume(&mut disk, &mut lab, &mut open, &data(2));
    assert_eq!(error, Err(StoreError::CapReached { cap_pages: 1 }));
    disk.abort_write(&mut lab.pool, open);
    write(&mut disk, &mut lab, 9, &data(2));
    audit(&lab.pool, [disk.pages()], &[]).unwrap();
    end(disk, lab);
}
