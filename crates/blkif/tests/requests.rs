//! Requests, responses and segments: exact bytes, exact errors, and any bytes at all.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

use blkif::{
    Abi, BadRingPages, Indirect, IndirectOp, Malformed, MalformedReason, MaxIndirectSegments,
    OpCode, Operation, Request, RequestId, Response, RingOrder, Sector, Segment, SegmentError,
    Segments, Slot, Status, Transfer, UnknownProtocol,
};
use proptest::prelude::*;
use xen_abi::GrantRef;

const ABIS: [Abi; 2] = [Abi::X86_64, Abi::X86_32];
const MAX: MaxIndirectSegments = MaxIndirectSegments::MAX;
const ID: RequestId = RequestId(0x1122_3344_5566_7788);

fn slot(bytes: &[u8]) -> Slot {
    let mut slot = Slot::ZERO;
    slot.0[..bytes.len()].copy_from_slice(bytes);
    slot
}

fn segment(gref: u32, first_sect: u8, last_sect: u8) -> Segment {
    Segment { gref: GrantRef(gref), first_sect, last_sect }
}

fn grefs(first: u32) -> [GrantRef; 8] {
    core::array::from_fn(|n| GrantRef(first + u32::try_from(n).unwrap()))
}

/// A head of 4 bytes, then what both ABIs place alike after their own padding.
fn laid_out(abi: Abi, head: [u8; 4], body: &[u8]) -> Slot {
    let pad: &[u8] = match abi {
        Abi::X86_64 => &[0; 4],
        Abi::X86_32 => &[],
    };
    slot(&[&head, pad, body].concat())
}

/// id, then sector 0x0102, then `rest`.
fn body(rest: &[u8]) -> Vec<u8> {
    [&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 2, 1, 0, 0, 0, 0, 0, 0], rest].concat()
}

#[test]
fn a_direct_request_has_the_headers_bytes() {
    let transfer = Transfer {
        sector: Sector(0x0102),
        segments: Segments::new(&[segment(0xa1b2_c3d4, 1, 7), segment(9, 0, 0)]).unwrap(),
    };
    let segments = [0xd4, 0xc3, 0xb2, 0xa1, 1, 7, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    for abi in ABIS {
        for (code, op) in [
            (0, Operation::Read(transfer)),
            (1, Operation::Write(transfer)),
            (2, Operation::Barrier(transfer)),
            (3, Operation::Flush(transfer)),
        ] {
            let request = Request { id: ID, handle: 0xca00, op };
            let bytes = laid_out(abi, [code, 2, 0x00, 0xca], &body(&segments));
            assert_eq!(request.encode(abi), bytes);
            assert_eq!(Request::parse(&bytes, abi, MAX), Ok(request));
            assert_eq!(request.operation(), OpCode(code));
        }
    }
}

#[test]
fn a_discard_has_the_headers_bytes() {
    for abi in ABIS {
        for (flag, secure) in [(0, false), (1, true)] {
            let op = Operation::Discard { sector: Sector(0x0102), nr_sectors: 0x0304, secure };
            let request = Request { id: ID, handle: 0xca00, op };
            let bytes = laid_out(abi, [5, flag, 0x00, 0xca], &body(&[4, 3, 0, 0, 0, 0, 0, 0]));
            assert_eq!(request.encode(abi), bytes);
            assert_eq!(Request::parse(&bytes, abi, MAX), Ok(request));
        }
        // Other flags mean nothing yet.
        let bytes = laid_out(abi, [5, 0xfe, 0, 0], &body(&[0; 8]));
        let op = Operation::Discard { sector: Sector(0x0102), nr_sectors: 0, secure: false };
        assert_eq!(Request::parse(&bytes, abi, MAX), Ok(Request { id: ID, handle: 0, op }));
    }
}

#[test]
fn an_indirect_request_has_the_headers_bytes_and_echoes_its_inner_operation() {
    for abi in ABIS {
        for (code, op) in [(0, IndirectOp::Read), (1, IndirectOp::Write)] {
            let indirect = Indirect::new(op, Sector(0x0102), 0x0201, grefs(7), MAX).unwrap();
            assert_eq!(indirect.grefs(), [GrantRef(7), GrantRef(8)]);
            let request = Request { id: ID, handle: 0xca00, op: Operation::Indirect(indirect) };
            let rest = [0x00, 0xca, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0];
            // 64-bit pads the handle to the first gref; 32-bit does as well.
            let bytes = laid_out(abi, [6, code, 0x01, 0x02], &body(&rest));
            assert_eq!(request.encode(abi), bytes);
            assert_eq!(Request::parse(&bytes, abi, MAX), Ok(request));
            let response = request.response(Status::OKAY);
            assert_eq!(response, Response { id: ID, operation: OpCode(code), status: Status(0) });
        }
    }
}

#[test]
fn an_unknown_operation_survives_and_is_echoed() {
    for abi in ABIS {
        for code in [4, 7, 200, 255] {
            let bytes = laid_out(abi, [code, 99, 0x00, 0xca], &body(&[0xff; 80]));
            let request = Request::parse(&bytes, abi, MAX).unwrap();
            let op = Operation::Unknown { code: OpCode(code) };
            assert_eq!(request, Request { id: ID, handle: 0xca00, op });
            assert_eq!(
                request.response(Status::EOPNOTSUPP),
                Response { id: ID, operation: OpCode(code), status: Status(-2) }
            );
        }
    }
}

/// Linux sends an empty barrier for a flush where both are offered.
#[test]
fn only_barrier_and_flush_may_be_empty() {
    let empty = Transfer { sector: Sector(0x0102), segments: Segments::EMPTY };
    for abi in ABIS {
        let parse = |code| Request::parse(&laid_out(abi, [code, 0, 0, 0], &body(&[])), abi, MAX);
        let none = |operation| Malformed { id: ID, operation, reason: MalformedReason::NoSegments };
        assert_eq!(parse(0), Err(none(OpCode::READ)));
        assert_eq!(parse(1), Err(none(OpCode::WRITE)));
        assert_eq!(parse(2).unwrap().op, Operation::Barrier(empty));
        assert_eq!(parse(3).unwrap().op, Operation::Flush(empty));
    }
}

#[test]
fn more_than_11_segments_are_malformed_and_answerable() {
    for abi in ABIS {
        for code in 0..=3 {
            let parse =
                |nr| Request::parse(&laid_out(abi, [code, nr, 0, 0], &body(&[0; 88])), abi, MAX);
            assert!(parse(11).is_ok());
            for nr in 12..=255 {
                let reason = MalformedReason::TooManySegments { claimed: nr.into(), max: 11 };
                let malformed = Malformed { id: ID, operation: OpCode(code), reason };
                assert_eq!(parse(nr), Err(malformed));
                let answer = Response { id: ID, operation: OpCode(code), status: Status(-1) };
                assert_eq!(malformed.response(), answer);
            }
        }
    }
}

#[test]
fn an_indirect_request_keeps_to_the_advertised_limit() {
    let limit = |n| MaxIndirectSegments::new(n).unwrap();
    for abi in ABIS {
        let parse = |nr: u16, max| {
            let [low, high] = nr.to_le_bytes();
            Request::parse(&laid_out(abi, [6, 1, low, high], &body(&[0; 48])), abi, max)
        };
        let malformed = |reason| Malformed { id: ID, operation: OpCode::WRITE, reason };
        let too_many =
            |claimed, max| Err(malformed(MalformedReason::TooManySegments { claimed, max }));
        assert_eq!(parse(0, MAX), Err(malformed(MalformedReason::NoSegments)));
        assert!(parse(1, limit(1)).is_ok());
        assert_eq!(parse(2, limit(1)), too_many(2, 1));
        assert!(parse(256, limit(256)).is_ok());
        assert_eq!(parse(257, limit(256)), too_many(257, 256));
        assert!(parse(4096, MAX).is_ok());
        assert_eq!(parse(4097, MAX), too_many(4097, 4096));
        assert_eq!(parse(65535, MAX), too_many(65535, 4096));
        assert_eq!(parse(1, MaxIndirectSegments::NONE), too_many(1, 0));
    }
    assert_eq!(MAX.get(), 4096);
    assert_eq!(MaxIndirectSegments::new(4096), Some(MAX));
    assert_eq!(MaxIndirectSegments::new(4097), None);
}

#[test]
fn an_indirect_request_names_one_page_for_512_segments() {
    for (nr_segments, pages) in
        [(1, 1), (512, 1), (513, 2), (1024, 2), (1025, 3), (3584, 7), (3585, 8), (4096, 8)]
    {
        let indirect =
            Indirect::new(IndirectOp::Read, Sector(0), nr_segments, grefs(1), MAX).unwrap();
        assert_eq!(indirect.grefs(), &grefs(1)[..pages], "{nr_segments}");
    }
}

#[test]
fn only_read_and_write_may_be_indirect() {
    for abi in ABIS {
        for code in 2..=255 {
            let bytes = laid_out(abi, [6, code, 1, 0], &body(&[0; 48]));
            let code = OpCode(code);
            let reason = MalformedReason::IndirectOperation { code };
            let malformed = Malformed { id: ID, operation: code, reason };
            assert_eq!(Request::parse(&bytes, abi, MAX), Err(malformed));
        }
    }
}

#[test]
fn a_segment_lies_within_its_page() {
    for first in 0..=255 {
        for last in 0..=255 {
            let checked = segment(5, first, last).check();
            if last > 7 {
                assert_eq!(checked, Err(SegmentError::PastPage { last }));
            } else if first > last {
                assert_eq!(checked, Err(SegmentError::Order { first, last }));
            } else {
                let checked = checked.unwrap();
                assert_eq!(checked.gref(), GrantRef(5));
                assert_eq!(checked.offset(), u16::from(first) * 512);
                assert_eq!(checked.len_bytes(), u16::from(last - first + 1) * 512);
            }
        }
    }
    let whole = segment(5, 0, 7).check().unwrap();
    assert_eq!((whole.offset(), whole.len_bytes()), (0, 4096));
    let last = segment(5, 7, 7).check().unwrap();
    assert_eq!((last.offset(), last.len_bytes()), (3584, 512));
}

#[test]
fn a_request_has_at_most_11_segments() {
    assert_eq!(Segments::new(&[segment(1, 0, 0); 11]).unwrap().nr(), 11);
    assert_eq!(Segments::new(&[segment(1, 0, 0); 12]), None);
    assert_eq!(Segments::new(&[segment(1, 0, 0); 256]), None);
    assert_eq!(Segments::new(&[]), Some(Segments::EMPTY));
}

#[test]
fn a_response_has_the_headers_bytes() {
    let response = Response { id: ID, operation: OpCode(3), status: Status::EOPNOTSUPP };
    let bytes = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 3, 0, 0xfe, 0xff, 0, 0, 0, 0];
    assert_eq!(response.encode(), bytes);
    assert_eq!(Response::parse(&bytes), response);
}

#[test]
fn the_protocol_node_names_an_abi() {
    assert_eq!(Abi::from_protocol(None), Ok(Abi::X86_64));
    for abi in ABIS {
        assert_eq!(Abi::from_protocol(Some(abi.protocol())), Ok(abi));
    }
    for other in ["", "arm-abi", "x86_64-abi ", "X86_64-abi", "x86_64"] {
        assert_eq!(Abi::from_protocol(Some(other)), Err(UnknownProtocol(other)));
    }
    assert_eq!(
        UnknownProtocol("arm-abi").to_string(),
        "protocol \"arm-abi\" is neither x86_64-abi nor x86_32-abi"
    );
}

#[test]
fn a_ring_has_1_to_32_pages() {
    for order in 0..=5 {
        let ring = RingOrder::new(order).unwrap();
        assert_eq!(RingOrder::from_nr_pages(1 << order), Ok(ring));
        assert_eq!(ring.get(), order);
        assert_eq!(ring.nr_pages(), 1 << order);
        assert_eq!(ring.len_bytes(), 4096 << order);
        for abi in ABIS {
            assert_eq!(abi.nr_entries(ring), 32 << order);
        }
    }
    for order in [6, 31, 32, u32::MAX] {
        assert_eq!(RingOrder::new(order), Err(BadRingPages::OrderTooLarge { order, max: 5 }));
    }
    let too_large = Err(BadRingPages::OrderTooLarge { order: 6, max: 5 });
    assert_eq!(RingOrder::from_nr_pages(64), too_large);
    for nr_pages in [0, 3, 5, 31, 33, u32::MAX] {
        assert_eq!(
            RingOrder::from_nr_pages(nr_pages),
            Err(BadRingPages::NotPowerOfTwo { nr_pages })
        );
    }
}

#[test]
fn errors_say_their_numbers() {
    let reason = MalformedReason::TooManySegments { claimed: 12, max: 11 };
    let malformed = Malformed { id: RequestId(7), operation: OpCode::WRITE, reason };
    assert_eq!(malformed.to_string(), "request 7 of operation 1: 12 segments, at most 11 allowed");
    let code = OpCode(9);
    assert_eq!(MalformedReason::IndirectOperation { code }.to_string(), "indirect operation 9");
    assert_eq!(SegmentError::Order { first: 3, last: 2 }.to_string(), "segment from sector 3 to 2");
    assert_eq!(
        SegmentError::PastPage { last: 8 }.to_string(),
        "segment to sector 8, past its page"
    );
}

#[test]
fn keys_per_queue_and_page_are_numbered() {
    assert_eq!(blkif::keys::RingRef(3).to_string(), "ring-ref3");
    assert_eq!(blkif::keys::Queue(0).to_string(), "queue-0");
}

fn any_abi() -> impl Strategy<Value = Abi> {
    prop_oneof![Just(Abi::X86_64), Just(Abi::X86_32)]
}

fn any_segments(min: usize) -> impl Strategy<Value = Segments> {
    let one = any::<(u32, u8, u8)>().prop_map(|(gref, first, last)| segment(gref, first, last));
    prop::collection::vec(one, min..=11).prop_map(|list| Segments::new(&list).unwrap())
}

fn any_transfer(min: usize) -> impl Strategy<Value = Transfer> {
    (any::<u64>(), any_segments(min))
        .prop_map(|(sector, segments)| Transfer { sector: Sector(sector), segments })
}

fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        any_transfer(1).prop_map(Operation::Read),
        any_transfer(1).prop_map(Operation::Write),
        any_transfer(0).prop_map(Operation::Barrier),
        any_transfer(0).prop_map(Operation::Flush),
        any::<(u64, u64, bool)>().prop_map(|(sector, nr_sectors, secure)| {
            Operation::Discard { sector: Sector(sector), nr_sectors, secure }
        }),
        (any::<bool>(), any::<u64>(), 1..=4096_u16, any::<[u32; 8]>()).prop_map(
            |(read, sector, nr_segments, grefs)| {
                let op = if read { IndirectOp::Read } else { IndirectOp::Write };
                let grefs = grefs.map(GrantRef);
                let indirect = Indirect::new(op, Sector(sector), nr_segments, grefs, MAX);
                Operation::Indirect(indirect.unwrap())
            }
        ),
        prop_oneof![Just(4), 7..=255_u8].prop_map(|code| Operation::Unknown { code: OpCode(code) }),
    ]
}

fn any_slot() -> impl Strategy<Value = Slot> {
    // Half of them of a known operation, or hardly any would be.
    (prop::collection::vec(any::<u8>(), 112), prop::option::of(0..=6_u8)).prop_map(|(bytes, op)| {
        let mut slot = slot(&bytes);
        slot.0[0] = op.unwrap_or(slot.0[0]);
        slot
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_request_comes_back_as_it_went(
        abi in any_abi(), id: u64, handle: u16, op in any_operation(),
    ) {
        let request = Request { id: RequestId(id), handle, op };
        let slot = request.encode(abi);
        prop_assert_eq!(&slot.0[abi.layout().entry_len_bytes..], &[0; 4][..112 - abi.layout().entry_len_bytes]);
        prop_assert_eq!(Request::parse(&slot, abi, MAX), Ok(request));
    }

    #[test]
    fn a_response_comes_back_as_it_went(id: u64, operation: u8, status: i16) {
        let response =
            Response { id: RequestId(id), operation: OpCode(operation), status: Status(status) };
        prop_assert_eq!(Response::parse(&response.encode()), response);
    }

    #[test]
    fn a_segment_comes_back_as_it_went(gref: u32, first: u8, last: u8, pad: [u8; 2]) {
        let mut bytes = segment(gref, first, last).encode();
        prop_assert_eq!(&bytes[6..], &[0, 0]);
        bytes[6..].copy_from_slice(&pad);
        prop_assert_eq!(Segment::parse(bytes), segment(gref, first, last));
    }

    /// Any bytes are a request or a malformed one; either is answered under its own id, and what
    /// was understood is stable.
    #[test]
    fn any_bytes_are_answerable(slot in any_slot(), abi in any_abi(), max in 0..=4096_u16) {
        let max = MaxIndirectSegments::new(max).unwrap();
        let at = abi.layout().id;
        let id = RequestId(u64::from_le_bytes(slot.0[at..at + 8].try_into().unwrap()));
        let operation = OpCode(if slot.0[0] == 6 { slot.0[1] } else { slot.0[0] });
        match Request::parse(&slot, abi, max) {
            Ok(request) => {
                prop_assert_eq!(
                    request.response(Status::OKAY),
                    Response { id, operation, status: Status::OKAY }
                );
                prop_assert_eq!(Request::parse(&request.encode(abi), abi, max), Ok(request));
            }
            Err(malformed) => prop_assert_eq!(
                malformed.response(),
                Response { id, operation, status: Status::ERROR }
            ),
        }
    }
}
