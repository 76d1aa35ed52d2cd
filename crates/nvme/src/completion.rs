//! Entries of a completion queue, and what they say (base specification 1.4, section 4.6).

use core::fmt;

/// Bytes of an entry of a completion queue.
pub(crate) const COMPLETION_LEN: usize = 16;

/// SCT and SC of a completion (4.6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Status Code Type, 0 to 7.
    pub sct: u8,
    /// Status Code.
    pub sc: u8,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {:x}h/{:02x}h", self.sct, self.sc)
    }
}

/// Whether a command that failed may succeed if it is sent again (DNR, 4.6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Retry {
    May,
    DoNot,
}

/// An entry, copied out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// What the entry is about.
    pub(crate) cid: u16,
    pub(crate) result: Result<(), (Status, Retry)>,
}

impl Entry {
    /// Reads the last word of an entry, without its phase tag.
    #[expect(clippy::cast_possible_truncation, reason = "fields of 16, 8 and 3 bits")]
    pub(crate) const fn parse(dw3: u32) -> Self {
        let status = Status { sct: (dw3 >> 25 & 0b111) as u8, sc: (dw3 >> 17) as u8 };
        let retry = if dw3 >> 31 == 0 { Retry::May } else { Retry::DoNot };
        let done = status.sct == 0 && status.sc == 0;
        Self { cid: dw3 as u16, result: if done { Ok(()) } else { Err((status, retry)) } }
    }
}
