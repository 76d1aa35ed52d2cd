//! Backends that do what no backend may do.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

mod upstream;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use blkfront::{Broken, Disk};
use blkif::{OpCode, ProducerOverrun, Request as Wire, RequestId, Response, Status, layout};
use proptest::prelude::*;
use store::{Device, Failure, Refusal, Refused, Request, Tag};
use upstream::{DISK, Upstream};
use xen_abi::PAGE_SIZE;

const GONE: Result<(), Failure> = Err(Failure::Gone);

/// Three reads, on the ring.
fn three() -> (Upstream, Vec<Wire>) {
    let mut up = Upstream::new(DISK, 8);
    for tag in 0..3 {
        up.read(tag, tag * 8, 8);
    }
    let requests = up.requests();
    (up, requests)
}

/// The ring is dead: everything has failed once, nothing is taken, nothing touches the ring.
fn is_dead(mut up: Upstream, broken: Broken, failed: &[u64]) {
    let results = up.results();
    assert_eq!(up.frontend.broken(), Some(broken));
    assert_eq!(results, failed.iter().map(|&tag| (tag, GONE)).collect::<Vec<_>>());
    assert_eq!(up.results(), []);
    assert_eq!(up.frontend.nr_in_flight(), 0);

    // What it was told while it was well.
    up.machine.events().take_port(up.backend, up.port);
    let nr_accesses = Rc::new(Cell::new(0));
    let count = nr_accesses.clone();
    up.ring_page.set_hook(move |_, _| count.set(count.get() + 1));
    let refused = Refused { reason: Refusal::Failed(Failure::Gone), request: Request::Flush };
    assert_eq!(up.frontend.submit(Tag(9), Request::Flush), Err(refused));
    up.publish();
    assert_eq!(up.results(), []);
    assert_eq!(nr_accesses.get(), 0, "a dead ring is used");
    assert!(!up.machine.events().take_port(up.backend, up.port), "a broken backend is told");
    // Pages that were in flight are not handed out again.
    assert_eq!(up.frontend.reserve(8 * (8 - failed.len() as u32) + 1), None);

    // What it has mapped stays granted, and is no frame that may be used for anything else.
    let nr_mapped = up.handles.len();
    up.frontend.retire(&mut up.retired);
    let mut back = BTreeSet::new();
    let in_use = up.retired.reclaim(&mut up.grants, |frame| assert!(back.insert(frame)));
    assert_eq!(in_use, nr_mapped);
    assert_eq!(back.len(), 9 - nr_mapped);
    assert_eq!(up.machine.grants().nr_active(up.us), nr_mapped);
    for handle in up.handles.drain(..) {
        up.machine.grants().unmap(up.backend, handle).unwrap();
    }
    assert_eq!(up.retired.reclaim(&mut up.grants, |frame| assert!(back.insert(frame))), 0);
    assert_eq!(back.len(), 9);
}

#[test]
fn xsa_376_responses_that_are_more_than_requests() {
    for produced in [4, 33, 0x8000_0000, u32::MAX] {
        let (up, _) = three();
        up.ring_page.store_u32(layout::RSP_PROD, produced);
        let overrun = ProducerOverrun { consumed: 0, produced, room: 3 };
        is_dead(up, Broken::ProducerOverrun(overrun), &[0, 1, 2]);
    }
}

#[test]
fn a_producer_that_goes_back() {
    let (mut up, requests) = three();
    up.answer(&requests[0], Status::OKAY);
    up.answer(&requests[1], Status::OKAY);
    assert_eq!(up.results().len(), 2);
    up.ring_page.store_u32(layout::RSP_PROD, 1);
    let overrun = ProducerOverrun { consumed: 2, produced: 1, room: 1 };
    is_dead(up, Broken::ProducerOverrun(overrun), &[2]);
}

#[test]
fn responses_before_any_request_is_shown() {
    let mut up = Upstream::new(DISK, 8);
    up.read(0, 0, 8);
    up.ring_page.store_u32(layout::RSP_PROD, 1);
    let overrun = ProducerOverrun { consumed: 0, produced: 1, room: 0 };
    is_dead(up, Broken::ProducerOverrun(overrun), &[0]);
}

#[test]
fn an_answer_to_what_was_not_asked() {
    // No slot, a slot that is free, one that is in use under another id.
    for id in [32, u64::MAX, 3, 1 << 32] {
        let (mut up, requests) = three();
        let id = RequestId(id);
        up.respond(&Response { id, ..requests[0].response(Status::OKAY) });
        is_dead(up, Broken::UnknownId { id }, &[0, 1, 2]);
    }
}

#[test]
fn the_same_answer_twice() {
    let (mut up, requests) = three();
    up.answer(&requests[1], Status::OKAY);
    up.answer(&requests[1], Status::OKAY);
    let completion = up.frontend.complete().unwrap();
    assert_eq!((completion.tag, completion.result), (Tag(1), Ok(())));
    up.frontend.give_back(completion.buffer.unwrap());
    is_dead(up, Broken::UnknownId { id: requests[1].id }, &[0, 2]);
}

#[test]
fn the_same_answer_again_once_its_slot_is_used_anew() {
    let (mut up, requests) = three();
    up.answer(&requests[1], Status::OKAY);
    assert_eq!(up.results(), [(1, Ok(()))]);
    up.read(3, 0, 8);
    let again = up.requests();
    // The same slot, and yet another id.
    assert_eq!(again[0].id.0 as u32, requests[1].id.0 as u32);
    up.answer(&requests[1], Status::OKAY);
    // In the order of slots of our table, not of the ring.
    is_dead(up, Broken::UnknownId { id: requests[1].id }, &[0, 3, 2]);
}

#[test]
fn an_answer_under_the_id_that_a_slot_will_have_next() {
    let (mut up, requests) = three();
    up.answer(&requests[1], Status::OKAY);
    let id = RequestId(requests[1].id.0 + (1 << 32));
    up.respond(&Response { id, ..requests[1].response(Status::OKAY) });
    let completion = up.frontend.complete().unwrap();
    assert_eq!((completion.tag, completion.result), (Tag(1), Ok(())));
    up.frontend.give_back(completion.buffer.unwrap());
    is_dead(up, Broken::UnknownId { id }, &[0, 2]);
}

#[test]
fn an_answer_to_another_operation() {
    for answered in [OpCode::WRITE, OpCode::INDIRECT, OpCode(255)] {
        let (mut up, requests) = three();
        up.respond(&Response { operation: answered, ..requests[2].response(Status::OKAY) });
        is_dead(up, Broken::WrongOperation { asked: OpCode::READ, answered }, &[0, 1, 2]);
    }
    // An indirect request is answered as what it is inside.
    let mut up = Upstream::new(Disk { max_segments: 64, ..DISK }, 20);
    up.read(0, 0, 100);
    let request = up.requests()[0];
    up.respond(&Response { operation: OpCode::INDIRECT, ..request.response(Status::OKAY) });
    assert_eq!(up.results(), [(0, GONE)]);
    let answered = OpCode::INDIRECT;
    assert_eq!(
        up.frontend.broken(),
        Some(Broken::WrongOperation { asked: OpCode::READ, answered })
    );
}

#[test]
fn a_status_that_nobody_knows() {
    for status in [1, -3, i16::MIN, i16::MAX].map(Status) {
        let (mut up, requests) = three();
        up.answer(&requests[0], status);
        is_dead(up, Broken::UnknownStatus { status }, &[0, 1, 2]);
    }
}

#[test]
fn what_was_answered_before_the_ring_broke_is_answered() {
    let (mut up, requests) = three();
    up.ring.push(&requests[2].response(Status::OKAY)).unwrap();
    up.ring.push(&requests[0].response(Status(7))).unwrap();
    let _ = up.ring.publish();
    let completion = up.frontend.complete().unwrap();
    assert_eq!((completion.tag, completion.result), (Tag(2), Ok(())));
    up.frontend.give_back(completion.buffer.unwrap());
    is_dead(up, Broken::UnknownStatus { status: Status(7) }, &[0, 1]);
}

#[test]
fn xsa_391_events_without_a_response_cost_one_look() {
    let (mut up, _) = three();
    assert_eq!(up.results(), []);
    up.ring_page.count_fetches();
    for _ in 0..1000 {
        assert_eq!(up.frontend.complete(), None);
    }
    // The index, before and after the wish to be told is written: nothing else.
    assert_eq!(up.ring_page.fetches(0..PAGE_SIZE).iter().sum::<u32>(), 1000 * 2 * 4);
}

#[test]
fn a_response_is_fetched_once_and_then_ours() {
    let (mut up, requests) = three();
    for request in &requests {
        up.answer(request, Status::OKAY);
    }
    up.ring_page.count_fetches();
    let scribbled = Rc::new(Cell::new(0));
    let count = scribbled.clone();
    // Whatever of a slot has been fetched is another thing at once.
    up.ring_page.set_hook(move |page, access| {
        if let sim::Access::Fetch { offset, len_bytes } = access
            && offset >= layout::RING
        {
            page.write(offset, &vec![0xff; len_bytes]);
            count.set(count.get() + 1);
        }
    });
    assert_eq!(up.results(), [(0, Ok(())), (1, Ok(())), (2, Ok(()))]);
    assert_eq!(scribbled.get(), 3);
    let fetches = up.ring_page.fetches(layout::RING..PAGE_SIZE);
    assert!(fetches.iter().all(|&nr| nr <= 1));
}

#[test]
fn indices_of_ours_are_never_read_back() {
    let (mut up, requests) = three();
    up.ring_page.store_u32(layout::REQ_PROD, 77);
    up.ring_page.store_u32(layout::RSP_EVENT, 0xffff_0000);
    up.answer(&requests[0], Status::OKAY);
    assert_eq!(up.results(), [(0, Ok(()))]);
    up.read(3, 0, 8);
    up.publish();
    assert_eq!(up.ring_page.load_u32(layout::REQ_PROD), 4);
    assert_eq!(up.frontend.broken(), None);
}

#[test]
fn xsa_396_a_page_that_is_still_mapped_is_not_taken_back() {
    let (mut up, requests) = three();
    let segments = up.segments(&requests[0]);
    let page = up.map(segments[0].gref);
    up.frontend.abandon();
    assert_eq!(up.results().len(), 3);
    let Upstream { machine, us, mut grants, mut retired, frontend, .. } = up;
    frontend.retire(&mut retired);
    let mut back = Vec::new();
    assert_eq!(retired.reclaim(&mut grants, |frame| back.push(frame)), 2);
    // It writes; in none of the frames that are ours again is it seen.
    page.fill(0x66);
    assert!(back.iter().all(|&frame| grants.page(frame).bytes(0..1) != [0x66]));
    assert_eq!(machine.grants().nr_active(us), 2);
    assert_eq!(retired.nr_frames(), 2);
}

#[test]
fn xsa_403_it_finds_nothing_in_our_pages_that_was_not_for_it() {
    let up = Upstream::new(Disk { max_segments: 256, ..DISK }, 40);
    let Upstream { machine, us, backend, .. } = &up;
    let nr_grants = machine.grants().nr_grants(*us);
    assert_eq!(nr_grants, 41);
    // It need not wait for a request to name them: references are easily guessed.
    let mut nr_mapped = 0;
    for gref in 0..200 {
        let gref = xen_abi::GrantRef(gref);
        let mapped = machine.grants().map(*backend, *us, gref, sim::GrantAccess::ReadWrite);
        let Ok((_, page)) = mapped else { continue };
        nr_mapped += 1;
        if !page.is(&up.ring_page) {
            assert!(page.bytes(0..PAGE_SIZE).iter().all(|&byte| byte == 0), "{gref:?}");
        }
    }
    assert_eq!(nr_mapped, nr_grants);
}

/// What a backend does next.
#[derive(Clone, Debug)]
enum Act {
    Answer(usize),
    Fail(usize),
    Twice(usize),
    Ask(u64, u32),
    Flush,
    Publish,
    Scribble(usize, Vec<u8>),
    RspProd(u32),
    Complete,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => any::<usize>().prop_map(Act::Answer),
        1 => any::<usize>().prop_map(Act::Fail),
        1 => any::<usize>().prop_map(Act::Twice),
        6 => (0u64..1000, 1u32..300).prop_map(|(sector, nr)| Act::Ask(sector, nr)),
        1 => Just(Act::Flush),
        4 => Just(Act::Publish),
        1 => (0..PAGE_SIZE - 8, prop::collection::vec(any::<u8>(), 1..8))
            .prop_map(|(at, bytes)| Act::Scribble(at, bytes)),
        1 => (0u32..40).prop_map(Act::RspProd),
        4 => Just(Act::Complete),
    ]
}

proptest! {
    #[test]
    fn whatever_it_does_each_request_is_over_exactly_once(
        acts in prop::collection::vec(act(), 1..150),
    ) {
        let mut up = Upstream::new(Disk { max_segments: 32, ..DISK }, 120);
        let mut known: Vec<Wire> = Vec::new();
        let mut open = BTreeSet::new();
        let mut last_tag = 0;
        for act in acts {
            match act {
                Act::Answer(n) if !known.is_empty() => {
                    let request = known.swap_remove(n % known.len());
                    let _ = up.ring.push(&request.response(Status::OKAY));
                    let _ = up.ring.publish();
                }
                Act::Fail(n) if !known.is_empty() => {
                    let request = known.swap_remove(n % known.len());
                    let _ = up.ring.push(&request.response(Status::ERROR));
                    let _ = up.ring.publish();
                }
                Act::Twice(n) if !known.is_empty() => {
                    let response = known[n % known.len()].response(Status::OKAY);
                    let _ = up.ring.push(&response);
                    let _ = up.ring.publish();
                }
                Act::Ask(sector, nr_sectors) => {
                    if let Some(buffer) = up.frontend.reserve(nr_sectors) {
                        last_tag += 1;
                        let request = Request::Read { sector, buffer };
                        match up.frontend.submit(Tag(last_tag), request) {
                            Ok(()) => prop_assert!(open.insert(last_tag)),
                            Err(Refused { request: Request::Read { buffer, .. }, .. }) => {
                                up.frontend.give_back(buffer);
                            }
                            Err(refused) => panic!("{refused:?}"),
                        }
                    }
                }
                Act::Flush => {
                    last_tag += 1;
                    if up.frontend.submit(Tag(last_tag), Request::Flush).is_ok() {
                        prop_assert!(open.insert(last_tag));
                    }
                }
                Act::Publish => {
                    up.publish();
                    if up.ring.unconsumed().is_ok() {
                        while let Some(request) = up.ring.consume() {
                            known.extend(request);
                        }
                    }
                }
                Act::Scribble(at, bytes) => up.ring_page.write(at, &bytes),
                Act::RspProd(produced) => up.ring_page.store_u32(layout::RSP_PROD, produced),
                Act::Complete => over(&mut up, &mut open),
                _ => {}
            }
            prop_assert_eq!(up.frontend.nr_in_flight(), open.len());
        }
        up.frontend.abandon();
        over(&mut up, &mut open);
        prop_assert!(open.is_empty(), "{:?} are never over", open);
        let Upstream { mut grants, mut retired, frontend, machine, us, .. } = up;
        frontend.retire(&mut retired);
        // The ring is mapped, and nothing else.
        prop_assert_eq!(retired.reclaim(&mut grants, |_| {}), 1);
        prop_assert_eq!(machine.grants().nr_grants(us), 1);
    }
}

/// Takes what is over.
fn over(up: &mut Upstream, open: &mut BTreeSet<u64>) {
    for (tag, _) in up.results() {
        assert!(open.remove(&tag), "{tag} is over twice");
    }
}
