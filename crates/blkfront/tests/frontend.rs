//! Requests on the ring, number by number.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

mod upstream;

use blkfront::{DiscardLimits, Disk, Flush, Frontend, NoRing, OutOfGrants, Retired, Ring};
use blkif::{Operation, Sector, Segments, Status, Transfer};
use sim::{Machine, OwnGrants};
use store::{
    Access, BlockSize, Buffer, Device, Failure, Flushing, Refusal, Refused, Request, SecureDiscard,
    Tag,
};
use upstream::{DISK, FIRST, Upstream, frames};
use xen_abi::{EvtchnPort, Gfn, PAGE_SIZE};

const GRANULAR: DiscardLimits =
    DiscardLimits { granularity_bytes: 4096, alignment_bytes: 0, secure: SecureDiscard::Offered };

const NOT_OFFERED: Refusal = Refusal::Failed(Failure::NotSupported);
const READ_ONLY: Refusal = Refusal::Failed(Failure::ReadOnly);
const RANGE: Refusal = Refusal::Failed(Failure::Range);

/// First and last sectors within their pages.
fn shape(segments: &[blkif::Segment]) -> Vec<(u8, u8)> {
    segments.iter().map(|segment| (segment.first_sect, segment.last_sect)).collect()
}

#[test]
fn a_write_takes_its_bytes_from_its_frames() {
    let mut up = Upstream::new(DISK, 8);
    let buffer = up.frontend.reserve(11).unwrap();
    let places = up.frames(&buffer);
    assert_eq!(places.len(), 2);
    for (n, &frame) in (1u8..).zip(&places) {
        up.grants.page(frame).fill(n);
    }
    up.submit(7, Request::Write { sector: 1000, buffer });
    let requests = up.requests();
    let [request] = requests[..] else { panic!("{requests:?}") };
    let Operation::Write(transfer) = request.op else { panic!("{request:?}") };
    assert_eq!(transfer.sector, Sector(1000));
    let segments = transfer.segments.as_slice();
    assert_eq!(shape(segments), [(0, 7), (0, 2)]);
    for (n, segment) in (1u8..).zip(segments) {
        assert_eq!(up.map(segment.gref).bytes(0..PAGE_SIZE), [n; PAGE_SIZE]);
    }
    assert_eq!(up.results(), []);
    up.answer(&request, Status::OKAY);
    assert_eq!(up.results(), [(7, Ok(()))]);
    assert_eq!(up.frontend.nr_in_flight(), 0);
}

#[test]
fn a_read_puts_them_there() {
    let mut up = Upstream::new(DISK, 8);
    up.read(7, 0, 9);
    let request = up.requests()[0];
    for (n, segment) in (1u8..).zip(up.segments(&request)) {
        up.map(segment.gref).fill(n);
    }
    up.answer(&request, Status::OKAY);
    let completion = up.frontend.complete().unwrap();
    let buffer = completion.buffer.unwrap();
    assert_eq!(buffer.nr_sectors(), 9);
    let first: Vec<u8> =
        up.frames(&buffer).iter().map(|&frame| up.grants.page(frame).bytes(0..1)[0]).collect();
    assert_eq!(first, [1, 2]);
    up.frontend.give_back(buffer);
}

#[test]
fn a_request_is_as_large_as_the_backend_takes_it() {
    /// Whether it is indirect, and its segments.
    type Sent = (bool, usize);
    // Pages of data, most segments, and what goes into the ring.
    let table: [(u32, u16, &[Sent]); 8] = [
        (11, 11, &[(false, 11)]),
        (12, 11, &[(false, 11), (false, 1)]),
        (33, 11, &[(false, 11), (false, 11), (false, 11)]),
        (11, 256, &[(false, 11)]),
        (12, 256, &[(true, 12)]),
        (256, 256, &[(true, 256)]),
        (267, 256, &[(true, 256), (false, 11)]),
        (40, 14, &[(true, 14), (true, 14), (true, 12)]),
    ];
    for (nr_pages, max_segments, expected) in table {
        let mut up = Upstream::new(Disk { max_segments, ..DISK }, 300);
        up.read(1, 80, nr_pages * 8 - 3);
        let requests = up.requests();
        let mut sector = 80;
        let mut grefs = Vec::new();
        let mut sent = Vec::new();
        for request in &requests {
            let segments = up.segments(request);
            let (indirect, first) = match request.op {
                Operation::Read(transfer) => (false, transfer.sector),
                Operation::Indirect(indirect) => (true, indirect.sector()),
                _ => panic!("{request:?}"),
            };
            assert_eq!(first, Sector(sector));
            sector += segments.iter().map(|segment| u64::from(segment.last_sect) + 1).sum::<u64>();
            sent.push((indirect, segments.len()));
            assert!(segments.iter().all(|segment| segment.first_sect == 0));
            grefs.extend(segments.iter().map(|segment| segment.gref));
            up.answer(request, Status::OKAY);
        }
        assert_eq!(sent, expected, "{nr_pages} pages");
        assert_eq!(sector, 80 + u64::from(nr_pages) * 8 - 3);
        grefs.sort_unstable();
        grefs.dedup();
        assert_eq!(grefs.len(), nr_pages as usize, "each page once");
        assert_eq!(up.results(), [(1, Ok(()))]);
    }
}

#[test]
fn what_the_ring_has_no_room_for_waits_in_order() {
    let mut up = Upstream::new(DISK, 500);
    // 40 parts, of which the ring takes 32.
    up.read(1, 0, 40 * 11 * 8);
    up.read(2, 8000, 8);
    let first = up.requests();
    assert_eq!(first.len(), 32);
    for request in first.iter().rev() {
        up.answer(request, Status::OKAY);
    }
    assert_eq!(up.results(), []);
    let second = up.requests();
    assert_eq!(second.len(), 9);
    up.answer(&second[8], Status::OKAY);
    assert_eq!(up.results(), [(2, Ok(()))]);
    for request in &second[..8] {
        up.answer(request, Status::OKAY);
    }
    assert_eq!(up.results(), [(1, Ok(()))]);
}

#[test]
fn many_are_in_flight_and_come_back_in_any_order() {
    let mut up = Upstream::new(DISK, 40);
    for tag in 0..32 {
        up.read(tag, tag, 1);
    }
    let buffer = up.frontend.reserve(1).unwrap();
    let refused = up.frontend.submit(Tag(99), Request::Read { sector: 0, buffer });
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason, Refusal::Full { max: 32 });
    let Request::Read { buffer, .. } = refused.request else { panic!("{refused:?}") };
    up.frontend.give_back(buffer);
    let requests = up.requests();
    assert_eq!((requests.len(), up.frontend.nr_in_flight()), (32, 32));
    let order = [31, 0, 16, 5];
    for n in order {
        up.answer(&requests[n], Status::OKAY);
    }
    assert_eq!(up.results(), order.map(|n| (n as u64, Ok(()))));
    assert_eq!(up.frontend.nr_in_flight(), 28);
}

#[test]
fn a_part_that_fails_fails_all_once_and_the_rest_is_not_sent() {
    let mut up = Upstream::new(DISK, 500);
    up.read(1, 0, 40 * 11 * 8);
    let requests = up.requests();
    up.answer(&requests[3], Status::EOPNOTSUPP);
    up.answer(&requests[4], Status::ERROR);
    assert_eq!(up.results(), []);
    assert_eq!(up.requests(), []);
    for n in (0..32).filter(|n| ![3, 4].contains(n)) {
        assert_eq!(up.results(), []);
        up.answer(&requests[n], Status::OKAY);
    }
    assert_eq!(up.results(), [(1, Err(Failure::NotSupported))]);
    // The way is free for the next one, and all pages are.
    up.read(2, 0, 500 * 8);
    assert_eq!(up.requests().len(), 32);
}

#[test]
fn an_error_is_an_error() {
    let mut up = Upstream::new(DISK, 2);
    up.read(1, 0, 8);
    up.submit(2, Request::Flush);
    let requests = up.requests();
    up.answer(&requests[0], Status::ERROR);
    up.answer(&requests[1], Status::EOPNOTSUPP);
    let expected = [(1, Err(Failure::Device)), (2, Err(Failure::NotSupported))];
    assert_eq!(up.results(), expected);
    assert_eq!(up.frontend.broken(), None);
}

#[test]
fn durable_by_what_is_offered() {
    let empty = Transfer { sector: Sector(0), segments: Segments::EMPTY };
    let table =
        [(Flush::Cache, Operation::Flush(empty)), (Flush::Barrier, Operation::Barrier(empty))];
    for (flush, op) in table {
        let mut up = Upstream::new(Disk { flush, access: Access::ReadOnly, ..DISK }, 1);
        up.submit(1, Request::Flush);
        let requests = up.requests();
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].op, op);
        up.answer(&requests[0], Status::OKAY);
        assert_eq!(up.results(), [(1, Ok(()))]);
        assert_eq!(up.frontend.flushing(), Flushing::Offered);
    }
    let mut up = Upstream::new(Disk { flush: Flush::None, ..DISK }, 1);
    assert_eq!(up.frontend.flushing(), Flushing::No);
    let refused = Refused { reason: NOT_OFFERED, request: Request::Flush };
    assert_eq!(up.frontend.submit(Tag(1), Request::Flush), Err(refused));
}

#[test]
fn discards_are_whole_and_as_secure_as_asked() {
    let mut up = Upstream::new(Disk { discard: Some(GRANULAR), ..DISK }, 1);
    let (sector, nr_sectors) = (8, (1 << 20) - 8);
    up.submit(1, Request::Discard { sector, nr_sectors });
    up.submit(2, Request::SecureDiscard { sector, nr_sectors });
    let ops: Vec<Operation> = up.requests().iter().map(|request| request.op).collect();
    let discard = |secure| Operation::Discard { sector: Sector(sector), nr_sectors, secure };
    assert_eq!(ops, [discard(false), discard(true)]);
}

#[test]
fn what_does_not_fit_the_disk_is_not_sent() {
    let refusal = |disk: Disk, request: fn(&mut Upstream) -> Request<Buffer>| {
        let mut up = Upstream::new(disk, 8);
        let request = request(&mut up);
        let refused = up.frontend.submit(Tag(1), request).unwrap_err();
        assert_eq!(up.requests(), []);
        assert_eq!(up.frontend.nr_in_flight(), 0);
        refused.reason
    };
    let write =
        |up: &mut Upstream| Request::Write { sector: 0, buffer: up.frontend.reserve(8).unwrap() };
    let read_last = |up: &mut Upstream| Request::Read {
        sector: (1 << 20) - 7,
        buffer: up.frontend.reserve(8).unwrap(),
    };
    let read_beyond = |up: &mut Upstream| Request::Read {
        sector: u64::MAX - 7,
        buffer: up.frontend.reserve(8).unwrap(),
    };
    let discard = |_: &mut Upstream| Request::Discard { sector: 8, nr_sectors: 0 };
    let secure = |_: &mut Upstream| Request::SecureDiscard { sector: 8, nr_sectors: 8 };

    assert_eq!(refusal(Disk { access: Access::ReadOnly, ..DISK }, write), READ_ONLY);
    assert_eq!(refusal(DISK, read_last), RANGE);
    assert_eq!(refusal(DISK, read_beyond), RANGE);
    let large = Disk { logical: BlockSize::B4096, nr_sectors: 1 << 21, ..DISK };
    assert_eq!(refusal(large, read_last), RANGE);
    assert_eq!(refusal(DISK, discard), NOT_OFFERED);
    let granular = Disk { discard: Some(GRANULAR), ..DISK };
    assert_eq!(refusal(granular, discard), RANGE);
    let limits = DiscardLimits { secure: SecureDiscard::No, ..GRANULAR };
    assert_eq!(refusal(Disk { discard: Some(limits), ..DISK }, secure), NOT_OFFERED);
    let read_only = Disk { access: Access::ReadOnly, ..granular };
    assert_eq!(refusal(read_only, secure), READ_ONLY);
}

#[test]
fn a_disk_that_shrinks_is_asked_for_no_more_than_it_has() {
    let mut up = Upstream::new(DISK, 8);
    up.frontend.resize(8);
    assert_eq!(up.frontend.disk().nr_sectors, 8);
    let buffer = up.frontend.reserve(8).unwrap();
    let refused = up.frontend.submit(Tag(1), Request::Read { sector: 1, buffer });
    let reason = refused.unwrap_err().reason;
    assert_eq!(reason, RANGE);
}

#[test]
fn the_backend_is_told_only_if_it_waits() {
    let mut up = Upstream::new(DISK, 8);
    let told = |up: &Upstream| up.machine.events().take_port(up.backend, up.port);
    up.read(1, 0, 1);
    up.publish();
    // A ring begins with the wish to be told of the first request.
    assert!(told(&up));
    up.read(2, 0, 1);
    up.publish();
    assert!(!told(&up));
    up.publish();
    assert!(!told(&up));
    assert_eq!(up.requests().len(), 2);
    assert_eq!(up.ring.final_check(), Ok(blkif::FinalCheck::Idle));
    up.read(3, 0, 1);
    up.publish();
    assert!(told(&up));
}

#[test]
fn an_event_is_asked_for_before_we_wait() {
    let mut up = Upstream::new(DISK, 8);
    for tag in 0..2 {
        up.read(tag, 0, 1);
    }
    let requests = up.requests();
    assert_eq!(up.results(), []);
    up.ring.push(&requests[1].response(Status::OKAY)).unwrap();
    assert_eq!(up.ring.publish(), blkif::Notify::Needed);
    up.ring.push(&requests[0].response(Status::OKAY)).unwrap();
    assert_eq!(up.ring.publish(), blkif::Notify::NotNeeded);
    assert_eq!(up.results(), [(1, Ok(())), (0, Ok(()))]);
}

#[test]
fn a_buffer_has_the_pages_of_its_segments_too() {
    let mut up = Upstream::new(Disk { max_segments: 256, ..DISK }, 13);
    // 12 pages of data, and one for their segments.
    assert_eq!(up.frontend.max_sectors(), 96);
    assert_eq!(up.frontend.reserve(97), None);
    assert_eq!(up.frontend.reserve(0), None);
    let all = up.frontend.reserve(96).unwrap();
    assert_eq!(up.frontend.reserve(1), None);
    up.frontend.give_back(all);
    // Without such a page.
    let most = up.frontend.reserve(88).unwrap();
    let one = up.frontend.reserve(1).unwrap();
    let other = up.frontend.reserve(1).unwrap();
    assert_eq!(up.frontend.reserve(1), None);
    let frame = |up: &Upstream, buffer: &Buffer| up.frames(buffer)[0];
    let last = frame(&up, &one);
    for buffer in [most, other, one] {
        up.frontend.give_back(buffer);
    }
    // What was given back last is used first.
    let again = up.frontend.reserve(1).unwrap();
    assert_eq!(frame(&up, &again), last);
    up.frontend.give_back(again);
    assert_eq!(up.frontend.reserve(96).map(|buffer| buffer.nr_sectors()), Some(96));
}

#[test]
fn the_longest_buffer_is_the_longest() {
    for max_segments in [11, 12, 13, 64, 256] {
        for nr_frames in [1, 11, 12, 13, 24, 25, 26, 27, 64, 65, 76, 77, 267, 268, 269, 270] {
            let mut up = Upstream::new(Disk { max_segments, ..DISK }, nr_frames);
            let longest = up.frontend.max_sectors() as u32;
            assert!(longest > 0);
            let what = format!("{nr_frames} frames, {max_segments} segments");
            assert_eq!(up.frontend.reserve(longest + 1), None, "{what}");
            let buffer = up.frontend.reserve(longest);
            assert_eq!(buffer.map(|buffer| buffer.nr_sectors()), Some(longest), "{what}");
        }
    }
}

#[test]
fn nothing_that_was_in_a_frame_is_told() {
    let mut up = Upstream::new(DISK, 3);
    up.read(1, 0, 24);
    let request = up.requests()[0];
    for segment in up.segments(&request) {
        assert_eq!(up.map(segment.gref).bytes(0..PAGE_SIZE), [0; PAGE_SIZE]);
    }
    // Nor in the ring, behind the request that is there.
    let rest = up.ring_page.bytes(64 + 112..PAGE_SIZE);
    assert!(rest.iter().all(|&byte| byte == 0));
}

#[test]
fn a_frame_is_ours_again_when_the_backend_has_let_go() {
    let mut up = Upstream::new(DISK, 3);
    up.read(1, 0, 8);
    let request = up.requests()[0];
    let segments = up.segments(&request);
    up.map(segments[0].gref);
    up.answer(&request, Status::OKAY);
    assert_eq!(up.results().len(), 1);
    let Upstream { machine, us, backend, mut grants, mut retired, frontend, mut handles, .. } = up;
    frontend.retire(&mut retired);
    assert_eq!(retired.nr_frames(), 4);
    let mut back = Vec::new();
    // The ring and one page are mapped.
    assert_eq!(retired.reclaim(&mut grants, |frame| back.push(frame)), 2);
    assert_eq!(back.len(), 2);
    assert!(!back.contains(&FIRST));
    assert_eq!(machine.grants().nr_grants(us), 2);
    assert_eq!(retired.reclaim(&mut grants, |frame| back.push(frame)), 2);
    machine.grants().unmap(backend, handles.remove(0)).unwrap();
    assert_eq!(retired.reclaim(&mut grants, |frame| back.push(frame)), 1);
    assert!(back.contains(&FIRST));
    // A domain that is destroyed has nothing mapped.
    machine.destroy_domain(backend);
    assert_eq!(retired.reclaim(&mut grants, |frame| back.push(frame)), 0);
    back.sort_unstable();
    assert_eq!(back, [vec![FIRST], frames(3)].concat());
    assert_eq!(machine.grants().nr_grants(us), 0);
}

#[test]
fn what_is_abandoned_has_failed() {
    let mut up = Upstream::new(DISK, 100);
    // One answered, one in flight, one that waits.
    up.read(1, 0, 1);
    up.read(2, 0, 1);
    let requests = up.requests();
    up.answer(&requests[0], Status::OKAY);
    up.submit(3, Request::Flush);
    assert_eq!(up.results(), [(1, Ok(()))]);
    up.frontend.abandon();
    let mut results = up.results();
    results.sort_by_key(|result| result.0);
    assert_eq!(results, [(2, Err(Failure::Gone)), (3, Err(Failure::Gone))]);
    assert_eq!(up.results(), []);
    assert_eq!(up.requests(), []);
    assert_eq!(up.frontend.nr_in_flight(), 0);
    let refused = Refused { reason: Refusal::Failed(Failure::Gone), request: Request::Flush };
    assert_eq!(up.frontend.submit(Tag(4), Request::Flush), Err(refused));
    assert_eq!(up.frontend.broken(), None);
}

#[test]
fn without_grants_there_is_no_ring_and_no_pool() {
    let machine = Machine::new(1);
    let (us, backend) = (machine.create_domain(), machine.create_domain());
    let mut grants = OwnGrants::new(&machine, us, FIRST, 8);
    let mut retired = Retired::new();
    let port = EvtchnPort(1);
    grants.max_grants = 3;
    let ring = |frames: &[Gfn], grants: &mut OwnGrants, retired: &mut Retired| {
        Ring::grant(frames, backend, port, grants, retired)
    };
    let error = ring(&frames(4), &mut grants, &mut retired).err();
    assert_eq!(error, Some(NoRing::Grants(OutOfGrants { needed: 4, free: 3 })));
    assert_eq!(retired.reclaim(&mut grants, |_| {}), 0);
    let error = ring(&frames(3), &mut grants, &mut retired).err();
    let error = error.unwrap().to_string();
    assert_eq!(error, "12288 bytes are no ring of 1 to 32 pages");
    let mut nr_back = 0;
    assert_eq!(retired.reclaim(&mut grants, |_| nr_back += 1), 0);
    assert_eq!((nr_back, machine.grants().nr_grants(us)), (3, 0));

    let two = ring(&frames(2), &mut grants, &mut retired).ok().unwrap();
    assert_eq!(two.port(), port);
    let pool = [Gfn(103), Gfn(104)];
    let error = Frontend::connect(two, DISK, &pool, backend, &mut grants, &mut retired).err();
    assert_eq!(error, Some(OutOfGrants { needed: 2, free: 1 }));
    let mut back = Vec::new();
    assert_eq!(retired.reclaim(&mut grants, |frame| back.push(frame.0)), 0);
    back.sort_unstable();
    assert_eq!((back, machine.grants().nr_grants(us)), (vec![101, 102, 103, 104], 0));
}
