//! Each half of a ring alone, against indices and bytes that the test writes.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "helpers of tests, too")]

mod common;

use blkif::layout::{REQ_EVENT, REQ_PROD, RING, RSP_EVENT, RSP_PROD};
use blkif::{
    Abi, BackRing, BadRingLength, FinalCheck, FrontRing, Malformed, MalformedReason,
    MaxIndirectSegments, Notify, OpCode, Operation, ProducerOverrun, Request, RequestId, Response,
    ResponseUnasked, RingFull, RingOrder, Sector, Segment, Segments, Slot, Status, Transfer,
};
use common::{CountingMemory, RacyMemory, Rng};
use proptest::prelude::*;
use xen_abi::GrantRef;

const ABIS: [Abi; 2] = [Abi::X86_64, Abi::X86_32];
const MAX: MaxIndirectSegments = MaxIndirectSegments::MAX;

/// Indices at which a ring may stand: the first, and around the wrap.
const STARTS: [u32; 6] = [0, 1, 31, u32::MAX - 32, u32::MAX - 1, u32::MAX];

fn request(id: u64) -> Request {
    let segment = Segment { gref: GrantRef(8), first_sect: 0, last_sect: 7 };
    let transfer =
        Transfer { sector: Sector(id * 8), segments: Segments::new(&[segment; 11]).unwrap() };
    Request { id: RequestId(id), handle: 51712, op: Operation::Write(transfer) }
}

fn slot_offset(abi: Abi, nr_entries: u32, index: u32) -> usize {
    RING + (index % nr_entries) as usize * abi.layout().entry_len_bytes
}

fn back(memory: &CountingMemory, abi: Abi, at: u32) -> BackRing<&CountingMemory> {
    memory.poke_u32(REQ_PROD, at);
    BackRing::attach_at(memory, abi, MAX, at).unwrap()
}

/// As a frontend produces: slots, then the index.
fn produce(memory: &CountingMemory, abi: Abi, nr_entries: u32, from: u32, slots: &[Slot]) {
    let mut index = from;
    for slot in slots {
        let len_bytes = abi.layout().entry_len_bytes;
        memory.poke(slot_offset(abi, nr_entries, index), &slot.0[..len_bytes]);
        index = index.wrapping_add(1);
    }
    memory.poke_u32(REQ_PROD, index);
}

fn requests(range: std::ops::Range<u64>, abi: Abi) -> Vec<Slot> {
    range.map(|id| request(id).encode(abi)).collect()
}

#[test]
fn only_1_to_32_pages_are_a_ring() {
    for order in 0..=5 {
        let memory = CountingMemory::new(RingOrder::new(order).unwrap(), 0);
        for abi in ABIS {
            assert_eq!(FrontRing::init(&memory, abi).unwrap().nr_entries(), 32 << order);
            assert_eq!(BackRing::attach(&memory, abi, MAX).unwrap().nr_entries(), 32 << order);
        }
    }
    for len_bytes in [0, 64, 4095, 4097, 3 * 4096, 64 * 4096] {
        let memory = CountingMemory::of_len(len_bytes, 0);
        let bad = BadRingLength { len_bytes };
        assert_eq!(FrontRing::init(&memory, Abi::X86_64).err(), Some(bad));
        assert_eq!(BackRing::attach(&memory, Abi::X86_64, MAX).err(), Some(bad));
    }
}

#[test]
fn only_the_frontend_initialises_the_shared_ring_and_only_its_header() {
    let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0xaa);
    let _back = BackRing::attach(&memory, Abi::X86_64, MAX).unwrap();
    assert_eq!(memory.bytes(), vec![0xaa; 4096]);
    let _front = FrontRing::init(&memory, Abi::X86_64).unwrap();
    let mut header = [0; 64];
    header[REQ_EVENT] = 1;
    header[RSP_EVENT] = 1;
    assert_eq!(memory.bytes()[..64], header);
    assert_eq!(memory.bytes()[64..], vec![0xaa; 4096 - 64]);
}

#[test]
fn a_producer_up_to_a_full_ring_is_taken_and_one_more_is_an_overrun() {
    for abi in ABIS {
        for at in STARTS {
            let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0xaa);
            let mut ring = back(&memory, abi, at);
            memory.forget_fetches();
            for nr in [0, 1, 31, 32] {
                memory.poke_u32(REQ_PROD, at.wrapping_add(nr));
                assert_eq!(ring.unconsumed(), Ok(nr));
            }
            for nr in [33, 34, 64, 0x8000_0000, u32::MAX] {
                let produced = at.wrapping_add(nr);
                memory.poke_u32(REQ_PROD, produced);
                let overrun = ProducerOverrun { consumed: at, produced, room: 32 };
                assert_eq!(ring.unconsumed(), Err(overrun));
                assert_eq!(ring.final_check(), Err(overrun));
            }
            assert!(memory.fetches()[RING..].iter().all(|&n| n == 0), "a slot was touched");
        }
    }
}

#[test]
fn outstanding_requests_leave_that_much_less_room() {
    let abi = Abi::X86_64;
    for at in STARTS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        let mut ring = back(&memory, abi, at);
        produce(&memory, abi, 32, at, &requests(0..32, abi));
        assert_eq!(ring.unconsumed(), Ok(32));
        for id in 0..20 {
            assert_eq!(ring.consume(), Some(Ok(request(id))));
        }
        assert_eq!(ring.outstanding(), 20);
        // The same producer still stands for the other 12; a 33rd request would overwrite the first.
        assert_eq!(ring.unconsumed(), Ok(12));
        let consumed = at.wrapping_add(20);
        let produced = at.wrapping_add(33);
        memory.poke_u32(REQ_PROD, produced);
        assert_eq!(ring.unconsumed(), Err(ProducerOverrun { consumed, produced, room: 12 }));
        // Nor may it go back behind what was consumed.
        let produced = at.wrapping_add(19);
        memory.poke_u32(REQ_PROD, produced);
        assert_eq!(ring.unconsumed(), Err(ProducerOverrun { consumed, produced, room: 12 }));
        // One answer makes room for one.
        ring.push(&request(0).response(Status::OKAY)).unwrap();
        memory.poke_u32(REQ_PROD, at.wrapping_add(33));
        assert_eq!(ring.unconsumed(), Ok(13));
    }
}

#[test]
fn what_a_frontend_waits_for_is_in_flight() {
    let abi = Abi::X86_64;
    for at in STARTS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        let mut ring = back(&memory, abi, at);
        assert_eq!(ring.nr_in_flight(), 0);
        produce(&memory, abi, 32, at, &requests(0..5, abi));
        assert_eq!(ring.nr_in_flight(), 5);
        // To ask does not let it consume them.
        assert!(ring.consume().is_none());
        ring.unconsumed().unwrap();
        let first = ring.consume().unwrap().unwrap();
        ring.consume().unwrap().unwrap();
        assert_eq!(ring.nr_in_flight(), 5);
        ring.push(&first.response(Status::OKAY)).unwrap();
        assert_eq!(ring.nr_in_flight(), 4);
        memory.poke_u32(REQ_PROD, at.wrapping_add(32));
        assert_eq!(ring.nr_in_flight(), 31);
        // One more than the ring has room for with one outstanding.
        memory.poke_u32(REQ_PROD, at.wrapping_add(34));
        assert_eq!(ring.nr_in_flight(), 1);
    }
}

#[test]
fn no_more_is_consumed_than_was_looked_for() {
    let abi = Abi::X86_64;
    let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
    let mut ring = back(&memory, abi, 0);
    produce(&memory, abi, 32, 0, &requests(0..2, abi));
    assert_eq!(ring.consume(), None);
    assert_eq!(ring.unconsumed(), Ok(2));
    produce(&memory, abi, 32, 2, &requests(2..3, abi));
    assert_eq!(ring.consume(), Some(Ok(request(0))));
    assert_eq!(ring.consume(), Some(Ok(request(1))));
    assert_eq!(ring.consume(), None);
    assert_eq!(ring.unconsumed(), Ok(1));
    // What was found stays good when the index then runs away.
    memory.poke_u32(REQ_PROD, 1000);
    assert_eq!(ring.unconsumed(), Err(ProducerOverrun { consumed: 2, produced: 1000, room: 30 }));
    assert_eq!(ring.consume(), Some(Ok(request(2))));
    assert_eq!(ring.consume(), None);
}

#[test]
fn a_malformed_request_is_consumed_and_the_next_one_is_whole() {
    for abi in ABIS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        let mut ring = back(&memory, abi, 0);
        let mut bad = request(7).encode(abi);
        bad.0[1] = 12;
        produce(&memory, abi, 32, 0, &[bad, request(8).encode(abi)]);
        assert_eq!(ring.unconsumed(), Ok(2));
        let malformed = Malformed {
            id: RequestId(7),
            operation: OpCode::WRITE,
            reason: MalformedReason::TooManySegments { claimed: 12, max: 11 },
        };
        assert_eq!(ring.consume(), Some(Err(malformed)));
        assert_eq!(ring.consume(), Some(Ok(request(8))));
        assert_eq!(ring.push(&malformed.response()), Ok(()));
    }
}

#[test]
fn every_slot_of_every_ring_is_reached_at_every_index() {
    for abi in ABIS {
        for order in (0..=5).map(|order| RingOrder::new(order).unwrap()) {
            let nr = abi.nr_entries(order);
            let start = u32::MAX - nr / 2;
            let memory = CountingMemory::new(order, 0);
            let mut ring = back(&memory, abi, start);
            produce(&memory, abi, nr, start, &requests(0..nr.into(), abi));
            assert_eq!(ring.unconsumed(), Ok(nr));
            for id in 0..nr.into() {
                assert_eq!(ring.consume(), Some(Ok(request(id))));
            }
            assert_eq!(ring.consume(), None);
        }
    }
}

/// XSA-155: what was checked must be what is used, so the ring is fetched once. The index is
/// fetched once a look, each byte of a slot once a request.
#[test]
fn xsa_155_each_byte_of_a_slot_is_fetched_once() {
    for abi in ABIS {
        for order in (0..=5).map(|order| RingOrder::new(order).unwrap()) {
            let nr = abi.nr_entries(order);
            let entry = abi.layout().entry_len_bytes;
            let memory = CountingMemory::new(order, 0);
            let mut ring = back(&memory, abi, u32::MAX - 1);
            produce(&memory, abi, nr, u32::MAX - 1, &requests(0..nr.into(), abi));
            memory.forget_fetches();

            assert_eq!(ring.unconsumed(), Ok(nr));
            let mut index_only = vec![0; memory.bytes().len()];
            index_only[REQ_PROD..REQ_PROD + 4].fill(1);
            assert_eq!(memory.fetches(), index_only);

            memory.forget_fetches();
            while let Some(request) = ring.consume() {
                let response = request.unwrap().response(Status::OKAY);
                ring.push(&response).unwrap();
            }
            let slots_end = RING + nr as usize * entry;
            let fetches = memory.fetches();
            assert!(fetches[..RING].iter().all(|&n| n == 0), "an index of ours was read back");
            assert!(fetches[RING..slots_end].iter().all(|&n| n == 1));
            assert!(fetches[slots_end..].iter().all(|&n| n == 0));

            memory.forget_fetches();
            let _ = ring.publish();
            let mut event_only = vec![0; memory.bytes().len()];
            event_only[RSP_EVENT..RSP_EVENT + 4].fill(1);
            assert_eq!(memory.fetches(), event_only);
        }
    }
}

/// XSA-155 again: a peer that rewrites the whole ring before each of our accesses changes nothing
/// of a request once it is out, and only ever yields a request, a malformed one, or an overrun.
#[test]
fn xsa_155_a_ring_that_changes_under_every_access_is_survived() {
    let mut nr_requests = 0;
    let mut nr_overruns = 0;
    for seed in 0..300 {
        let abi = ABIS[seed as usize % 2];
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        let rng = std::cell::RefCell::new(Rng(seed));
        let peer = || {
            let mut rng = rng.borrow_mut();
            let noise: Vec<u8> = (0..4096 / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
            memory.poke(0, &noise);
            // Mostly a producer that could be, or nothing would ever be consumed.
            let produced = rng.below(40);
            memory.poke_u32(REQ_PROD, produced);
        };
        let racy = RacyMemory { inner: &memory, peer };
        let mut ring = BackRing::attach(racy, abi, MAX).unwrap();
        loop {
            match ring.unconsumed() {
                Ok(nr) => assert!(nr + ring.outstanding() <= 32),
                Err(overrun) => {
                    assert!(overrun.produced.wrapping_sub(overrun.consumed) > overrun.room);
                    nr_overruns += 1;
                    break;
                }
            }
            while let Some(request) = ring.consume() {
                nr_requests += 1;
                let response = match request {
                    Ok(request) => request.response(Status::OKAY),
                    Err(malformed) => malformed.response(),
                };
                if rng.borrow_mut().below(2) == 0 {
                    ring.push(&response).unwrap();
                }
            }
            let _ = ring.publish();
        }
    }
    assert!(nr_requests > 300 && nr_overruns == 300, "{nr_requests} {nr_overruns}");
}

/// XSA-216: no byte of a response is left over from elsewhere, and none past it is written.
#[test]
fn xsa_216_every_byte_of_a_response_is_defined() {
    for (abi, len_bytes) in [(Abi::X86_64, 16), (Abi::X86_32, 12)] {
        for fill in [0x00, 0xaa, 0xff] {
            let memory = CountingMemory::new(RingOrder::ONE_PAGE, fill);
            let mut ring = back(&memory, abi, 0);
            memory.poke_u32(REQ_PROD, 1);
            assert_eq!(ring.unconsumed(), Ok(1));
            let _ = ring.consume().unwrap();
            let before = memory.bytes();
            ring.push(&Response {
                id: RequestId(0x0807_0605_0403_0201),
                operation: OpCode(9),
                status: Status::ERROR,
            })
            .unwrap();
            let expected = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0xff, 0xff, 0, 0, 0, 0];
            let after = memory.bytes();
            assert_eq!(after[RING..RING + len_bytes], expected[..len_bytes]);
            assert_eq!(after[..RING], before[..RING]);
            assert_eq!(after[RING + len_bytes..], before[RING + len_bytes..]);
        }
    }
}

/// And the other way: a request slot holds nothing of the frontend but the request.
#[test]
fn every_byte_of_a_request_slot_is_defined() {
    for abi in ABIS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0xaa);
        let mut ring = FrontRing::init(&memory, abi).unwrap();
        let transfer = Transfer { sector: Sector(0), segments: Segments::EMPTY };
        let flush = Request { id: RequestId(0), handle: 0, op: Operation::Flush(transfer) };
        ring.push(&flush).unwrap();
        let entry = abi.layout().entry_len_bytes;
        let mut slot = vec![0; entry];
        slot[0] = 3;
        assert_eq!(memory.bytes()[RING..RING + entry], slot);
        assert_eq!(memory.bytes()[RING + entry], 0xaa);
    }
}

#[test]
fn a_response_without_a_request_is_refused() {
    let abi = Abi::X86_64;
    for at in STARTS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0xaa);
        let mut ring = back(&memory, abi, at);
        produce(&memory, abi, 32, at, &requests(0..1, abi));
        let response = request(0).response(Status::OKAY);
        let before = memory.bytes();
        assert_eq!(ring.push(&response), Err(ResponseUnasked { rsp_prod: at }));
        assert_eq!(ring.unconsumed(), Ok(1));
        assert_eq!(ring.push(&response), Err(ResponseUnasked { rsp_prod: at }));
        assert_eq!(memory.bytes(), before);
        assert_eq!(ring.consume(), Some(Ok(request(0))));
        assert_eq!(ring.push(&response), Ok(()));
        let rsp_prod = at.wrapping_add(1);
        assert_eq!(ring.push(&response), Err(ResponseUnasked { rsp_prod }));
    }
}

#[test]
fn responses_show_when_they_are_published() {
    for at in STARTS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        let mut ring = back(&memory, Abi::X86_32, at);
        memory.poke_u32(RSP_PROD, at);
        produce(&memory, Abi::X86_32, 32, at, &requests(0..3, Abi::X86_32));
        assert_eq!(ring.unconsumed(), Ok(3));
        for id in 0..3 {
            let _ = ring.consume();
            ring.push(&request(id).response(Status::OKAY)).unwrap();
        }
        assert_eq!(memory.peek_u32(RSP_PROD), at);
        let _ = ring.publish();
        assert_eq!(memory.peek_u32(RSP_PROD), at.wrapping_add(3));
    }
}

/// Whether `event` is one of the indices that publishing from `old` to `old + nr` passes: the
/// hold-off rule of `io/ring.h`, by enumeration instead of arithmetic.
fn passed(old: u32, nr: u32, event: u32) -> Notify {
    if (1..=nr).any(|n| old.wrapping_add(n) == event) { Notify::Needed } else { Notify::NotNeeded }
}

#[test]
fn a_backend_notifies_exactly_when_the_frontends_event_is_passed() {
    let abi = Abi::X86_64;
    for at in STARTS {
        for nr in 0..=4 {
            for event in -6..=6_i32 {
                let event = at.wrapping_add_signed(event);
                let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
                let mut ring = back(&memory, abi, at);
                produce(&memory, abi, 32, at, &requests(0..nr, abi));
                let nr = u32::try_from(nr).unwrap();
                assert_eq!(ring.unconsumed(), Ok(nr));
                while let Some(request) = ring.consume() {
                    ring.push(&request.unwrap().response(Status::OKAY)).unwrap();
                }
                memory.poke_u32(RSP_EVENT, event);
                assert_eq!(ring.publish(), passed(at, nr, event), "{at} {nr} {event}");
                // Published once, it is not news again.
                assert_eq!(ring.publish(), Notify::NotNeeded);
            }
        }
    }
}

#[test]
fn a_frontend_notifies_exactly_when_the_backends_event_is_passed() {
    for at in STARTS {
        for nr in 0..=4 {
            for event in -6..=6_i32 {
                let event = at.wrapping_add_signed(event);
                let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
                let mut ring = FrontRing::attach_at(&memory, Abi::X86_64, at).unwrap();
                for id in 0..nr {
                    ring.push(&request(id.into())).unwrap();
                }
                memory.poke_u32(REQ_EVENT, event);
                assert_eq!(ring.publish(), passed(at, nr, event), "{at} {nr} {event}");
                assert_eq!(memory.peek_u32(REQ_PROD), at.wrapping_add(nr));
                assert_eq!(ring.publish(), Notify::NotNeeded);
            }
        }
    }
}

#[test]
fn a_backends_final_check_asks_for_the_next_request_only_when_there_is_none() {
    let abi = Abi::X86_64;
    for at in STARTS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        let mut ring = back(&memory, abi, at);
        memory.poke_u32(REQ_EVENT, 0xdead_beef);
        produce(&memory, abi, 32, at, &requests(0..1, abi));
        assert_eq!(ring.final_check(), Ok(FinalCheck::Work));
        assert_eq!(memory.peek_u32(REQ_EVENT), 0xdead_beef);
        let _ = ring.consume();
        assert_eq!(ring.final_check(), Ok(FinalCheck::Idle));
        assert_eq!(memory.peek_u32(REQ_EVENT), at.wrapping_add(2));
    }
}

/// Before each access `n` of a final check the peer produces one more: either it saw the wish to
/// be notified, or the check finds the entry.
#[test]
fn what_is_produced_within_a_final_check_is_found_or_notified() {
    let abi = Abi::X86_64;
    for at in STARTS {
        for n in 0..4 {
            let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
            memory.poke_u32(REQ_PROD, at);
            memory.poke_u32(REQ_EVENT, at.wrapping_sub(5));
            let front = std::cell::RefCell::new(FrontRing::attach_at(&memory, abi, at).unwrap());
            let accesses = std::cell::Cell::new(0);
            let notify = std::cell::Cell::new(Notify::NotNeeded);
            let peer = || {
                if accesses.replace(accesses.get() + 1) == n {
                    let mut front = front.borrow_mut();
                    front.push(&request(1)).unwrap();
                    notify.set(front.publish());
                }
            };
            let racy = RacyMemory { inner: &memory, peer };
            let mut ring = BackRing::attach_at(racy, abi, MAX, at).unwrap();
            let check = ring.final_check().unwrap();
            // Load, store of the event, load; none follows.
            let expected = match n {
                0..=1 => (FinalCheck::Work, Notify::NotNeeded),
                2 => (FinalCheck::Work, Notify::Needed),
                _ => (FinalCheck::Idle, Notify::NotNeeded),
            };
            assert_eq!((check, notify.get()), expected, "{at} {n}");
            assert_eq!(accesses.get(), if n == 0 { 1 } else { 3 });
        }
    }
}

#[test]
fn a_frontends_ring_is_full_until_a_response_is_consumed() {
    for at in STARTS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        memory.poke_u32(RSP_PROD, at);
        let mut ring = FrontRing::attach_at(&memory, Abi::X86_64, at).unwrap();
        for id in 0..32 {
            assert_eq!(ring.free(), 32 - u32::try_from(id).unwrap());
            ring.push(&request(id)).unwrap();
        }
        let before = memory.bytes();
        assert_eq!(ring.push(&request(32)), Err(RingFull { nr_entries: 32 }));
        assert_eq!(memory.bytes(), before);
        let _ = ring.publish();
        memory.poke(slot_offset(Abi::X86_64, 32, at), &[7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0xff, 0xff]);
        memory.poke_u32(RSP_PROD, at.wrapping_add(1));
        assert_eq!(ring.free(), 0);
        assert_eq!(ring.unconsumed(), Ok(1));
        let response =
            Response { id: RequestId(7), operation: OpCode::WRITE, status: Status::ERROR };
        assert_eq!(ring.consume(), Some(response));
        assert_eq!(ring.consume(), None);
        assert_eq!(ring.free(), 1);
    }
}

#[test]
fn a_backend_cannot_answer_what_was_not_published() {
    for at in STARTS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        memory.poke_u32(RSP_PROD, at);
        let mut ring = FrontRing::attach_at(&memory, Abi::X86_64, at).unwrap();
        ring.push(&request(0)).unwrap();
        ring.push(&request(1)).unwrap();
        let overrun = |nr: u32, room| {
            Err(ProducerOverrun { consumed: at, produced: at.wrapping_add(nr), room })
        };
        memory.poke_u32(RSP_PROD, at.wrapping_add(1));
        assert_eq!(ring.unconsumed(), overrun(1, 0));
        let _ = ring.publish();
        assert_eq!(ring.unconsumed(), Ok(1));
        for nr in [3, 33, u32::MAX] {
            memory.poke_u32(RSP_PROD, at.wrapping_add(nr));
            assert_eq!(ring.unconsumed(), overrun(nr, 2));
        }
        assert_eq!(
            overrun(3, 2).unwrap_err().to_string(),
            format!("producer index {} is more than 2 past {at}", at.wrapping_add(3))
        );
    }
}

#[test]
fn a_frontends_final_check_asks_for_the_next_response_only_when_there_is_none() {
    for at in STARTS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        memory.poke_u32(RSP_PROD, at);
        memory.poke_u32(RSP_EVENT, 0xdead_beef);
        let mut ring = FrontRing::attach_at(&memory, Abi::X86_64, at).unwrap();
        ring.push(&request(0)).unwrap();
        let _ = ring.publish();
        memory.poke_u32(RSP_PROD, at.wrapping_add(1));
        assert_eq!(ring.final_check(), Ok(FinalCheck::Work));
        assert_eq!(memory.peek_u32(RSP_EVENT), 0xdead_beef);
        let _ = ring.consume();
        assert_eq!(ring.final_check(), Ok(FinalCheck::Idle));
        assert_eq!(memory.peek_u32(RSP_EVENT), at.wrapping_add(2));
    }
}

/// A response is fetched once as well, and no more of the slot than the response.
#[test]
fn each_byte_of_a_response_is_fetched_once() {
    for abi in ABIS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        let mut ring = FrontRing::init(&memory, abi).unwrap();
        ring.push(&request(0)).unwrap();
        let _ = ring.publish();
        memory.poke_u32(RSP_PROD, 1);
        memory.forget_fetches();
        assert_eq!(ring.unconsumed(), Ok(1));
        let _ = ring.consume().unwrap();
        let mut once = vec![0; 4096];
        once[RSP_PROD..RSP_PROD + 4].fill(1);
        once[RING..RING + abi.layout().response_len_bytes].fill(1);
        assert_eq!(memory.fetches(), once);
    }
}

/// A backend that begins again at `rsp_prod` consumes what was not answered once more.
#[test]
fn a_backend_that_attaches_at_rsp_prod_goes_on() {
    let abi = Abi::X86_64;
    for at in STARTS {
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        let mut ring = back(&memory, abi, at);
        produce(&memory, abi, 32, at, &requests(0..5, abi));
        assert_eq!(ring.unconsumed(), Ok(5));
        for id in 0..4 {
            assert_eq!(ring.consume(), Some(Ok(request(id))));
        }
        ring.push(&request(0).response(Status::OKAY)).unwrap();
        ring.push(&request(1).response(Status::OKAY)).unwrap();
        let _ = ring.publish();
        let rsp_prod = memory.peek_u32(RSP_PROD);
        let mut ring = BackRing::attach_at(&memory, abi, MAX, rsp_prod).unwrap();
        assert_eq!(ring.unconsumed(), Ok(3));
        for id in 2..5 {
            assert_eq!(ring.consume(), Some(Ok(request(id))));
        }
        assert_eq!(ring.outstanding(), 3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    /// The check is that of `RING_REQUEST_PROD_OVERFLOW`, and of a producer that went backwards.
    #[test]
    fn any_producer_is_found_in_the_ring_or_out_of_it(
        at: u32, consumed in 0..=32_u32, answered in 0..=32_u32, ahead in prop_oneof![0..70_u32, any::<u32>()],
    ) {
        let answered = answered.min(consumed);
        let abi = Abi::X86_64;
        let memory = CountingMemory::new(RingOrder::ONE_PAGE, 0);
        let mut ring = back(&memory, abi, at);
        produce(&memory, abi, 32, at, &requests(0..consumed.into(), abi));
        prop_assert_eq!(ring.unconsumed(), Ok(consumed));
        while ring.consume().is_some() {}
        for id in 0..answered {
            ring.push(&request(id.into()).response(Status::OKAY)).unwrap();
        }
        prop_assert_eq!(ring.outstanding(), consumed - answered);
        let produced = at.wrapping_add(ahead);
        memory.poke_u32(REQ_PROD, produced);
        let lawful = ahead >= consumed && ahead <= answered + 32;
        let room = 32 - (consumed - answered);
        let overrun = ProducerOverrun { consumed: at.wrapping_add(consumed), produced, room };
        prop_assert_eq!(ring.unconsumed(), if lawful { Ok(ahead - consumed) } else { Err(overrun) });
    }
}
