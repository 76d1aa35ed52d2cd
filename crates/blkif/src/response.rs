//! Responses.

use crate::layout::{RESPONSE_ID, RESPONSE_OPERATION, RESPONSE_STATUS};
use crate::{OpCode, RequestId, Slot};

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
    /// The response's bytes, every one defined. Both ABIs agree but for the length
    /// ([`Layout::response_len_bytes`](crate::layout::Layout::response_len_bytes)).
    #[must_use]
    pub fn encode(&self) -> Slot {
        let mut slot = Slot::ZERO;
        slot.put(RESPONSE_ID, self.id.0.to_le_bytes());
        slot.put(RESPONSE_OPERATION, [self.operation.0]);
        slot.put(RESPONSE_STATUS, self.status.0.to_le_bytes());
        slot
    }

    /// Reads a response from a slot of either ABI; the padding is ignored.
    #[must_use]
    pub fn parse(slot: &Slot) -> Self {
        Self {
            id: RequestId(slot.u64_at(RESPONSE_ID)),
            operation: OpCode(slot.u8_at(RESPONSE_OPERATION)),
            status: Status(i16::from_le_bytes(slot.get(RESPONSE_STATUS))),
        }
    }
}
