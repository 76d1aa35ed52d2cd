//! The state of either end of a device (`io/xenbus.h`).

use core::fmt;

/// What a frontend or a backend says of itself in its `state` node (`enum xenbus_state`,
/// `io/xenbus.h`).
#[doc(alias = "xenbus_state")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum XenbusState {
    /// The device is not there, or its state cannot be read.
    Unknown = 0,
    /// What the toolstack creates a device with.
    Initialising = 1,
    /// The backend has published what it offers and waits for the frontend.
    InitWait = 2,
    /// The frontend has published its ring and waits for the backend.
    Initialised = 3,
    /// The ring is in use.
    Connected = 4,
    /// The device is going away.
    Closing = 5,
    /// The device is gone.
    Closed = 6,
    /// Reserved for hot reconfiguration; blkif does not use it.
    Reconfiguring = 7,
    /// Reserved for hot reconfiguration; blkif does not use it.
    Reconfigured = 8,
}

impl XenbusState {
    /// Reads a `state` node's text: decimal digits, 0 to 8. `None` for anything else.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let [digit] = text else { return None };
        Some(match digit {
            b'0' => Self::Unknown,
            b'1' => Self::Initialising,
            b'2' => Self::InitWait,
            b'3' => Self::Initialised,
            b'4' => Self::Connected,
            b'5' => Self::Closing,
            b'6' => Self::Closed,
            b'7' => Self::Reconfiguring,
            b'8' => Self::Reconfigured,
            _ => return None,
        })
    }
}

/// As a `state` node holds it: one decimal digit.
impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&(*self as u8), f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::XenbusState;
    use std::string::ToString;

    #[test]
    fn every_state_reads_back_as_it_is_written() {
        for digit in b'0'..=b'8' {
            let state = XenbusState::parse(&[digit]).unwrap();
            assert_eq!(state.to_string().as_bytes(), &[digit]);
        }
    }

    #[test]
    fn anything_else_is_no_state() {
        for text in [&b""[..], b"9", b"04", b"4 ", b"-1", b"x", b"\xff"] {
            assert_eq!(XenbusState::parse(text), None, "{text:?}");
        }
    }
}
