//! Disks on a device that answers when it likes.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod device;
mod frames;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use device::{
    Fake, Lab, NR_FRAMES, NR_SECTORS, begin, begin_write, byte, later, plenty, range, resume,
};
use frames::{Frames, SECTOR, fill};
use store::{
    Access, BlockSize, BlockStore, Device as _, DeviceDisk, Direction, Discard, DiscardLimits,
    Disk, Extent, Failure, Flushing, FrameAddr, FrameMemory, Geometry, Lease, Lent, Naming,
    Progress, Request, SectorRange, SecureDiscard, Shared, Slice, StoreError, Token, Want,
};
use xen_abi::Gfn;

const GONE: StoreError = StoreError::Device(Failure::Gone);

fn bytes(first: u64, nr: u64) -> Vec<u8> {
    let first = usize::try_from(first).unwrap() * SECTOR;
    (first..first + usize::try_from(nr).unwrap() * SECTOR).map(byte).collect()
}

fn data(nr: usize) -> Vec<u8> {
    (0..nr * SECTOR).map(|n| u8::try_from(n % 253).unwrap()).collect()
}

#[test]
fn a_read_is_named_when_it_is_there() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    let read = begin(&mut disk, &mut lab, 3, 21).unwrap();
    assert_eq!(read.naming(), Naming::Later);
    assert_eq!(lab.log(), [Request::Read { sector: 3, buffer: 21 }]);
    assert!(!lab.pump());
    assert!(!BlockStore::<Frames>::is_ready(&disk, read.token().unwrap()));
    lab.finish();
    assert!(!lab.pump(), "news is told once");
    assert!(BlockStore::<Frames>::is_ready(&disk, read.token().unwrap()));
    let (extents, found) = device::resume(&mut disk, &mut lab, read, 3, 21).unwrap();
    // 8, 8 and 5 sectors, side by side.
    let at = FrameAddr::start_of(Gfn(2));
    assert_eq!(extents, [Extent::Frames { at, len_bytes: 21 * SECTOR }]);
    assert_eq!(found, bytes(3, 21));
    lab.assert_clean();
}

#[test]
fn a_buffer_in_pieces_is_named_in_pieces() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    let first = begin(&mut disk, &mut lab, 0, 8).unwrap();
    let second = begin(&mut disk, &mut lab, 8, 8).unwrap();
    let third = begin(&mut disk, &mut lab, 16, 8).unwrap();
    lab.finish();
    device::resume(&mut disk, &mut lab, first, 0, 8).unwrap();
    device::resume(&mut disk, &mut lab, third, 16, 8).unwrap();
    let read = begin(&mut disk, &mut lab, 0, 18).unwrap();
    lab.finish();
    let (extents, found) = device::resume(&mut disk, &mut lab, read, 0, 18).unwrap();
    let extent = |frame, len_bytes| {
        let at = FrameAddr::start_of(Gfn(frame));
        Extent::Frames { at, len_bytes }
    };
    assert_eq!(extents, [extent(4, 4096), extent(2, 4096), extent(5, 1024)]);
    assert_eq!(found, bytes(0, 18));
    device::resume(&mut disk, &mut lab, second, 8, 8).unwrap();
    lab.assert_clean();
}

#[test]
fn reads_come_in_any_order() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    let mut reads: Vec<_> = (0..6)
        .map(|nth| (nth * 30, begin(&mut disk, &mut lab, nth * 30, nth + 1).unwrap()))
        .map(Some)
        .collect();
    for nth in [5, 2, 2, 0, 1, 0] {
        lab.fake(|fake| fake.finish(nth, Ok(())));
        assert!(lab.pump());
        let ready = |read: &Option<(u64, store::OpenRead)>| {
            let token = read.as_ref().and_then(|(_, read)| read.token());
            token.is_some_and(|token| BlockStore::<Frames>::is_ready(&disk, token))
        };
        let nth = reads.iter().position(ready).unwrap();
        assert_eq!(reads.iter().filter(|&read| ready(read)).count(), 1);
        let (first, read) = reads[nth].take().unwrap();
        let nr = first / 30 + 1;
        let (_, found) = device::resume(&mut disk, &mut lab, read, first, nr).unwrap();
        assert_eq!(found, bytes(first, nr));
    }
    lab.assert_clean();
}

#[test]
fn a_slow_read_keeps_no_page_of_others_from_being_used() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    let page = lab.pool.take(Want::More).unwrap();
    let nr_free = lab.pool.nr_free();
    let read = begin(&mut disk, &mut lab, 0, 8).unwrap();
    lab.pool.release(page);
    assert_eq!(lab.pool.nr_free(), nr_free + 1);
    lab.finish();
    disk.end_read(&mut lab.pool, read);
    lab.assert_clean();
}

#[test]
fn a_write_is_done_when_the_device_says_so() {
    let mut lab = Lab::new();
    let mut disk = lab.slice(100, 50);
    let write = begin_write(&mut disk, &mut lab, 5, &data(10)).unwrap();
    assert_eq!(write.naming(), Naming::Done);
    assert_eq!(lab.log(), []);
    let token = later(disk.commit_write(&mut lab.pool, write));
    assert_eq!(lab.log(), [Request::Write { sector: 105, buffer: 10 }]);
    assert!(!BlockStore::<Frames>::is_ready(&disk, &token));
    lab.finish();
    assert!(BlockStore::<Frames>::is_ready(&disk, &token));
    assert_eq!(disk.conclude(&mut lab.pool, token), Ok(Progress::Done));
    lab.fake(|fake| {
        assert_eq!(fake.disk[105 * SECTOR..115 * SECTOR], data(10));
        assert_eq!(fake.disk[..105 * SECTOR], bytes(0, 105));
        assert_eq!(fake.disk[115 * SECTOR..], bytes(115, NR_SECTORS - 115));
    });
    lab.assert_clean();
}

#[test]
fn a_write_that_is_given_up_is_never_asked_for() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    let write = begin_write(&mut disk, &mut lab, 5, &data(10)).unwrap();
    disk.abort_write(&mut lab.pool, write);
    assert_eq!(lab.log(), []);
    lab.assert_clean();
}

#[test]
fn flushes_and_discards_are_passed_on() {
    let mut lab = Lab::new();
    let mut disk = lab.slice(100, 50);
    let flush = later(disk.flush(&mut lab.pool));
    let whole = range(&disk, 2, 40);
    let mut discard = |discard| later(disk.discard(&mut lab.pool, whole, discard, &mut plenty()));
    let (plain, secure) = (discard(Discard::Plain), discard(Discard::Secure));
    let (sector, nr_sectors) = (102, 40);
    assert_eq!(
        lab.log(),
        [
            Request::Flush,
            Request::Discard { sector, nr_sectors },
            Request::SecureDiscard { sector, nr_sectors },
        ]
    );
    lab.finish();
    for token in [secure, plain, flush] {
        assert_eq!(disk.conclude(&mut lab.pool, token), Ok(Progress::Done));
    }
    lab.assert_clean();
}

#[test]
fn discards_are_parted_at_each_gib() {
    const GIB: u64 = 1 << 21;
    let disk = Lab::new().disk();
    assert_eq!(BlockStore::<Frames>::discard_unit_sectors(&disk), GIB);
    let geometry = Geometry { nr_sectors: 1 << 54, ..BlockStore::<Frames>::geometry(&disk) };
    let on = |first, nr| SectorRange::on(&geometry, first, nr).unwrap();
    for (range, part, rest) in [
        (on(0, 8), on(0, 8), None),
        (on(0, GIB), on(0, GIB), None),
        (on(GIB - 8, 8), on(GIB - 8, 8), None),
        (on(GIB - 8, 16), on(GIB - 8, 8), Some(on(GIB, 8))),
        (on(GIB, 3 * GIB), on(GIB, GIB), Some(on(2 * GIB, 2 * GIB))),
    ] {
        assert_eq!(range.split(GIB), (part, rest));
        assert_eq!(range.split(u64::MAX), (range, None));
    }
}

#[test]
fn what_the_device_does_not_offer_is_not_offered() {
    let mut lab = Lab::with(|fake| fake.flushing = Flushing::No);
    let mut disk = lab.disk();
    assert_eq!(BlockStore::<Frames>::flushing(&disk), Flushing::No);
    lab.fake(|fake| fake.refuses = Some(Failure::NotSupported));
    let error = disk.flush(&mut lab.pool);
    assert_eq!(error, Err(StoreError::Device(Failure::NotSupported)));
    lab.assert_clean();
    lab.fake(|fake| (fake.flushing, fake.refuses) = (Flushing::Offered, None));
    assert_eq!(BlockStore::<Frames>::flushing(&disk), Flushing::Offered);
}

#[test]
fn a_disk_that_is_only_read_is_never_written() {
    let mut lab = Lab::new();
    let slice = Slice::default();
    let mut disk = DeviceDisk::new(&lab.device, slice, Access::ReadOnly).unwrap();
    let geometry = BlockStore::<Frames>::geometry(&disk);
    assert_eq!((geometry.access, geometry.discard), (Access::ReadOnly, None));
    let error = begin_write(&mut disk, &mut lab, 0, &data(1));
    assert_eq!(error.map(|_| ()), Err(StoreError::ReadOnly));
    let all = range(&disk, 0, 8);
    let error = disk.discard(&mut lab.pool, all, Discard::Plain, &mut plenty());
    assert_eq!(error, Err(StoreError::ReadOnly));
    assert_eq!(lab.log(), []);

    lab.fake(|fake| fake.geometry.access = Access::ReadOnly);
    let geometry = BlockStore::<Frames>::geometry(&lab.disk());
    assert_eq!((geometry.access, geometry.discard), (Access::ReadOnly, None));
    lab.assert_clean();
}

#[test]
fn a_failure_is_told_and_names_nothing() {
    let failures = [
        Failure::Device,
        Failure::NotSupported,
        Failure::Range,
        Failure::ReadOnly,
        Failure::TimedOut,
        Failure::Gone,
    ];
    for failure in failures {
        let mut lab = Lab::new();
        let mut disk = lab.disk();
        let read = begin(&mut disk, &mut lab, 0, 9).unwrap();
        let write = begin_write(&mut disk, &mut lab, 20, &data(9)).unwrap();
        let write = later(disk.commit_write(&mut lab.pool, write));
        let flush = later(disk.flush(&mut lab.pool));
        lab.fake(|fake| (0..3).for_each(|_| fake.finish(0, Err(failure))));
        assert!(lab.pump());
        let error = StoreError::Device(failure);
        assert_eq!(device::resume(&mut disk, &mut lab, read, 0, 9), Err(error));
        assert_eq!(disk.conclude(&mut lab.pool, write), Err(error));
        assert_eq!(disk.conclude(&mut lab.pool, flush), Err(error));
        lab.assert_clean();
        // At once, too.
        lab.fake(|fake| fake.refuses = Some(failure));
        assert_eq!(begin(&mut disk, &mut lab, 0, 9).map(|_| ()), Err(error));
        let write = begin_write(&mut disk, &mut lab, 20, &data(9)).unwrap();
        assert_eq!(disk.commit_write(&mut lab.pool, write), Err(error));
        assert_eq!(disk.flush(&mut lab.pool), Err(error));
        lab.assert_clean();
    }
}

#[test]
fn without_pages_requests_wait_for_their_turn() {
    let mut lab = Lab::new();
    let (mut disk, mut other) = (lab.slice(0, 128), lab.slice(128, 128));
    let read = begin(&mut disk, &mut lab, 0, 100).unwrap();
    let held = begin_write(&mut other, &mut lab, 0, &data(80)).unwrap();
    assert_eq!(lab.fake(|fake| fake.nr_free()), 1);
    let waits = begin(&mut disk, &mut lab, 0, 9).unwrap();
    assert!(!BlockStore::<Frames>::is_ready(&disk, waits.token().unwrap()));
    // One of each disk, and there would be a page for it.
    assert_eq!(begin(&mut disk, &mut lab, 0, 1).map(|_| ()), Err(StoreError::Busy));
    assert_eq!(begin_write(&mut disk, &mut lab, 0, &data(1)).map(|_| ()), Err(StoreError::Busy));
    let mut behind = begin_write(&mut other, &mut lab, 8, &data(1)).unwrap();
    assert_eq!(behind.naming(), Naming::Later);
    // What needs no page does not wait.
    let flush = later(disk.flush(&mut lab.pool));
    assert!(!lab.pump(), "nothing has become of it");
    assert_eq!(lab.log(), [Request::Read { sector: 0, buffer: 100 }, Request::Flush]);

    other.abort_write(&mut lab.pool, held);
    assert_eq!(lab.fake(|fake| fake.nr_free()), 11);
    assert!(lab.pump());
    assert!(!lab.pump());
    assert_eq!(lab.log(), [Request::Read { sector: 0, buffer: 9 }]);
    assert!(BlockStore::<Frames>::is_ready(&other, behind.token().unwrap()));
    let mut extents = Vec::new();
    let mut sink = |extent| extents.push(extent);
    assert_eq!(other.resume_write(&mut lab.pool, &mut behind, &mut sink), Ok(()));
    fill(&mut lab.pool, &extents, &data(1));
    let behind = later(other.commit_write(&mut lab.pool, behind));
    let again = begin(&mut disk, &mut lab, 0, 1).unwrap();
    lab.finish();
    assert_eq!(other.conclude(&mut lab.pool, behind), Ok(Progress::Done));
    assert_eq!(disk.conclude(&mut lab.pool, flush), Ok(Progress::Done));
    assert_eq!(resume(&mut disk, &mut lab, waits, 0, 9).unwrap().1, bytes(0, 9));
    for read in [read, again] {
        disk.end_read(&mut lab.pool, read);
    }
    assert_eq!(device::read(&mut other, &mut lab, 8, 1), data(1));
    lab.assert_clean();
}

#[test]
fn short_requests_leave_a_long_one_its_turn() {
    let mut lab = Lab::new();
    let (mut long, mut short) = (lab.disk(), lab.disk());
    let mut reads: VecDeque<_> =
        (0..NR_FRAMES).map(|_| begin(&mut short, &mut lab, 0, 1).unwrap()).collect();
    let waits = begin(&mut long, &mut lab, 0, 24).unwrap();
    reads.push_back(begin(&mut short, &mut lab, 0, 1).unwrap());
    lab.log();
    for nr_free in 1..=3 {
        assert_eq!(begin(&mut short, &mut lab, 0, 1).map(|_| ()), Err(StoreError::Busy));
        assert_eq!(lab.log(), []);
        lab.fake(|fake| fake.finish(0, Ok(())));
        assert!(lab.pump());
        short.end_read(&mut lab.pool, reads.pop_front().unwrap());
        assert_eq!(lab.fake(|fake| fake.nr_free()), nr_free);
        let too_long = begin(&mut short, &mut lab, 0, 8 * NR_FRAMES + 1).map(|_| ());
        assert!(matches!(too_long, Err(StoreError::TooLong { .. })), "{too_long:?}");
    }
    assert!(lab.pump());
    assert_eq!(lab.log(), [Request::Read { sector: 0, buffer: 24 }]);
    // Then it is the short one's turn.
    lab.fake(|fake| fake.finish(0, Ok(())));
    assert!(lab.pump());
    short.end_read(&mut lab.pool, reads.pop_front().unwrap());
    assert_eq!(begin(&mut short, &mut lab, 0, 1).map(|_| ()), Err(StoreError::Busy));
    assert!(lab.pump());
    assert_eq!(lab.log(), [Request::Read { sector: 0, buffer: 1 }]);
    lab.finish();
    assert_eq!(resume(&mut long, &mut lab, waits, 0, 24).unwrap().1, bytes(0, 24));
    for read in reads {
        short.end_read(&mut lab.pool, read);
    }
    lab.assert_clean();
}

#[test]
fn nobody_waits_behind_one_that_nobody_waits_for() {
    let mut lab = Lab::new();
    let (mut long, mut short) = (lab.disk(), lab.disk());
    let held = begin_write(&mut short, &mut lab, 0, &data(160)).unwrap();
    let (mut reader, mut writer) = (lab.disk(), lab.disk());
    let read = begin(&mut reader, &mut lab, 0, 100).unwrap();
    let write = begin_write(&mut writer, &mut lab, 0, &data(99)).unwrap();
    reader.end_read(&mut lab.pool, read);
    assert_eq!(writer.commit_write(&mut lab.pool, write), Err(StoreError::Stale));
    // They have their turns nevertheless.
    assert_eq!(begin(&mut reader, &mut lab, 0, 1).map(|_| ()), Err(StoreError::Busy));
    let waits = begin(&mut long, &mut lab, 0, 100).unwrap();
    assert!(!lab.pump());
    assert_eq!(lab.device.borrow().nr_open(), 4);
    short.abort_write(&mut lab.pool, held);
    assert!(lab.pump());
    assert_eq!(lab.log(), [Request::Read { sector: 0, buffer: 100 }]);
    assert_eq!(lab.device.borrow().nr_open(), 1);
    lab.finish();
    long.end_read(&mut lab.pool, waits);
    lab.assert_clean();
}

#[test]
fn pages_that_somebody_else_gives_back_are_used() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    // Those that other namespaces of a controller have.
    let taken = lab.fake(|fake| fake.reserve(8 * u32::try_from(NR_FRAMES).unwrap() - 8)).unwrap();
    let read = begin(&mut disk, &mut lab, 0, 20).unwrap();
    assert!(!lab.pump());
    lab.fake(|fake| fake.give_back(taken));
    assert!(lab.pump());
    assert!(!lab.pump());
    lab.finish();
    assert_eq!(resume(&mut disk, &mut lab, read, 0, 20).unwrap().1, bytes(0, 20));
    lab.assert_clean();
}

#[test]
fn others_requests_leave_room_for_a_flush() {
    let mut lab = Lab::with(|fake| fake.max_requests = 2000);
    let (mut disk, mut other) = (lab.disk(), lab.disk());
    let sector = range(&disk, 0, 1);
    let mut discard =
        |lab: &mut Lab| other.discard(&mut lab.pool, sector, Discard::Plain, &mut plenty());
    let discards: Vec<_> = (0..1024).map(|_| later(discard(&mut lab))).collect();
    assert_eq!(discard(&mut lab), Err(StoreError::Busy));
    assert!(!lab.pump());
    let flush = later(disk.flush(&mut lab.pool));
    lab.fake(|fake| fake.finish(1024, Ok(())));
    assert!(lab.pump());
    assert_eq!(disk.conclude(&mut lab.pool, flush), Ok(Progress::Done));
    assert!(!lab.pump(), "there is room for flushes alone");
    lab.finish();
    for token in discards {
        assert_eq!(other.conclude(&mut lab.pool, token), Ok(Progress::Done));
    }
    assert!(lab.pump());
    assert!(!lab.pump());
    lab.assert_clean();
}

#[test]
fn what_is_longer_than_a_buffer_can_be_is_an_error() {
    let mut lab = Lab::with(|fake| fake.max_sectors = 16);
    let mut disk = lab.disk();
    let error = Err(StoreError::TooLong { nr: 17, max: 16 });
    assert_eq!(begin(&mut disk, &mut lab, 0, 17).map(|_| ()), error);
    assert_eq!(begin_write(&mut disk, &mut lab, 0, &data(17)).map(|_| ()), error);
    assert_eq!(device::read(&mut disk, &mut lab, 0, 16), bytes(0, 16));
    lab.assert_clean();
}

#[test]
fn what_waits_for_pages_fails_when_the_device_goes_with_them() {
    let mut lab = Lab::with(|fake| fake.max_sectors = 16);
    let (mut disk, mut other) = (lab.disk(), lab.disk());
    let nr_buffers = 8 * NR_FRAMES / 16;
    let reads: Vec<_> =
        (0..nr_buffers).map(|_| begin(&mut disk, &mut lab, 0, 16).unwrap()).collect();
    let read = begin(&mut disk, &mut lab, 0, 1).unwrap();
    let mut write = begin_write(&mut other, &mut lab, 0, &data(1)).unwrap();
    assert!(!lab.pump());
    lab.fake(|fake| fake.max_sectors = 0);
    assert!(lab.pump(), "once");
    assert!(!lab.pump());
    assert_eq!(resume(&mut disk, &mut lab, read, 0, 1), Err(GONE));
    let mut sink = |_| panic!("named");
    assert_eq!(other.resume_write(&mut lab.pool, &mut write, &mut sink), Err(GONE));
    other.abort_write(&mut lab.pool, write);
    assert_eq!(begin(&mut disk, &mut lab, 0, 1).map(|_| ()), Err(GONE));
    assert_eq!(begin_write(&mut disk, &mut lab, 0, &data(1)).map(|_| ()), Err(GONE));
    assert!(!lab.pump());
    lab.finish();
    for read in reads {
        disk.end_read(&mut lab.pool, read);
    }
    lab.assert_clean();
}

#[test]
fn what_the_device_has_no_room_for_waits_in_its_order() {
    let mut lab = Lab::with(|fake| fake.max_requests = 2);
    let mut disk = lab.disk();
    let mut reads: Vec<_> = (0..5).map(|n| begin(&mut disk, &mut lab, n, 1).unwrap()).collect();
    let write = begin_write(&mut disk, &mut lab, 9, &data(1)).unwrap();
    let write = later(disk.commit_write(&mut lab.pool, write));
    let read = |sector| Request::Read { sector, buffer: 1 };
    assert_eq!(lab.log(), [read(0), read(1)]);
    // Nobody waits for it any more, and it has not been asked for.
    disk.end_read(&mut lab.pool, reads.remove(3));
    lab.fake(|fake| fake.finish(1, Ok(())));
    assert!(lab.pump());
    assert_eq!(lab.log(), [read(2)]);
    // Refused when its turn comes.
    lab.fake(|fake| {
        fake.finish(0, Ok(()));
        fake.refuses = Some(Failure::ReadOnly);
    });
    assert!(lab.pump());
    assert!(BlockStore::<Frames>::is_ready(&disk, &write));
    let error = StoreError::Device(Failure::ReadOnly);
    assert_eq!(disk.conclude(&mut lab.pool, write), Err(error));
    lab.finish();
    for (read, sector) in reads.into_iter().zip([0, 1, 2, 4]) {
        let found = device::resume(&mut disk, &mut lab, read, sector, 1);
        let expected = if sector == 4 { Err(error) } else { Ok(bytes(sector, 1)) };
        assert_eq!(found.map(|(_, found)| found), expected);
    }
    assert_eq!(lab.log(), []);
    lab.assert_clean();
}

#[test]
fn what_nobody_waits_for_goes_when_it_is_over() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    let read = begin(&mut disk, &mut lab, 0, 8).unwrap();
    let write = begin_write(&mut disk, &mut lab, 20, &data(8)).unwrap();
    let write = later(disk.commit_write(&mut lab.pool, write));
    disk.end_read(&mut lab.pool, read);
    disk.cancel(&mut lab.pool, write);
    assert_eq!(lab.device.borrow().nr_open(), 2);
    assert_eq!(lab.fake(|fake| fake.nr_free()), NR_FRAMES - 2);
    lab.fake(Fake::finish_all);
    assert!(!lab.pump(), "nobody asked");
    lab.assert_clean();
}

#[test]
fn a_disk_is_not_settled_before_writes_that_were_given_up_are_over() {
    let mut lab = Lab::with(|fake| fake.max_requests = 4);
    let disk = |offset, nr| Disk::Device(lab.slice(offset, nr));
    let (mut written, mut below, mut all) = (disk(8, 8), disk(0, 8), Disk::Device(lab.disk()));
    let settled = |disks: [&Disk; 3]| disks.map(Disk::is_settled);
    let write = begin_write(&mut all, &mut lab, 8, &data(2)).unwrap();
    let write = later(all.commit_write(&mut lab.pool, write));
    let first = range(&below, 0, 2);
    let discard = later(below.discard(&mut lab.pool, first, Discard::Plain, &mut plenty()));
    let read = begin(&mut written, &mut lab, 0, 8).unwrap();
    let flush = later(written.flush(&mut lab.pool));
    // Never asked for.
    let waits = begin_write(&mut written, &mut lab, 0, &data(1)).unwrap();
    let waits = later(written.commit_write(&mut lab.pool, waits));
    assert_eq!(settled([&written, &below, &all]), [true; 3], "somebody waits for all of it");
    written.end_read(&mut lab.pool, read);
    for token in [flush, waits] {
        written.cancel(&mut lab.pool, token);
    }
    assert_eq!(settled([&written, &below, &all]), [true; 3]);
    all.cancel(&mut lab.pool, write);
    assert_eq!(settled([&written, &below, &all]), [false, true, false]);
    below.cancel(&mut lab.pool, discard);
    assert_eq!(settled([&written, &below, &all]), [false; 3]);

    let finish = |nth| {
        lab.fake(|fake| fake.finish(nth, Ok(())));
        assert!(!lab.pump());
        lab.device.borrow_mut().take_settled()
    };
    assert!(finish(0));
    assert_eq!(settled([&written, &below, &all]), [true, false, false]);
    assert!(!finish(1), "a read changes nothing");
    assert!(finish(0));
    assert!(!finish(0));
    assert_eq!(settled([&written, &below, &all]), [true; 3]);

    let write = begin_write(&mut all, &mut lab, 8, &data(2)).unwrap();
    let write = later(all.commit_write(&mut lab.pool, write));
    all.cancel(&mut lab.pool, write);
    assert!(!all.is_settled());
    lab.device.borrow_mut().disconnect();
    assert!(all.is_settled(), "what it still does is not ours to wait for");
    assert!(!lab.device.borrow_mut().take_settled());
    assert_eq!(lab.device.borrow().nr_open(), 0);
}

#[test]
fn a_token_is_good_for_what_it_was_given_for() {
    let (mut lab, mut other) = (Lab::new(), Lab::new());
    let (mut disk, mut elsewhere) = (lab.disk(), other.disk());
    let mut sink = |_| panic!("named");
    let all = range(&disk, 0, 8);

    // Not ready yet.
    let mut read = begin(&mut disk, &mut lab, 0, 8).unwrap();
    assert_eq!(disk.resume_read(&mut lab.pool, &mut read, all, &mut sink), Err(StoreError::Stale));
    disk.end_read(&mut lab.pool, read);
    let token = later(disk.flush(&mut lab.pool));
    assert_eq!(disk.conclude(&mut lab.pool, token), Err(StoreError::Stale));
    lab.fake(Fake::finish_all);
    assert!(!lab.pump());
    lab.assert_clean();

    // Of a place that is used for another by now, and of none.
    let token = later(elsewhere.flush(&mut other.pool));
    assert!(BlockStore::<Frames>::is_ready(&disk, &token), "there is nothing to wait for");
    assert_eq!(disk.conclude(&mut lab.pool, token), Err(StoreError::Stale));
    let flush = later(disk.flush(&mut lab.pool));
    let token = later(elsewhere.flush(&mut other.pool));
    disk.cancel(&mut lab.pool, token);
    other.fake(Fake::finish_all);
    assert!(other.pump());
    assert_eq!(lab.device.borrow().nr_open(), 1);
    lab.finish();
    assert_eq!(disk.conclude(&mut lab.pool, flush), Ok(Progress::Done));

    // A write has nothing to be resumed.
    let mut write = begin_write(&mut disk, &mut lab, 0, &data(1)).unwrap();
    assert_eq!(disk.resume_write(&mut lab.pool, &mut write, &mut sink), Err(StoreError::Stale));
    disk.abort_write(&mut lab.pool, write);
    lab.assert_clean();
}

#[test]
fn what_is_under_way_when_the_device_goes_is_gone() {
    let mut lab = Lab::with(|fake| fake.max_requests = 5);
    let mut disk = lab.disk();
    let over = begin(&mut disk, &mut lab, 0, 8).unwrap();
    let written = begin_write(&mut disk, &mut lab, 8, &data(1)).unwrap();
    let written = later(disk.commit_write(&mut lab.pool, written));
    lab.finish();
    let told_late = later(disk.flush(&mut lab.pool));
    lab.fake(|fake| fake.finish(0, Ok(())));
    let under_way = begin(&mut disk, &mut lab, 16, 8).unwrap();
    let abandoned = begin(&mut disk, &mut lab, 16, 8).unwrap();
    disk.end_read(&mut lab.pool, abandoned);
    let reserved = begin_write(&mut disk, &mut lab, 32, &data(9)).unwrap();
    let aborted = begin_write(&mut disk, &mut lab, 48, &data(9)).unwrap();
    let flushes: Vec<_> = (0..5).map(|_| later(disk.flush(&mut lab.pool))).collect();
    let [mut wanting, mut unwanted] = [lab.disk(), lab.disk()];
    let wants = begin(&mut wanting, &mut lab, 0, 160).unwrap();
    let read = begin(&mut unwanted, &mut lab, 0, 160).unwrap();
    unwanted.end_read(&mut lab.pool, read);
    let geometry = lab.fake(|fake| fake.geometry);

    let gone = lab.device.borrow_mut().disconnect().unwrap();
    assert!(lab.device.borrow_mut().disconnect().is_none());
    assert!(lab.pump());
    assert!(!lab.pump());
    assert_eq!(BlockStore::<Frames>::geometry(&disk), geometry);
    assert_eq!(lab.device.borrow().geometry(), Some(geometry));
    assert_eq!(begin(&mut disk, &mut lab, 0, 8).map(|_| ()), Err(GONE));

    // Another one comes; no buffer of the one before reaches it.
    let fake = Fake::new(lab.pool.memory());
    lab.device.borrow_mut().connect(fake);
    assert!(lab.pump());
    let read = device::read(&mut disk, &mut lab, 0, 8);
    assert_eq!(read, bytes(0, 8));

    assert_eq!(device::resume(&mut disk, &mut lab, over, 0, 8), Err(GONE));
    assert_eq!(device::resume(&mut disk, &mut lab, under_way, 16, 8), Err(GONE));
    assert_eq!(device::resume(&mut wanting, &mut lab, wants, 0, 160), Err(GONE));
    // What was done is done.
    assert_eq!(disk.conclude(&mut lab.pool, written), Ok(Progress::Done));
    assert_eq!(disk.conclude(&mut lab.pool, told_late), Ok(Progress::Done));
    assert_eq!(disk.commit_write(&mut lab.pool, reserved), Err(GONE));
    disk.abort_write(&mut lab.pool, aborted);
    for flush in flushes {
        assert!(BlockStore::<Frames>::is_ready(&disk, &flush));
        assert_eq!(disk.conclude(&mut lab.pool, flush), Err(GONE));
    }
    lab.assert_clean();
    drop(gone);
}

#[test]
fn a_device_that_is_to_go_ends_what_is_open_and_takes_nothing_new() {
    let mut lab = Lab::with(|fake| fake.max_requests = 1);
    let mut disk = lab.disk();
    let read = begin(&mut disk, &mut lab, 0, 8).unwrap();
    let write = begin_write(&mut disk, &mut lab, 8, &data(1)).unwrap();
    // Its frames are taken.
    let all = begin(&mut disk, &mut lab, 0, 8 * (NR_FRAMES - 2)).unwrap();
    let waits = begin(&mut disk, &mut lab, 16, 8).unwrap();
    assert_eq!(begin(&mut disk, &mut lab, 0, 8).map(|_| ()), Err(StoreError::Busy));
    lab.device.borrow_mut().refuse();
    assert!(!lab.pump());
    assert_eq!(begin(&mut disk, &mut lab, 0, 8).map(|_| ()), Err(GONE));
    assert_eq!(disk.flush(&mut lab.pool).map(|_| ()), Err(GONE));
    disk.end_read(&mut lab.pool, all);
    let write = later(disk.commit_write(&mut lab.pool, write));
    // One at a time, and there is an answer to what was busy.
    for _ in 0..3 {
        lab.finish();
    }
    for (read, first) in [(read, 0), (waits, 16)] {
        let read = resume(&mut disk, &mut lab, read, first, 8).map(|(_, read)| read);
        assert_eq!(read, Ok(bytes(first, 8)));
    }
    assert_eq!(disk.conclude(&mut lab.pool, write), Ok(Progress::Done));
    lab.assert_clean();

    // It is there after all, as another one.
    let gone = lab.device.borrow_mut().disconnect();
    lab.device.borrow_mut().connect(Fake::new(lab.pool.memory()));
    assert!(gone.is_some() && lab.pump());
    assert_eq!(device::read(&mut disk, &mut lab, 0, 8), bytes(0, 8));
    lab.assert_clean();
}

#[test]
fn there_is_no_disk_before_there_was_a_device() {
    let device = Rc::new(RefCell::new(Shared::<Fake>::new()));
    assert_eq!(device.borrow().geometry(), None);
    let error = DeviceDisk::new(&device, Slice::default(), Access::ReadWrite).err();
    assert_eq!(error, Some(GONE));
    assert!(!device.borrow_mut().pump());
    assert!(device.borrow_mut().disconnect().is_none());
}

#[test]
fn a_slice_lies_on_the_device() {
    let lab = Lab::with(|fake| fake.geometry.logical = BlockSize::B2048);
    let slice = |offset, nr_sectors| {
        DeviceDisk::new(&lab.device, Slice { offset, nr_sectors }, Access::ReadWrite)
            .map(|disk| BlockStore::<Frames>::geometry(&disk).nr_sectors)
    };
    let nr_sectors = NR_SECTORS;
    assert_eq!(slice(0, None), Ok(nr_sectors));
    assert_eq!(slice(252, None), Ok(4));
    assert_eq!(slice(8, Some(248)), Ok(248));
    let past_end = |first, nr| Err(StoreError::PastEnd { first, nr, nr_sectors });
    assert_eq!(slice(256, None), past_end(256, 4));
    assert_eq!(slice(u64::MAX - 3, None), past_end(u64::MAX - 3, 4));
    assert_eq!(slice(8, Some(252)), past_end(8, 252));
    assert_eq!(slice(4, Some(u64::MAX - 3)), past_end(4, u64::MAX - 3));
    assert_eq!(slice(4, Some(0)), Err(StoreError::Empty));
    let misaligned = |first, nr| Err(StoreError::Misaligned { first, nr, block: 4 });
    assert_eq!(slice(2, None), misaligned(2, 254));
    assert_eq!(slice(4, Some(2)), misaligned(4, 2));
}

#[test]
fn all_of_a_device_is_as_large_as_it_is_now_and_a_slice_stays() {
    let mut lab = Lab::new();
    let (mut all, mut slice) = (lab.disk(), lab.slice(16, 16));
    let rest = Slice { offset: 40, nr_sectors: None };
    let rest = DeviceDisk::new(&lab.device, rest, Access::ReadWrite).unwrap();
    let size = |disk: &DeviceDisk| BlockStore::<Frames>::geometry(disk).nr_sectors;
    assert_eq!((size(&all), size(&rest), size(&slice)), (256, 216, 16));
    lab.fake(|fake| fake.geometry.nr_sectors = 300);
    assert_eq!((size(&all), size(&rest), size(&slice)), (300, 260, 16));
    lab.fake(|fake| fake.geometry.nr_sectors = 24);
    assert_eq!((size(&all), size(&rest), size(&slice)), (24, 0, 16));
    // What is no more fails; what is left is there.
    let read = begin(&mut slice, &mut lab, 0, 16).map(|_| ());
    assert_eq!(read, Err(StoreError::Device(Failure::Range)));
    assert_eq!(device::read(&mut slice, &mut lab, 0, 8), bytes(16, 8));
    assert_eq!(device::read(&mut all, &mut lab, 0, 24), bytes(0, 24));
    let error = SectorRange::on(&BlockStore::<Frames>::geometry(&all), 0, 25).err();
    assert_eq!(error, Some(StoreError::PastEnd { first: 0, nr: 25, nr_sectors: 24 }));
    lab.assert_clean();
}

#[test]
fn a_slice_discards_in_units_if_it_begins_at_one() {
    let lab = Lab::new();
    let discard = |offset| BlockStore::<Frames>::geometry(&lab.slice(offset, 16)).discard.unwrap();
    let limits = |granularity_bytes| {
        let secure = SecureDiscard::Offered;
        DiscardLimits { granularity_bytes, secure }
    };
    assert_eq!(discard(0), limits(8192));
    assert_eq!(discard(32), limits(8192));
    assert_eq!(discard(8), limits(512));
    lab.fake(|fake| fake.geometry.discard = None);
    let geometry = BlockStore::<Frames>::geometry(&lab.disk());
    assert_eq!(geometry, Geometry { discard: None, ..geometry });
}

/// Frames of the pool, as if they were a guest's.
const LENT: [Gfn; 2] = [Gfn(40), Gfn(42)];

fn lend(
    disk: &mut DeviceDisk,
    first: u64,
    direction: Direction,
    lease: &Lease,
) -> Result<Option<Token>, StoreError> {
    let range = range(disk, first, 11);
    BlockStore::<Frames>::lend(disk, range, direction, Lent { frames: &LENT, lease })
}

#[test]
fn a_device_moves_data_in_pages_that_it_is_lent() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    let lease = Lease::default();
    let read = |disk: &mut _| lend(disk, 3, Direction::Read, &lease);
    assert_eq!(read(&mut disk), Ok(None), "it takes none");
    lab.fake(|fake| fake.max_lent = 5);
    let a = read(&mut disk).unwrap().unwrap();
    let b = lend(&mut disk, 20, Direction::Write, &lease).unwrap().unwrap();
    assert_eq!(read(&mut disk), Ok(None), "not so many");
    assert_eq!(
        lab.log(),
        [Request::Read { sector: 3, buffer: 11 }, Request::Write { sector: 20, buffer: 11 }]
    );
    assert_eq!(lab.fake(|fake| fake.nr_free()), NR_FRAMES);
    lab.finish();
    assert!(!lease.is_over(), "nobody was told");
    assert_eq!(disk.conclude(&mut lab.pool, a), Ok(Progress::Done));
    assert_eq!(disk.conclude(&mut lab.pool, b), Ok(Progress::Done));
    assert!(lease.is_over());
    let mut found = [0; 11 * SECTOR];
    let (start, end) = found.split_at_mut(8 * SECTOR);
    lab.pool.memory_mut().read(FrameAddr::start_of(LENT[0]), start);
    lab.pool.memory_mut().read(FrameAddr::start_of(LENT[1]), end);
    assert_eq!(found[..], bytes(3, 11));
    assert_eq!(device::read(&mut disk, &mut lab, 20, 11), bytes(3, 11));
    lab.fake(|fake| assert_eq!(fake.max_lent, 5));
    lab.assert_clean();
}

#[test]
fn pages_are_lent_until_what_was_given_up_is_over() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    let lease = Lease::default();
    lab.fake(|fake| (fake.max_lent, fake.max_requests) = (6, 2));
    let [a, b, waiting] =
        [0, 16, 32].map(|first| lend(&mut disk, first, Direction::Write, &lease).unwrap().unwrap());
    // What the device does not have yet is over at once.
    disk.cancel(&mut lab.pool, waiting);
    lab.fake(|fake| assert_eq!(fake.max_lent, 2));
    disk.cancel(&mut lab.pool, a);
    disk.cancel(&mut lab.pool, b);
    lab.fake(|fake| fake.finish(1, Ok(())));
    assert!(!lab.pump());
    assert!(!lease.is_over());
    lab.fake(|fake| fake.finish(0, Err(Failure::Device)));
    assert!(!lab.pump());
    assert!(lease.is_over());
    // One that is refused was never lent.
    lab.fake(|fake| fake.refuses = Some(Failure::ReadOnly));
    let refused = lend(&mut disk, 0, Direction::Write, &lease);
    assert_eq!(refused, Err(StoreError::Device(Failure::ReadOnly)));
    assert!(lease.is_over());
    lab.assert_clean();
}

#[test]
fn a_device_that_goes_with_pages_keeps_them() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    lab.fake(|fake| fake.max_lent = 8);
    let leases: [Lease; 4] = Default::default();
    let [over, under_way, abandoned, lost] = [0, 1, 2, 3]
        .map(|n| lend(&mut disk, 16 * n as u64, Direction::Read, &leases[n]).unwrap().unwrap());
    lab.fake(|fake| fake.finish(0, Ok(())));
    lab.fake(|fake| fake.lose(2));
    assert!(lab.pump());
    assert_eq!(disk.conclude(&mut lab.pool, lost), Err(GONE));
    disk.cancel(&mut lab.pool, abandoned);
    assert!(lab.device.borrow_mut().disconnect().is_some());
    assert_eq!(disk.conclude(&mut lab.pool, over), Ok(Progress::Done));
    assert_eq!(disk.conclude(&mut lab.pool, under_way), Err(GONE));
    assert_eq!(leases.map(|lease| lease.is_over()), [true, false, false, false]);
    assert_eq!(lend(&mut disk, 0, Direction::Read, &Lease::default()), Ok(None));
}

#[test]
fn a_long_request_has_its_turn_before_pages_are_lent() {
    let mut lab = Lab::new();
    let mut disk = lab.disk();
    lab.fake(|fake| fake.max_lent = 8);
    let first = begin(&mut disk, &mut lab, 0, 8).unwrap();
    let long = begin(&mut disk, &mut lab, 0, 8 * NR_FRAMES).unwrap();
    let lease = Lease::default();
    assert_eq!(lend(&mut disk, 0, Direction::Read, &lease), Ok(None));
    lab.finish();
    disk.end_read(&mut lab.pool, first);
    assert_eq!(lend(&mut disk, 0, Direction::Read, &lease), Ok(None));
    assert!(lab.pump());
    assert!(lend(&mut disk, 0, Direction::Read, &lease).unwrap().is_some());
    disk.end_read(&mut lab.pool, long);
}

#[test]
fn a_disk_that_is_only_read_lends_for_no_write() {
    let lab = Lab::new();
    lab.fake(|fake| fake.max_lent = 8);
    let mut disk = DeviceDisk::new(&lab.device, Slice::default(), Access::ReadOnly).unwrap();
    let lease = Lease::default();
    assert_eq!(lend(&mut disk, 0, Direction::Write, &lease), Err(StoreError::ReadOnly));
    assert_eq!(lab.log(), []);
}
