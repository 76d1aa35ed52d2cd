//! Message types and the header, as they stand on the ring (`io/xs_wire.h`).

use crate::error::Error;

/// Length of a header in bytes (`struct xsd_sockmsg`).
pub(crate) const HEADER_BYTES: usize = 16;

/// The longest payload of either direction, in bytes (`XENSTORE_PAYLOAD_MAX`). Whoever sends more
/// has broken the connection.
pub(crate) const PAYLOAD_MAX: usize = 4096;

/// The longest absolute path in bytes (`XENSTORE_ABS_PATH_MAX`).
pub(crate) const ABS_PATH_MAX: usize = 3072;

/// The longest path relative to our own domain, in bytes (`XENSTORE_REL_PATH_MAX`).
pub(crate) const REL_PATH_MAX: usize = 2048;

/// What a message is (`enum xsd_sockmsg_type`). A newtype, since xenstored may send any number.
#[doc(alias = "xsd_sockmsg_type")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MessageType(pub(crate) u32);

impl MessageType {
    pub(crate) const DIRECTORY: Self = Self(1);
    pub(crate) const READ: Self = Self(2);
    pub(crate) const WATCH: Self = Self(4);
    pub(crate) const UNWATCH: Self = Self(5);
    pub(crate) const TRANSACTION_START: Self = Self(6);
    pub(crate) const TRANSACTION_END: Self = Self(7);
    pub(crate) const WRITE: Self = Self(11);
    pub(crate) const MKDIR: Self = Self(12);
    pub(crate) const RM: Self = Self(13);
    pub(crate) const SET_PERMS: Self = Self(14);
    pub(crate) const WATCH_EVENT: Self = Self(15);
    pub(crate) const ERROR: Self = Self(16);
    pub(crate) const RESET_WATCHES: Self = Self(21);
    pub(crate) const DIRECTORY_PART: Self = Self(22);
}

/// What precedes every payload (`struct xsd_sockmsg`).
#[doc(alias = "xsd_sockmsg")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: MessageType,
    /// Chosen by us, echoed in the answer; 0 in a watch event.
    pub(crate) req_id: u32,
    /// The transaction, 0 for none.
    pub(crate) tx_id: u32,
    /// Length of the payload.
    pub(crate) len_bytes: u32,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let words = [self.kind.0, self.req_id, self.tx_id, self.len_bytes];
        for (into, word) in bytes.chunks_exact_mut(4).zip(words) {
            into.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: [u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self { kind: MessageType(word(0)), req_id: word(4), tx_id: word(8), len_bytes: word(12) }
    }

    /// The payload as the answer to a request of type `expected`, or the error that it carries.
    pub(crate) fn answer(self, expected: MessageType, payload: &[u8]) -> Result<&[u8], Error> {
        match self.kind {
            MessageType::ERROR => Err(Error::from_payload(payload)),
            kind if kind == expected => Ok(payload),
            _ => Err(Error::BadReply),
        }
    }
}

/// A decimal number as xenstored writes them: digits and nothing else. `None` if it does not fit.
pub(crate) fn parse_decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_four_little_endian_words() {
        let header = Header {
            kind: MessageType::WRITE,
            req_id: 0x0403_0201,
            tx_id: 0x8877_6655,
            len_bytes: 4096,
        };
        let bytes = [11, 0, 0, 0, 1, 2, 3, 4, 0x55, 0x66, 0x77, 0x88, 0, 16, 0, 0];
        assert_eq!(header.encode(), bytes);
        assert_eq!(Header::decode(bytes), header);
    }

    #[test]
    fn an_answer_is_of_the_expected_type_or_an_error() {
        let header = |kind| Header { kind, req_id: 1, tx_id: 0, len_bytes: 0 };
        let ask = |kind, payload| header(kind).answer(MessageType::READ, payload);
        assert_eq!(ask(MessageType::READ, b"v"), Ok(&b"v"[..]));
        assert_eq!(ask(MessageType::WRITE, b"OK\0"), Err(Error::BadReply));
        assert_eq!(ask(MessageType::ERROR, b"ENOENT\0"), Err(Error::Enoent));
    }

    #[test]
    fn decimals_are_digits_that_fit() {
        assert_eq!(parse_decimal(b"0"), Some(0));
        assert_eq!(parse_decimal(b"18446744073709551615"), Some(u64::MAX));
        for text in [&b""[..], b"18446744073709551616", b"+1", b"-1", b" 1", b"1\0", b"0x1"] {
            assert_eq!(parse_decimal(text), None, "{text:?}");
        }
    }
}
