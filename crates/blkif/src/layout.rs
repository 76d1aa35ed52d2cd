//! Where every field of the protocol lies, in bytes, for each ABI.
//!
//! Requests are decoded by these offsets and never by a cast: the two ABIs differ only in the
//! alignment of 64-bit fields. Structs that mirror `io/blkif.h` check each number at compile time,
//! and a test compiles the header itself.

/// `req_prod` in the ring's header (`struct blkif_sring`, `io/ring.h`).
pub const REQ_PROD: usize = 0;
/// `req_event` in the ring's header.
pub const REQ_EVENT: usize = 4;
/// `rsp_prod` in the ring's header.
pub const RSP_PROD: usize = 8;
/// `rsp_event` in the ring's header.
pub const RSP_EVENT: usize = 12;
/// First byte of the header's padding, which the frontend zeroes.
pub const PAD: usize = 16;
/// The first slot; everything before it is the header.
pub const RING: usize = 64;

/// `operation`: u8, first in every request.
pub const OPERATION: usize = 0;
/// `nr_segments` of a direct request: u8.
pub const NR_SEGMENTS: usize = 1;
/// `flag` of a discard: u8.
pub const DISCARD_FLAG: usize = 1;
/// `indirect_op` of an indirect request: u8.
pub const INDIRECT_OP: usize = 1;
/// `handle` of any request but an indirect one: u16.
pub const HANDLE: usize = 2;
/// `nr_segments` of an indirect request: u16.
pub const INDIRECT_NR_SEGMENTS: usize = 2;

/// `id` of a response: u64.
pub const RESPONSE_ID: usize = 0;
/// `operation` of a response: u8.
pub const RESPONSE_OPERATION: usize = 8;
/// `status` of a response: i16.
pub const RESPONSE_STATUS: usize = 10;

/// `gref` of a segment: u32.
pub const SEGMENT_GREF: usize = 0;
/// `first_sect` of a segment: u8.
pub const SEGMENT_FIRST_SECT: usize = 4;
/// `last_sect` of a segment: u8.
pub const SEGMENT_LAST_SECT: usize = 5;

/// What differs between the ABIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of a slot (`union blkif_sring_entry`).
    pub entry_len_bytes: usize,
    /// Bytes of a response.
    pub response_len_bytes: usize,
    /// `id` of any request: u64.
    pub id: usize,
    /// `sector_number` of any request: u64.
    pub sector: usize,
    /// `seg` of a direct request: 11 segments of 8 bytes.
    pub segments: usize,
    /// `nr_sectors` of a discard: u64.
    pub discard_nr_sectors: usize,
    /// `handle` of an indirect request: u16.
    pub indirect_handle: usize,
    /// `indirect_grefs` of an indirect request: 8 of u32.
    pub indirect_grefs: usize,
}

/// Fields of `x86_64-abi`.
pub const X86_64: Layout = Layout {
    entry_len_bytes: 112,
    response_len_bytes: 16,
    id: 8,
    sector: 16,
    segments: 24,
    discard_nr_sectors: 24,
    indirect_handle: 24,
    indirect_grefs: 28,
};

/// Fields of `x86_32-abi`.
pub const X86_32: Layout = Layout {
    entry_len_bytes: 108,
    response_len_bytes: 12,
    id: 4,
    sector: 12,
    segments: 20,
    discard_nr_sectors: 20,
    indirect_handle: 20,
    indirect_grefs: 24,
};

/// Mirrors the structs of `io/blkif.h` under one alignment and compares them with a [`Layout`].
macro_rules! assert_layout {
    ($layout:expr, $repr:meta) => {
        const _: () = {
            #[repr(C)]
            struct Segment {
                gref: u32,
                first_sect: u8,
                last_sect: u8,
            }
            #[$repr]
            struct Direct {
                operation: u8,
                nr_segments: u8,
                handle: u16,
                id: u64,
                sector_number: u64,
                seg: [Segment; crate::MAX_SEGMENTS],
            }
            #[$repr]
            struct Discard {
                operation: u8,
                flag: u8,
                handle: u16,
                id: u64,
                sector_number: u64,
                nr_sectors: u64,
            }
            #[$repr]
            struct Indirect {
                operation: u8,
                indirect_op: u8,
                nr_segments: u16,
                id: u64,
                sector_number: u64,
                handle: u16,
                indirect_grefs: [u32; crate::MAX_INDIRECT_PAGES],
            }
            #[$repr]
            struct Response {
                id: u64,
                operation: u8,
                status: i16,
            }

            use core::mem::{offset_of, size_of};
            let layout: Layout = $layout;
            assert!(size_of::<Segment>() == crate::Segment::LEN_BYTES);
            assert!(offset_of!(Segment, gref) == SEGMENT_GREF);
            assert!(offset_of!(Segment, first_sect) == SEGMENT_FIRST_SECT);
            assert!(offset_of!(Segment, last_sect) == SEGMENT_LAST_SECT);

            assert!(size_of::<Direct>() == layout.entry_len_bytes);
            assert!(offset_of!(Direct, operation) == OPERATION);
            assert!(offset_of!(Direct, nr_segments) == NR_SEGMENTS);
            assert!(offset_of!(Direct, handle) == HANDLE);
            assert!(offset_of!(Direct, id) == layout.id);
            assert!(offset_of!(Direct, sector_number) == layout.sector);
            assert!(offset_of!(Direct, seg) == layout.segments);

            assert!(offset_of!(Discard, operation) == OPERATION);
            assert!(offset_of!(Discard, flag) == DISCARD_FLAG);
            assert!(offset_of!(Discard, handle) == HANDLE);
            assert!(offset_of!(Discard, id) == layout.id);
            assert!(offset_of!(Discard, sector_number) == layout.sector);
            assert!(offset_of!(Discard, nr_sectors) == layout.discard_nr_sectors);

            assert!(offset_of!(Indirect, operation) == OPERATION);
            assert!(offset_of!(Indirect, indirect_op) == INDIRECT_OP);
            assert!(offset_of!(Indirect, nr_segments) == INDIRECT_NR_SEGMENTS);
            assert!(offset_of!(Indirect, id) == layout.id);
            assert!(offset_of!(Indirect, sector_number) == layout.sector);
            assert!(offset_of!(Indirect, handle) == layout.indirect_handle);
            assert!(offset_of!(Indirect, indirect_grefs) == layout.indirect_grefs);

            assert!(size_of::<Response>() == layout.response_len_bytes);
            assert!(offset_of!(Response, id) == RESPONSE_ID);
            assert!(offset_of!(Response, operation) == RESPONSE_OPERATION);
            assert!(offset_of!(Response, status) == RESPONSE_STATUS);
        };
    };
}

assert_layout!(X86_64, repr(C));
assert_layout!(X86_32, repr(C, packed(4)));
const _: () = assert!(X86_64.entry_len_bytes == crate::Slot::LEN_BYTES);
const _: () = assert!(X86_32.entry_len_bytes <= crate::Slot::LEN_BYTES);
