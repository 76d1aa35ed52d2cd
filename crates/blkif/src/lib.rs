//! The block protocol (`io/blkif.h`): rings, requests and responses of every ABI, without policy.
//!
//! A [`BackRing`] copies each slot out of shared memory once and parses it once; what comes out is
//! a typed [`Request`] or a [`Malformed`] that still can be answered. A [`FrontRing`] is the other
//! half. Neither knows of disks, grants or domains: whether a request fits a disk is asked
//! elsewhere.
//!
//! What a peer wrote and what we checked are different types: a [`Segment`] is an allegation, a
//! [`CheckedSegment`] lies within its page.

#![no_std]
#![forbid(unsafe_code)]

mod abi;
pub mod keys;
pub mod layout;
mod request;
mod response;
mod ring;
mod segment;
mod slot;

pub use abi::{Abi, BadRingPages, RingOrder, UnknownProtocol};
pub use request::{
    Indirect, IndirectOp, Malformed, MalformedReason, MaxIndirectSegments, OpCode, Operation,
    Request, RequestId, Sector, Transfer,
};
pub use response::{Response, Status};
pub use ring::{
    BackRing, BadRingLength, FinalCheck, FrontRing, Notify, ProducerOverrun, ResponseUnasked,
    RingFull,
};
pub use segment::{CheckedSegment, Segment, SegmentError, Segments};
pub use slot::Slot;

/// The unit of every sector number and count in the protocol, in bytes. `sector-size`, the logical
/// block size, does not change it.
pub const SECTOR_SIZE: u16 = 512;

/// Most segments that a direct request carries (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
#[doc(alias = "BLKIF_MAX_SEGMENTS_PER_REQUEST")]
pub const MAX_SEGMENTS: usize = 11;

/// Most pages of segments that an indirect request names (`BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`).
#[doc(alias = "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST")]
pub const MAX_INDIRECT_PAGES: usize = 8;

/// Segments in one full page of an indirect request.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = xen_abi::PAGE_SIZE / Segment::LEN_BYTES;
