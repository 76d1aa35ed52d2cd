//! What comes from xenstored.

use core::str;

use crate::error::Error;

/// One message from xenstored, as far as it is the caller's business.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<'a, T> {
    /// The one answer to what was submitted with `tag`.
    Reply {
        /// As submitted.
        tag: T,
        /// What came of it.
        result: Result<Reply<'a>, Error>,
    },
    /// A watched node, or one below it, may have changed. May come without a change, and for a
    /// while after the watch was ended.
    Watch {
        /// The changed node; relative if the watch's path was.
        path: &'a str,
        /// The watch's token.
        token: &'a str,
    },
    /// A message that is of no use and was dropped: worth a line in a log.
    Stray(Stray),
}

/// What a request yields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply<'a> {
    /// It is done.
    Done,
    /// The value of a node.
    Value(&'a [u8]),
    /// The names of a node's children.
    Names(Names<'a>),
}

/// A message that answers nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stray {
    /// No request with this number is waiting for an answer.
    #[error("xenstore message of type {kind} for request {req_id}, which is not waiting for one")]
    Reply {
        /// The message's type (`enum xsd_sockmsg_type`).
        kind: u32,
        /// The request that it is said to answer.
        req_id: u32,
    },
    /// A watch event that is not a path and a token in UTF-8, each followed by a NUL.
    #[error("malformed xenstore watch event of {len_bytes} bytes")]
    Watch {
        /// Length of its payload.
        len_bytes: usize,
    },
}

/// The names of a directory's children, in xenstored's order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names<'a>(&'a str);

impl<'a> Names<'a> {
    /// `names` is nothing, or names in UTF-8, not empty, each followed by a NUL.
    pub(crate) fn parse(names: &'a [u8]) -> Option<Self> {
        let names = str::from_utf8(names).ok()?;
        let whole = names.is_empty() || names.ends_with('\0');
        (whole && !names.starts_with('\0') && !names.contains("\0\0")).then_some(Self(names))
    }
}

impl<'a> Iterator for Names<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (name, rest) = self.0.split_once('\0')?;
        self.0 = rest;
        Some(name)
    }
}

/// The path and the token of a watch event.
pub(crate) fn parse_watch(payload: &[u8]) -> Option<(&str, &str)> {
    let text = str::from_utf8(payload).ok()?;
    let (path, token) = text.strip_suffix('\0')?.split_once('\0')?;
    (!path.is_empty() && !token.contains('\0')).then_some((path, token))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn names(payload: &[u8]) -> Option<Vec<&str>> {
        Names::parse(payload).map(Iterator::collect)
    }

    #[test]
    fn names_are_split_at_their_nuls() {
        assert_eq!(names(b""), Some(Vec::new()));
        assert_eq!(names(b"a\0"), Some(["a"].to_vec()));
        assert_eq!(names(b"51712\x0051728\0x\0"), Some(["51712", "51728", "x"].to_vec()));
        for payload in [&b"a"[..], b"a\0b", b"\0", b"a\0\0", b"\0a\0", b"\xff\0"] {
            assert_eq!(names(payload), None, "{payload:?}");
        }
    }

    #[test]
    fn a_watch_event_is_a_path_and_a_token() {
        assert_eq!(parse_watch(b"a/b\0t\0"), Some(("a/b", "t")));
        assert_eq!(parse_watch(b"a\0\0"), Some(("a", "")));
        for payload in
            [&b""[..], b"a", b"a\0", b"a\0t", b"\0t\0", b"a\0t\0x\0", b"a\0t\0\0", b"\xff\0t\0"]
        {
            assert_eq!(parse_watch(payload), None, "{payload:?}");
        }
    }
}
