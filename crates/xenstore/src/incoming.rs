//! Messages put together from the bytes of the response ring.

use alloc::boxed::Box;
use alloc::vec;

use xen_abi::SharedMemory;

use crate::error::ProtocolError;
use crate::ring::Rings;
use crate::wire::{HEADER_BYTES, Header, PAYLOAD_MAX};

/// Room for one message. What follows it stays in the ring, which is what holds back a flood of
/// watch events.
#[derive(Debug)]
pub(crate) struct Incoming {
    bytes: Box<[u8]>,
    filled: usize,
}

impl Incoming {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; HEADER_BYTES + PAYLOAD_MAX].into_boxed_slice(), filled: 0 }
    }

    /// Reads on in the current message; its header once it is whole. After that the payload stays
    /// until the next call, which begins with the next message.
    pub(crate) fn fill(
        &mut self,
        rings: &mut Rings,
        page: &impl SharedMemory,
    ) -> Result<Option<Header>, ProtocolError> {
        if self.filled < HEADER_BYTES {
            self.filled += rings.pop(page, &mut self.bytes[self.filled..HEADER_BYTES])?;
        }
        let Some(bytes) = self.bytes[..self.filled].first_chunk() else { return Ok(None) };
        let header = Header::decode(*bytes);
        // The header stays where it is, so a length too long is found again by every later call.
        let end = usize::try_from(header.len_bytes)
            .ok()
            .filter(|len| *len <= PAYLOAD_MAX)
            .map(|len| HEADER_BYTES + len)
            .ok_or(ProtocolError::MessageTooLong {
                len_bytes: header.len_bytes,
                max_bytes: PAYLOAD_MAX,
            })?;
        self.filled += rings.pop(page, &mut self.bytes[self.filled..end])?;
        if self.filled < end {
            return Ok(None);
        }
        self.filled = 0;
        Ok(Some(header))
    }

    /// The payload of the message whose header [`fill`](Self::fill) has just returned.
    pub(crate) fn payload(&self, header: Header) -> &[u8] {
        let end = HEADER_BYTES.saturating_add(header.len_bytes as usize);
        self.bytes.get(HEADER_BYTES..end).unwrap_or_default()
    }
}
