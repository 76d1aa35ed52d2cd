//! A slot of the ring, parsed.

use blkif::{
    Abi, Malformed, MalformedReason, MaxIndirectSegments, OpCode, Operation, Request, Response,
    SECTOR_SIZE, Segment, SegmentError, Slot, Status, Transfer,
};

use crate::input::Input;

/// First the limit of indirect segments, then a slot. Both ABIs read it.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let max = input.u16() % (MaxIndirectSegments::MAX.get() + 1);
    let Some(max) = MaxIndirectSegments::new(max) else { unreachable!("at most MAX") };
    let mut slot = Slot::ZERO;
    let taken = input.take(Slot::LEN_BYTES);
    slot.0[..taken.len()].copy_from_slice(&taken);
    for abi in [Abi::X86_64, Abi::X86_32] {
        match Request::parse(&slot, abi, max) {
            Ok(request) => check_request(&request, &slot, abi, max),
            Err(malformed) => check_malformed(&malformed, &slot, abi, max),
        }
    }
    check_response(&slot);
}

/// Where `io/blkif.h` has the 64-bit id: the sector follows it, then the segments.
const fn id_offset(abi: Abi) -> usize {
    match abi {
        Abi::X86_64 => 8,
        Abi::X86_32 => 4,
    }
}

fn u64_at(slot: &Slot, at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&slot.0[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u16_at(slot: &Slot, at: usize) -> u16 {
    u16::from_le_bytes([slot.0[at], slot.0[at + 1]])
}

/// What an answer has to echo.
fn echo(slot: &Slot) -> OpCode {
    OpCode(if slot.0[0] == OpCode::INDIRECT.0 { slot.0[1] } else { slot.0[0] })
}

fn check_request(request: &Request, slot: &Slot, abi: Abi, max: MaxIndirectSegments) {
    let id_at = id_offset(abi);
    let (sector, rest) = (u64_at(slot, id_at + 8), id_at + 16);
    assert_eq!(request.id.0, u64_at(slot, id_at));
    assert_eq!(request.operation(), echo(slot));
    let again = request.encode(abi);
    assert_eq!(Request::parse(&again, abi, max), Ok(*request), "encoded and parsed again");
    let transfer = |transfer: &Transfer, code: OpCode, min: u8| {
        assert_eq!((slot.0[0], transfer.sector.0), (code.0, sector));
        assert_eq!(transfer.segments.nr(), slot.0[1]);
        assert!((min..=11).contains(&transfer.segments.nr()));
        for (n, segment) in transfer.segments.as_slice().iter().enumerate() {
            check_segment(segment, &slot.0[rest + 8 * n..][..8]);
        }
    };
    match &request.op {
        Operation::Read(t) => transfer(t, OpCode::READ, 1),
        Operation::Write(t) => transfer(t, OpCode::WRITE, 1),
        Operation::Barrier(t) => transfer(t, OpCode::BARRIER, 0),
        Operation::Flush(t) => transfer(t, OpCode::FLUSH, 0),
        Operation::Discard { sector: first, nr_sectors, secure } => {
            assert_eq!((slot.0[0], first.0), (OpCode::DISCARD.0, sector));
            assert_eq!(*nr_sectors, u64_at(slot, rest));
            assert_eq!(*secure, slot.0[1] & 1 == 1);
        }
        Operation::Indirect(indirect) => {
            assert_eq!((slot.0[0], indirect.sector().0), (OpCode::INDIRECT.0, sector));
            assert_eq!(indirect.op().code().0, slot.0[1]);
            let nr = indirect.nr_segments();
            assert_eq!(nr, u16_at(slot, 2));
            assert!((1..=max.get()).contains(&nr));
            assert_eq!(indirect.grefs().len(), usize::from(nr).div_ceil(512));
            for (n, gref) in indirect.grefs().iter().enumerate() {
                assert_eq!(gref.0.to_le_bytes(), slot.0[rest + 4 + 4 * n..][..4]);
            }
        }
        Operation::Unknown { code } => {
            assert_eq!(code.0, slot.0[0]);
            assert!(![0, 1, 2, 3, 5, 6].contains(&code.0), "{code:?} is known");
        }
    }
}

fn check_segment(segment: &Segment, bytes: &[u8]) {
    assert_eq!(segment.gref.0.to_le_bytes(), bytes[..4]);
    let [first, last] = [bytes[4], bytes[5]];
    assert_eq!(Segment::parse(segment.encode()), *segment);
    match segment.check() {
        Ok(checked) => {
            assert!(first <= last && last <= 7);
            assert_eq!(checked.gref(), segment.gref);
            assert_eq!(checked.offset(), u16::from(first) * SECTOR_SIZE);
            assert_eq!(checked.len_bytes(), u16::from(last - first + 1) * SECTOR_SIZE);
        }
        Err(SegmentError::PastPage { last: said }) => assert!(said == last && last > 7),
        Err(SegmentError::Order { first: said, last: end }) => {
            assert_eq!((said, end), (first, last));
            assert!(first > last && last <= 7);
        }
    }
}

fn check_malformed(malformed: &Malformed, slot: &Slot, abi: Abi, max: MaxIndirectSegments) {
    assert_eq!(malformed.id.0, u64_at(slot, id_offset(abi)));
    assert_eq!(malformed.operation, echo(slot));
    assert_eq!(malformed.response().status, Status::ERROR);
    let is_indirect = slot.0[0] == OpCode::INDIRECT.0;
    let (claimed, most) = match slot.0[0] {
        6 => (u16_at(slot, 2), max.get()),
        0..=3 => (slot.0[1].into(), 11),
        code => panic!("operation {code} has no form to break"),
    };
    match malformed.reason {
        MalformedReason::NoSegments => {
            assert_eq!(claimed, 0);
            assert!([0, 1, 6].contains(&slot.0[0]));
        }
        MalformedReason::TooManySegments { claimed: said, max } => {
            assert_eq!((said, max), (claimed, most));
            assert!(claimed > most);
        }
        MalformedReason::IndirectOperation { code } => {
            assert!(is_indirect && code.0 == slot.0[1] && code.0 > 1);
        }
    }
}

/// Responses are read by our frontend half, from backends that may be hostile, too.
fn check_response(slot: &Slot) {
    let bytes = slot.0.first_chunk().expect("a slot is longer than a response");
    let response = Response::parse(bytes);
    let encoded = response.encode();
    assert_eq!(Response::parse(&encoded), response);
    assert_eq!(encoded[..9], bytes[..9]);
    assert_eq!(encoded[9], 0, "padding");
    assert_eq!(encoded[10..12], bytes[10..12]);
    assert!(encoded[12..].iter().all(|&byte| byte == 0), "padding");
}
