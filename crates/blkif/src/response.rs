//! Responses.

use crate::layout::{RESPONSE_ID, RESPONSE_OPERATION, RESPONSE_STATUS};
use crate::{OpCode, RequestId};

/// How a request went (`BLKIF_RSP_*`). A frontend may meet other values, and takes them as errors.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Status(pub i16);

impl Status {
    /// Done.
    #[doc(alias = "BLKIF_RSP_OKAY")]
    pub const OKAY: Self = Self(0);
    /// Not done.
    #[doc(alias = "BLKIF_RSP_ERROR")]
    pub const ERROR: Self = Self(-1);
    /// The backend does not know this operation; the frontend may stop using it.
    #[doc(alias = "BLKIF_RSP_EOPNOTSUPP")]
    pub const EOPNOTSUPP: Self = Self(-2);
}

/// The answer to one request (`struct blkif_response`).
#[doc(alias = "blkif_response")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// The request's id.
    pub id: RequestId,
    /// The request's operation; for an indirect request its inner operation.
    pub operation: OpCode,
    /// How it went.
    pub status: Status,
}

impl Response {
    /// Bytes of the longer ABI's response.
    pub const LEN_BYTES: usize = 16;

    /// The response's bytes, every one defined. Both ABIs agree but for the length
    /// ([`Layout::response_len_bytes`](crate::layout::Layout::response_len_bytes)).
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN_BYTES] {
        let mut bytes = [0; Self::LEN_BYTES];
        bytes[RESPONSE_ID..RESPONSE_ID + 8].copy_from_slice(&self.id.0.to_le_bytes());
        bytes[RESPONSE_OPERATION] = self.operation.0;
        bytes[RESPONSE_STATUS..RESPONSE_STATUS + 2].copy_from_slice(&self.status.0.to_le_bytes());
        bytes
    }

    /// Reads a response of either ABI; the padding is ignored.
    #[must_use]
    pub fn parse(bytes: &[u8; Self::LEN_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, operation, _, status_low, status_high, ..] = *bytes;
        Self {
            id: RequestId(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
            operation: OpCode(operation),
            status: Status(i16::from_le_bytes([status_low, status_high])),
        }
    }
}
