//! Reads, writes and the rest, command by command.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

mod simulated;

use std::cell::RefCell;
use std::rc::Rc;

use nvme::{IoError, NamespaceDevice, NamespaceId, State, Status};
use simulated::{Act, Bad, Bus, CAP, Lab, NS1, SimNamespace, Sqe, device};
use store::{Buffer, Device, Failure, Flushing, Refusal, Request, Tag};
use xen_abi::PAGE_SIZE;

fn with(nr_pages: u64, change: impl FnOnce(&mut simulated::Device)) -> Lab {
    let bus: Bus = device(1, nr_pages);
    change(&mut bus.device());
    Lab::new(bus)
}

fn sent(lab: &Lab) -> Vec<Sqe> {
    std::mem::take(&mut lab.device().log)
}

#[test]
fn what_is_written_is_read() {
    for (shift, per_block) in [(9, 1), (12, 8)] {
        let mut lab = with(40, |device| {
            device.namespaces = vec![SimNamespace::new(1, shift, 1024)];
        });
        let (first, nr) = (3 * per_block, 17 * per_block as u32);
        let write = lab.write(first, nr, 0x5a);
        assert_eq!(lab.go(), [(write, Ok(()))]);
        let buffer = lab.controller.reserve(nr + 16).unwrap();
        lab.submit(Request::Read { sector: first - per_block, buffer });
        lab.step();
        let completion = lab.controller.complete(NS1).unwrap();
        let bytes = lab.contents(completion.buffer.as_ref().unwrap());
        let (before, len) = (per_block as usize * 512, nr as usize * 512);
        assert!(bytes[..before].iter().all(|&byte| byte == 0));
        assert!(bytes[before..before + len].iter().all(|&byte| byte == 0x5a));
        assert!(bytes[before + len..].iter().all(|&byte| byte == 0));
        assert_eq!(lab.controller.nr_in_flight(), 0);
    }
}

#[test]
fn a_command_names_its_blocks_and_pages() {
    let mut lab = with(40, |device| {
        let identify = vec![(0, (1u64 << 33).to_le_bytes().to_vec())];
        device.namespaces = vec![SimNamespace { identify, ..SimNamespace::new(1, 12, 8) }];
    });
    lab.device().manual = true;
    for (nr_sectors, nr_pages) in [(8, 1), (16, 2), (24, 3), (64, 8)] {
        let buffer = lab.controller.reserve(nr_sectors).unwrap();
        let frames: Vec<u64> = lab.controller.frames(&buffer).map(|frame| frame.0).collect();
        assert_eq!(frames.len(), nr_pages);
        lab.submit(Request::Read { sector: 8 * ((1 << 32) + 5), buffer });
        lab.controller.publish();
        lab.device().fetch();
        let [sqe] = sent(&lab)[..] else { panic!() };
        assert_eq!((sqe.opcode, sqe.nsid, sqe.cdw[0], sqe.cdw[1]), (2, 1, 5, 1));
        assert_eq!(sqe.cdw[2], nr_pages as u32 - 1, "counted from 0, without any flag");
        assert_eq!(sqe.cdw[3..], [0; 3]);
        let address = |frame: u64| (1 << 32) + frame * PAGE_SIZE as u64;
        assert_eq!(sqe.prp[0], address(frames[0]));
        match nr_pages {
            1 => assert_eq!(sqe.prp[1], 0),
            2 => assert_eq!(sqe.prp[1], address(frames[1])),
            _ => {
                let mut list = vec![0; 8 * (nr_pages - 1)];
                lab.device().dma_read(sqe.prp[1], &mut list);
                let listed: Vec<u64> =
                    list.as_chunks().0.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect();
                let expected: Vec<u64> = frames[1..].iter().map(|&frame| address(frame)).collect();
                assert_eq!(listed, expected);
            }
        }
    }
}

#[test]
fn a_request_is_sent_in_parts_that_the_controller_takes() {
    // MDTS, pages of data, and the blocks of each command.
    let table: [(u8, u32, &[u64]); 9] = [
        (1, 1, &[8]),
        (1, 5, &[16, 16, 8]),
        (2, 4, &[32]),
        (2, 10, &[32, 32, 16]),
        (2, 11, &[32, 32, 24]),
        (5, 64, &[256, 256]),
        (0, 100, &[800]),
        (0, 513, &[4096, 8]),
        (255, 515, &[4096, 24]),
    ];
    for (mdts, nr_pages, expected) in table {
        let mut lab = with(600, |device| {
            device.mdts = mdts;
            device.namespaces = vec![SimNamespace::new(1, 9, 8192)];
        });
        let nr_sectors = nr_pages * 8;
        let buffer = lab.controller.reserve(nr_sectors).unwrap();
        for (n, page) in (1u8..=250).cycle().zip(lab.pages(&buffer)) {
            page.fill(n);
        }
        let tag = lab.submit(Request::Write { sector: 80, buffer });
        // The sim refuses what is longer than MDTS, and checks each list.
        assert_eq!(lab.go(), [(tag, Ok(()))]);
        let parts: Vec<u64> = sent(&lab).iter().map(Sqe::nr_blocks).collect();
        assert_eq!(parts, expected, "MDTS {mdts}, {nr_pages} pages");
        let buffer = lab.controller.reserve(nr_sectors).unwrap();
        lab.submit(Request::Read { sector: 80, buffer });
        lab.step();
        let completion = lab.controller.complete(NS1).unwrap();
        let buffer = completion.buffer.unwrap();
        for (n, page) in (1u8..=250).cycle().zip(lab.pages(&buffer)) {
            assert_eq!(page.bytes(0..PAGE_SIZE), [n; PAGE_SIZE]);
        }
        lab.controller.give_back(buffer);
    }
}

#[test]
fn the_longest_buffer_is_the_longest() {
    for mdts in [0, 1, 2, 5] {
        for nr_pages in [1, 2, 3, 4, 5, 6, 31, 32, 33, 34, 35, 66, 513, 514, 515, 516, 600] {
            let mut lab = with(nr_pages, |device| device.mdts = mdts);
            let longest = lab.controller.max_sectors() as u32;
            assert!(longest > 0);
            assert_eq!(lab.controller.reserve(longest + 1), None, "{mdts} {nr_pages}");
            let buffer = lab.controller.reserve(longest);
            assert_eq!(buffer.as_ref().map(Buffer::nr_sectors), Some(longest));
            assert_eq!(lab.controller.reserve(0), None);
            lab.controller.give_back(buffer.unwrap());
            assert!(lab.controller.reserve(longest).is_some());
        }
    }
}

#[test]
fn many_are_in_flight_and_come_back_in_any_order() {
    let mut lab = with(80, |device| device.manual = true);
    let tags: Vec<Tag> = (0..63).map(|n| lab.read(n, 1)).collect();
    let buffer = lab.controller.reserve(1).unwrap();
    let refused = lab.controller.submit(NS1, Tag(99), Request::Read { sector: 0, buffer });
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason, Refusal::Full { max: 63 });
    let Request::Read { buffer, .. } = refused.request else { panic!() };
    lab.controller.give_back(buffer);
    let doorbells = lab.device().nr_doorbells;
    lab.controller.publish();
    lab.controller.publish();
    assert_eq!(lab.device().nr_doorbells, doorbells + 1, "one for all");
    lab.device().fetch();
    assert_eq!(sent(&lab).len(), 63);
    let mut cids: Vec<u16> = lab.device().pending.iter().map(|sqe| sqe.cid).collect();
    cids.sort_unstable();
    cids.dedup();
    assert_eq!(cids.len(), 63);
    assert_eq!(lab.results(), []);
    let mut done = Vec::new();
    while done.len() < 63 {
        lab.device().run(7);
        done.extend(lab.results());
    }
    assert_ne!(done, tags.iter().map(|&tag| (tag, Ok(()))).collect::<Vec<_>>(), "in order?");
    done.sort_unstable_by_key(|(tag, _)| tag.0);
    assert_eq!(done, tags.iter().map(|&tag| (tag, Ok(()))).collect::<Vec<_>>());
    assert_eq!(lab.controller.nr_in_flight(), 0);
}

#[test]
fn what_the_queue_has_no_room_for_waits_in_order() {
    let mut lab = with(400, |device| {
        (device.cap, device.mdts, device.manual) = (CAP & !0xffff | 7, 1, true);
    });
    // Ten commands of two pages, of which the queue takes seven.
    let first = lab.write(0, 160, 1);
    let second = lab.read(200, 1);
    lab.step();
    lab.device().fetch();
    assert_eq!(sent(&lab).len(), 7);
    lab.device().run(3);
    assert_eq!(lab.results(), []);
    lab.controller.publish();
    lab.device().fetch();
    let blocks: Vec<u64> = sent(&lab).iter().map(Sqe::slba).collect();
    assert_eq!(blocks, [112, 128, 144]);
    lab.device().run(10);
    assert_eq!(lab.results(), [(first, Ok(()))]);
    lab.controller.publish();
    lab.device().run(10);
    assert_eq!(lab.results(), [(second, Ok(()))]);
}

#[test]
fn a_namespace_leaves_room_for_each_other() {
    let full = |nsid, lab: &mut Lab| {
        let refused = lab.controller.submit(NamespaceId(nsid), Tag(99), Request::Flush);
        assert_eq!(refused.unwrap_err().reason, Refusal::Full { max: 63 });
        let refused = lab.controller.submit_write_zeroes(NamespaceId(nsid), Tag(99), 0, 1);
        assert_eq!(refused, Err(Refusal::Full { max: 63 }));
    };
    let mut lab = with(8, |device| {
        device.manual = true;
        device.namespaces.push(SimNamespace::new(2, 9, 64));
        device.namespaces.push(SimNamespace::new(3, 9, 64));
        // One that is not served, for which no room is left.
        device
            .namespaces
            .push(SimNamespace { identify: vec![(130, vec![13])], ..SimNamespace::new(4, 9, 64) });
    });
    assert!(lab.controller.disk(NamespaceId(4)).is_none());
    let first: Vec<Tag> = (0..61).map(|_| lab.submit(Request::Flush)).collect();
    full(1, &mut lab);
    lab.submit_to(NamespaceId(2), Request::Flush);
    full(1, &mut lab);
    full(2, &mut lab);
    lab.submit_to(NamespaceId(3), Request::Flush);
    full(3, &mut lab);
    lab.step();
    lab.device().run(usize::MAX);
    assert_eq!(lab.results().len(), first.len());
    // Those of the others are not handed back yet.
    assert_eq!((0..61).map(|_| lab.submit(Request::Flush)).count(), 61);
    full(1, &mut lab);
}

#[test]
fn where_there_is_no_room_for_each_they_take_turns() {
    let mut lab = with(8, |device| {
        device.cap = CAP & !0xffff | 1;
        device.namespaces.push(SimNamespace::new(2, 9, 64));
    });
    for (nsid, other) in [(1, 2), (2, 1), (1, 2)] {
        let tag = lab.submit_to(NamespaceId(nsid), Request::Flush);
        for refused in [nsid, other] {
            let refused = lab.controller.submit(NamespaceId(refused), Tag(99), Request::Flush);
            assert_eq!(refused.unwrap_err().reason, Refusal::Full { max: 1 });
        }
        lab.step();
        assert_eq!(lab.completions(NamespaceId(nsid)).len(), 1, "{tag:?}");
    }
}

#[test]
fn flushes_discards_and_zeroes() {
    let mut lab = with(8, |_| ());
    let write = lab.write(100, 16, 7);
    assert_eq!(lab.go(), [(write, Ok(()))]);
    let flush = lab.submit(Request::Flush);
    assert_eq!(lab.go(), [(flush, Ok(()))]);
    assert!(lab.device().namespaces[0].cache.is_empty());
    let discard = lab.submit(Request::Discard { sector: 100, nr_sectors: 3 });
    assert_eq!(lab.go(), [(discard, Ok(()))]);
    lab.controller.submit_write_zeroes(NS1, Tag(50), 110, 5).unwrap();
    assert_eq!(lab.go(), [(Tag(50), Ok(()))]);
    let flush = lab.submit(Request::Flush);
    assert_eq!(lab.go(), [(flush, Ok(()))]);
    let sectors: Vec<u8> =
        (100..116).map(|sector| lab.device().namespaces[0].media[sector * 512]).collect();
    assert_eq!(sectors, [0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 7]);
    let codes: Vec<u8> = sent(&lab).iter().map(|sqe| sqe.opcode).collect();
    assert_eq!(codes, [1, 0, 9, 8, 0]);
}

#[test]
fn long_discards_and_zeroes_go_in_parts() {
    for (shift, per_block) in [(9, 1), (12, 8)] {
        long_discards_go_in_parts(shift, per_block);
    }
    let mut lab = with(8, |_| ());
    // As much as a transfer: MDTS of 32 pages.
    lab.controller.submit_write_zeroes(NS1, Tag(50), 1, 600).unwrap();
    assert_eq!(lab.go(), [(Tag(50), Ok(()))]);
    let parts: Vec<_> = sent(&lab).iter().map(|sqe| (sqe.slba(), sqe.nr_blocks())).collect();
    assert_eq!(parts, [(1, 256), (257, 256), (513, 88)]);
}

/// A namespace of 2^40 blocks, and discards that are done by hand.
fn huge(shift: u8, change: impl FnOnce(&mut simulated::Device)) -> Lab {
    with(8, |device| {
        change(device);
        let identify = vec![(0, (1u64 << 40).to_le_bytes().to_vec())];
        device.namespaces = vec![SimNamespace { identify, ..SimNamespace::new(1, shift, 8) }];
        device.act = Box::new(|sqe| match (sqe.queue, sqe.opcode) {
            (1, 9) => Act::Hang,
            _ => Act::Do,
        });
    })
}

/// What a discard is of: first block, and how many.
fn range(device: &simulated::Device, sqe: &Sqe) -> (u64, u32) {
    let mut range = [0; 16];
    device.dma_read(sqe.prp[0], &mut range);
    let nr = u32::from_le_bytes(range[4..8].try_into().unwrap());
    (u64::from_le_bytes(range[8..].try_into().unwrap()), nr)
}

/// The discards that are in flight, by their places.
fn in_flight(lab: &mut Lab) -> Vec<(u64, u32)> {
    lab.step();
    let mut device = lab.device();
    let mut pending = std::mem::take(&mut device.pending);
    pending.sort_by_key(|sqe| range(&device, sqe));
    let ranges = pending.iter().map(|sqe| range(&device, sqe)).collect();
    device.pending = pending;
    ranges
}

/// The first of them is done.
fn finish(lab: &mut Lab, bad: Option<Bad>) {
    let mut device = lab.device();
    let sqe = device.pending.remove(0);
    device.complete(&sqe, bad);
}

/// Of a GiB, so that each is done in time.
fn long_discards_go_in_parts(shift: u8, per_block: u64) {
    let mut lab = huge(shift, |_| ());
    let (sector, nr_sectors) = (5 * per_block, (2 << 21) + 16);
    let discard = lab.submit(Request::Discard { sector, nr_sectors });
    let most = (1 << 21) / per_block;
    let last = 16 / per_block as u32;
    for range in [(5, most as u32), (5 + most, most as u32), (5 + 2 * most, last)] {
        assert_eq!(lab.results(), []);
        assert_eq!(in_flight(&mut lab), [range]);
        finish(&mut lab, None);
    }
    assert_eq!(lab.results(), [(discard, Ok(()))]);
    assert_eq!(in_flight(&mut lab), []);
}

#[test]
fn discards_are_no_longer_than_the_controller_takes() {
    for (limits, expected) in [
        ((0, 0), vec![(0, 1 << 21), (1 << 21, 8)]),
        ((1 << 20, 0), vec![(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 8)]),
        ((1 << 21, 1 << 20), vec![(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 8)]),
        ((0, 1 << 40), vec![(0, 1 << 21), (1 << 21, 8)]),
    ] {
        let mut lab = huge(9, |device| {
            device.vs = 0x0002_0000;
            device.discard_limits = limits;
        });
        let discard = lab.submit(Request::Discard { sector: 0, nr_sectors: (1 << 21) + 8 });
        for range in expected {
            assert_eq!(in_flight(&mut lab), [range], "{limits:?}");
            finish(&mut lab, None);
        }
        assert_eq!(lab.results(), [(discard, Ok(()))]);
    }
}

#[test]
fn discards_take_turns_and_keep_nobody_waiting() {
    let mut lab = huge(9, |_| ());
    let most: u32 = 1 << 21;
    let mut sector = 0;
    let tags = [3 * most, 7, 2 * most, 5, most - 5].map(|nr_sectors| {
        sector += 1 << 32;
        lab.submit(Request::Discard { sector, nr_sectors: nr_sectors.into() })
    });
    let read = lab.read(0, 8);
    let part = |discard: u64, nth: u32| (discard << 32) + u64::from(nth * most);
    let mut over = Vec::new();
    for expected in [
        vec![(part(1, 0), most)],
        vec![(part(2, 0), 7)],
        vec![(part(3, 0), most)],
        // As many as are a GiB together.
        vec![(part(4, 0), 5), (part(5, 0), most - 5)],
        vec![(part(5, 0), most - 5)],
        vec![(part(1, 1), most)],
        vec![(part(3, 1), most)],
        vec![(part(1, 2), most)],
    ] {
        assert_eq!(in_flight(&mut lab), expected);
        over.extend(lab.results());
        finish(&mut lab, None);
    }
    over.extend(lab.results());
    let expected = [read, tags[1], tags[3], tags[4], tags[2], tags[0]].map(|tag| (tag, Ok(())));
    assert_eq!(over, expected);
    lab.controller.shutdown();
    lab.settle();
    assert_eq!(lab.controller.state(), State::Off);
}

#[test]
fn what_is_left_of_a_discard_that_failed_is_not_sent() {
    let mut lab = huge(9, |_| ());
    let [bad, good] =
        [0, 8].map(|n| lab.submit(Request::Discard { sector: n, nr_sectors: 3 << 21 }));
    assert_eq!(in_flight(&mut lab), [(0, 1 << 21)]);
    finish(&mut lab, Some(Bad(0, 6, true)));
    assert_eq!(lab.results(), [(bad, Err(Failure::Device))]);
    assert_eq!(in_flight(&mut lab), [(8, 1 << 21)]);
    // What goes on after a reset begins where it was.
    lab.device().csts |= 2;
    lab.after(2);
    lab.settle();
    for n in 0..3 {
        assert_eq!(in_flight(&mut lab), [(8 + (n << 21), 1 << 21)]);
        finish(&mut lab, None);
    }
    assert_eq!(lab.results(), [(good, Ok(()))]);
    let tags = [0, 8].map(|n| lab.submit(Request::Discard { sector: n, nr_sectors: 3 << 21 }));
    assert_eq!(in_flight(&mut lab), [(0, 1 << 21)]);
    lab.controller.abandon();
    assert_eq!(lab.results(), tags.map(|tag| (tag, Err(Failure::Gone))));
}

#[test]
fn a_discard_that_fails_is_no_end_of_what_waits() {
    // Two slots, and a read of three parts.
    let mut lab = with(80, |device| {
        device.cap = CAP & !0xffff | 2;
        device.namespaces[0].identify = vec![(0, (1u64 << 40).to_le_bytes().to_vec())];
    });
    let discard = lab.submit(Request::Discard { sector: 0, nr_sectors: 3 << 21 });
    let read = lab.read(0, 600);
    lab.controller.publish();
    lab.device().fetch();
    finish(&mut lab, Some(Bad(0, 6, true)));
    assert_eq!(lab.results(), [(discard, Err(Failure::Device))]);
    lab.step();
    lab.step();
    lab.step();
    assert_eq!(lab.results(), [(read, Ok(()))]);
}

#[test]
fn what_does_not_fit_the_disk_is_not_sent() {
    let refusal = |change: fn(&mut simulated::Device), request: fn(&mut Lab) -> Request<_>| {
        let mut lab = with(40, change);
        let request = request(&mut lab);
        let refused = lab.controller.submit(NS1, Tag(1), request).unwrap_err();
        lab.step();
        assert_eq!(sent(&lab), []);
        assert_eq!(lab.controller.nr_in_flight(), 0);
        refused.reason
    };
    let failed = |failure: Failure| Refusal::Failed(failure);
    let discard = |first, nr| Request::Discard { sector: first, nr_sectors: nr };
    let same = |_: &mut simulated::Device| ();
    let read_past =
        |lab: &mut Lab| Request::Read { sector: 1017, buffer: lab.controller.reserve(8).unwrap() };
    let read_far = |lab: &mut Lab| Request::Read {
        sector: u64::MAX - 7,
        buffer: lab.controller.reserve(8).unwrap(),
    };
    let write_part =
        |lab: &mut Lab| Request::Write { sector: 8, buffer: lab.controller.reserve(9).unwrap() };
    let write =
        |lab: &mut Lab| Request::Write { sector: 8, buffer: lab.controller.reserve(8).unwrap() };
    assert_eq!(refusal(same, read_past), failed(Failure::Range));
    assert_eq!(refusal(same, read_far), failed(Failure::Range));
    let large =
        |device: &mut simulated::Device| device.namespaces[0].identify = vec![(130, vec![12])];
    assert_eq!(refusal(large, write_part), failed(Failure::Range));
    let protected =
        |device: &mut simulated::Device| device.namespaces[0].identify = vec![(99, vec![1])];
    assert_eq!(refusal(protected, write), failed(Failure::ReadOnly));
    let none = |device: &mut simulated::Device| (device.vwc, device.oncs) = (0, 0);
    assert_eq!(refusal(none, |_| Request::Flush), failed(Failure::NotSupported));
    let not_supported = failed(Failure::NotSupported);
    assert_eq!(refusal(none, |_| Request::Discard { sector: 0, nr_sectors: 8 }), not_supported);
    assert_eq!(
        refusal(same, |_| Request::SecureDiscard { sector: 0, nr_sectors: 8 }),
        not_supported
    );
    assert_eq!(
        refusal(same, |_| Request::Discard { sector: 0, nr_sectors: 0 }),
        failed(Failure::Range)
    );
    assert_eq!(
        refusal(protected, |_| Request::Discard { sector: 0, nr_sectors: 8 }),
        failed(Failure::ReadOnly)
    );

    let mut lab = with(8, none);
    let refused = lab.controller.submit(NamespaceId(2), Tag(1), discard(0, 1)).unwrap_err();
    assert_eq!(refused.reason, failed(Failure::Gone));
    let mut zeroes = |nr| lab.controller.submit_write_zeroes(NS1, Tag(1), 1020, nr);
    assert_eq!(zeroes(4), Err(not_supported));
    let mut lab = with(8, same);
    let mut zeroes = |nr| lab.controller.submit_write_zeroes(NS1, Tag(1), 1020, nr);
    assert_eq!(zeroes(5), Err(failed(Failure::Range)));
    assert_eq!(zeroes(4), Ok(()));
    let mut lab = with(8, protected);
    let mut zeroes = |nr| lab.controller.submit_write_zeroes(NS1, Tag(1), 1020, nr);
    assert_eq!(zeroes(4), Err(failed(Failure::ReadOnly)));
}

#[test]
fn a_status_says_why() {
    type Case = (u8, u8, fn(Status) -> IoError, Failure);
    let table: [Case; 25] = [
        (0, 0x01, IoError::Unsupported, Failure::NotSupported),
        (0, 0x02, IoError::Invalid, Failure::Device),
        (0, 0x13, IoError::Invalid, Failure::Device),
        (1, 0x80, IoError::Invalid, Failure::Device),
        (0, 0x80, IoError::Range, Failure::Range),
        (0, 0x0b, IoError::NoNamespace, Failure::Gone),
        (0, 0x20, IoError::WriteProtected, Failure::ReadOnly),
        (1, 0x82, IoError::WriteProtected, Failure::ReadOnly),
        (0, 0x81, IoError::CapacityExceeded, Failure::Device),
        (0, 0x05, IoError::Aborted, Failure::Device),
        (0, 0x07, IoError::Aborted, Failure::Device),
        (0, 0x08, IoError::Aborted, Failure::Device),
        (0, 0x0a, IoError::Aborted, Failure::Device),
        (3, 0x71, IoError::Aborted, Failure::Device),
        (2, 0x80, IoError::Media, Failure::Device),
        (2, 0x81, IoError::Media, Failure::Device),
        (2, 0x86, IoError::Media, Failure::Device),
        (0, 0x03, IoError::Controller, Failure::Device),
        (0, 0x04, IoError::Controller, Failure::Device),
        (0, 0x06, IoError::Controller, Failure::Device),
        (0, 0x82, IoError::Controller, Failure::Device),
        (0, 0x83, IoError::Controller, Failure::Device),
        (3, 0x00, IoError::Controller, Failure::Device),
        (7, 0xff, IoError::Controller, Failure::Device),
        (5, 0x00, IoError::Controller, Failure::Device),
    ];
    for (sct, sc, error, failure) in table {
        let mut lab = with(8, |device| {
            device.act = Box::new(move |sqe| match sqe.queue {
                0 => Act::Do,
                _ => Act::Fail(Bad(sct, sc, true)),
            });
        });
        let tag = lab.read(0, 1);
        assert_eq!(lab.go(), [(tag, Err(failure))]);
        assert_eq!(sent(&lab).len(), 1, "DNR");
        assert_eq!(lab.controller.take_error(), Some((NS1, error(Status { sct, sc }))));
        assert_eq!(lab.controller.take_error(), None);
    }
    let text = IoError::Media(Status { sct: 2, sc: 0x81 }).to_string();
    assert_eq!(text, "media error: status 2h/81h");
}

#[test]
fn what_may_succeed_is_sent_again() {
    for nr_bad in 0..5 {
        let mut lab = with(8, |device| {
            let mut nr = 0;
            device.act = Box::new(move |sqe| {
                nr += u32::from(sqe.queue == 1);
                let bad = sqe.queue == 1 && nr <= nr_bad;
                if bad { Act::Fail(Bad(2, 0x81, false)) } else { Act::Do }
            });
        });
        let tag = lab.write(0, 24, 9);
        let mut results = Vec::new();
        for _ in 0..5 {
            results.extend(lab.go());
        }
        let expected = if nr_bad < 3 { Ok(()) } else { Err(Failure::Device) };
        assert_eq!(results, [(tag, expected)]);
        let log = sent(&lab);
        assert_eq!(log.len(), 3.min(nr_bad as usize + 1));
        // The same command under another identifier.
        assert!(log.iter().all(|sqe| Sqe { cid: 0, ..*sqe } == Sqe { cid: 0, ..log[0] }));
        assert!(log.windows(2).all(|pair| pair[0].cid != pair[1].cid));
    }
}

#[test]
fn a_part_that_fails_fails_all_once_and_the_rest_is_not_sent() {
    let mut lab = with(400, |device| {
        (device.cap, device.mdts, device.manual) = (CAP & !0xffff | 7, 1, true);
    });
    let long = lab.write(0, 160, 1);
    let short = lab.read(500, 1);
    lab.step();
    let mut device = lab.device();
    device.fetch();
    let pending = std::mem::take(&mut device.pending);
    device.complete(&pending[3], Some(Bad(2, 0x80, true)));
    device.complete(&pending[4], Some(Bad(0, 0x80, true)));
    drop(device);
    assert_eq!(lab.results(), []);
    // What comes behind it goes on.
    lab.controller.publish();
    lab.device().run(9);
    assert_eq!(lab.results(), [(short, Ok(()))]);
    for n in [0, 1, 2, 5, 6] {
        assert_eq!(lab.results(), []);
        lab.device().complete(&pending[n], None);
    }
    assert_eq!(lab.results(), [(long, Err(Failure::Device))]);
    assert_eq!(sent(&lab).len(), 8);
    let first = IoError::Media(Status { sct: 2, sc: 0x80 });
    assert_eq!(lab.controller.take_error(), Some((NS1, first)));
    assert_eq!(lab.controller.nr_in_flight(), 0);
}

#[test]
fn namespaces_have_their_own_completions() {
    let bus = device(1, 40);
    bus.device().namespaces.push(SimNamespace::new(5, 12, 64));
    let Lab { controller, .. } = Lab::new(bus.clone());
    let controller = Rc::new(RefCell::new(controller));
    assert!(NamespaceDevice::new(controller.clone(), NamespaceId(2)).is_none());
    let mut small = NamespaceDevice::new(controller.clone(), NS1).unwrap();
    let mut large = NamespaceDevice::new(controller.clone(), NamespaceId(5)).unwrap();
    assert_eq!(large.geometry().nr_sectors, 512);
    assert_eq!(large.flushing(), Flushing::Offered);
    assert_eq!(small.max_sectors(), large.max_sectors());
    let buffer = large.reserve(16).unwrap();
    let mut frames = Vec::new();
    large.frames(&buffer, &mut |frame| frames.push(frame));
    assert_eq!(frames.len(), 2);
    large.submit(Tag(1), Request::Write { sector: 8, buffer }).unwrap();
    let buffer = small.reserve(1).unwrap();
    small.submit(Tag(1), Request::Read { sector: 0, buffer }).unwrap();
    large.submit(Tag(2), Request::Flush).unwrap();
    controller.borrow_mut().publish();
    bus.device().run(9);
    let completion = small.complete().unwrap();
    assert_eq!((completion.tag, completion.result), (Tag(1), Ok(())));
    small.give_back(completion.buffer.unwrap());
    assert_eq!(small.complete(), None);
    let mut tags: Vec<u64> =
        std::iter::from_fn(|| large.complete()).map(|done| done.tag.0).collect();
    tags.sort_unstable();
    assert_eq!(tags, [1, 2]);
    let nsids: Vec<_> = bus.device().log.iter().map(|sqe| (sqe.opcode, sqe.nsid)).collect();
    assert_eq!(nsids, [(1, 5), (2, 1), (0, 5)]);
}

#[test]
fn nothing_that_was_in_a_frame_is_told() {
    let mut lab = with(8, |_| ());
    let buffer = lab.controller.reserve(56).unwrap();
    assert!(lab.contents(&buffer).iter().all(|&byte| byte == 0));
}

#[test]
fn a_request_costs_no_read_of_a_register() {
    let mut lab = with(8, |_| ());
    let before = lab.device().nr_status_reads;
    for _ in 0..100 {
        let tag = lab.read(0, 1);
        assert_eq!(lab.go(), [(tag, Ok(()))]);
    }
    assert_eq!(lab.device().nr_status_reads, before);
    // One for each queue.
    assert_eq!(lab.device().nr_doorbells, 2 * 100 + 2 * 6);
}
