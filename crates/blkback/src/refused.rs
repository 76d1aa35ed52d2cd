//! Why a request is refused.

use blkif::{OpCode, RequestId, SegmentError, Status};
use store::{Failure, StoreError};
use thiserror::Error;
use xen_abi::GntStatus;

/// A request that was answered ERROR or EOPNOTSUPP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("request {} of operation {}: {reason}", .id.0, .operation.0)]
pub struct Refused {
    /// The request.
    pub id: RequestId,
    /// What it asked for.
    pub operation: OpCode,
    /// Why not.
    pub reason: Reason,
}

/// Why a request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Reason {
    /// It breaks the protocol's form.
    #[error("{0}")]
    Malformed(blkif::MalformedReason),
    /// An operation that we do not know or do not offer.
    #[error("not supported")]
    Unsupported,
    /// A write to a disk that may only be read.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A segment does not lie within its page.
    #[error("segment {n}: {error}")]
    Segment {
        /// Which one.
        n: usize,
        /// What is wrong.
        error: SegmentError,
    },
    /// A segment is not whole logical blocks.
    #[error("segment {n} is not whole blocks of {block_bytes} bytes")]
    SegmentBlock {
        /// Which one.
        n: usize,
        /// The logical block size.
        block_bytes: u32,
    },
    /// The disk refuses.
    #[error("{0}")]
    Store(StoreError),
    /// A page of the frontend cannot be copied from or to.
    #[error("copy failed: {0}")]
    Copy(GntStatus),
}

impl Reason {
    pub(crate) const fn status(self) -> Status {
        match self {
            // A device may refuse what it offered, as Linux' backend has it.
            Self::Unsupported | Self::Store(StoreError::Device(Failure::NotSupported)) => {
                Status::EOPNOTSUPP
            }
            _ => Status::ERROR,
        }
    }
}

impl From<StoreError> for Reason {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
