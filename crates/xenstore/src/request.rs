//! What can be asked of xenstored, and how it reads on the wire (`docs/misc/xenstore.txt`).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::DomId;

use crate::error::{Error, SubmitError};
use crate::wire::{ABS_PATH_MAX, HEADER_BYTES, MessageType, PAYLOAD_MAX, REL_PATH_MAX};

/// A request outside of a transaction. A path that does not begin with `/` is relative to our own
/// `/local/domain/<domid>`.
///
/// Answered by [`Reply::Value`](crate::Reply::Value) (`Read`),
/// [`Reply::Names`](crate::Reply::Names) (`Directory`), else by
/// [`Reply::Done`](crate::Reply::Done).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// The value of a node.
    Read(&'a str),
    /// The names of a node's children, however many they are.
    Directory(&'a str),
    /// Sets a node's value; creates it and its missing parents.
    Write(&'a str, &'a [u8]),
    /// Creates a node, empty, and its missing parents, if it does not exist.
    Mkdir(&'a str),
    /// Removes a node and all below it. No error if only the node itself does not exist; `ENOENT`
    /// if its parent does not either.
    Remove(&'a str),
    /// Sets who may read and write a node.
    SetPerms(&'a str, &'a Perms),
    /// Watches a node and all below it. One event comes at once.
    Watch {
        /// The node, which need not exist; or `@introduceDomain`, `@releaseDomain`.
        path: &'a str,
        /// Comes back with each event.
        token: &'a str,
    },
    /// Ends a watch. Events that were on their way may still arrive after the answer.
    Unwatch {
        /// As given to `Watch`.
        path: &'a str,
        /// As given to `Watch`.
        token: &'a str,
    },
    /// Ends all watches and transactions of our domain, also those of an earlier life.
    ResetWatches,
}

impl<'a> Request<'a> {
    pub(crate) fn kind(&self) -> MessageType {
        match self {
            Self::Read(_) => MessageType::READ,
            Self::Directory(_) => MessageType::DIRECTORY,
            Self::Write(..) => MessageType::WRITE,
            Self::Mkdir(_) => MessageType::MKDIR,
            Self::Remove(_) => MessageType::RM,
            Self::SetPerms(..) => MessageType::SET_PERMS,
            Self::Watch { .. } => MessageType::WATCH,
            Self::Unwatch { .. } => MessageType::UNWATCH,
            Self::ResetWatches => MessageType::RESET_WATCHES,
        }
    }

    /// The payload in pieces.
    pub(crate) fn payload(&self) -> [&'a [u8]; 4] {
        match *self {
            Self::Read(path) | Self::Directory(path) | Self::Mkdir(path) | Self::Remove(path) => {
                [path.as_bytes(), b"\0", b"", b""]
            }
            Self::Write(path, value) => [path.as_bytes(), b"\0", value, b""],
            Self::SetPerms(path, perms) => [path.as_bytes(), b"\0", &perms.text, b""],
            Self::Watch { path, token } | Self::Unwatch { path, token } => {
                [path.as_bytes(), b"\0", token.as_bytes(), b"\0"]
            }
            Self::ResetWatches => [b"\0", b"", b"", b""],
        }
    }

    /// Checks all that xenstored would punish or misread, and returns the message's length in
    /// bytes. Which characters a path may have is left to xenstored, which answers `EINVAL`.
    pub(crate) fn check(&self) -> Result<usize, SubmitError> {
        match *self {
            Self::Read(path)
            | Self::Directory(path)
            | Self::Write(path, _)
            | Self::Mkdir(path)
            | Self::Remove(path)
            | Self::SetPerms(path, _) => check_path(path)?,
            Self::Watch { path, token } | Self::Unwatch { path, token } => {
                check_path(path)?;
                check_no_nul(token)?;
            }
            Self::ResetWatches => (),
        }
        let len_bytes = self.payload().iter().fold(0, |sum: usize, p| sum.saturating_add(p.len()));
        if len_bytes > PAYLOAD_MAX {
            return Err(SubmitError::PayloadTooLong { len_bytes, max_bytes: PAYLOAD_MAX });
        }
        Ok(HEADER_BYTES + len_bytes)
    }
}

fn check_path(path: &str) -> Result<(), SubmitError> {
    let max_bytes = if path.starts_with(['/', '@']) { ABS_PATH_MAX } else { REL_PATH_MAX };
    match path.len() {
        0 => Err(SubmitError::EmptyPath),
        len_bytes if len_bytes > max_bytes => {
            Err(SubmitError::PathTooLong { len_bytes, max_bytes })
        }
        _ => check_no_nul(path),
    }
}

fn check_no_nul(text: &str) -> Result<(), SubmitError> {
    match text.find('\0') {
        Some(offset) => Err(SubmitError::ContainsNul { offset }),
        None => Ok(()),
    }
}

/// One of the changes that a transaction makes together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// As [`Request::Write`].
    Write(String, Vec<u8>),
    /// As [`Request::Remove`].
    Remove(String),
    /// None at all: where the node does not say this, the others take no effect either
    /// ([`Error::Unexpected`](crate::Error::Unexpected)).
    Expect(String, Vec<u8>),
}

impl Change {
    pub(crate) fn request(&self) -> Request<'_> {
        match self {
            Self::Write(path, value) => Request::Write(path, value),
            Self::Remove(path) => Request::Remove(path),
            Self::Expect(path, _) => Request::Read(path),
        }
    }

    /// Bytes that are kept of it besides the request.
    pub(crate) fn kept_bytes(&self) -> usize {
        match self {
            Self::Expect(_, value) => value.len(),
            Self::Write(..) | Self::Remove(_) => 0,
        }
    }

    /// What an answer to its request says of it.
    pub(crate) fn judge(&self, answer: Result<&[u8], Error>) -> Result<(), Error> {
        match (self, answer) {
            (Self::Expect(_, value), Ok(found)) if found == value => Ok(()),
            (Self::Expect(..), Ok(_) | Err(Error::Enoent)) => Err(Error::Unexpected),
            (_, answer) => answer.map(drop),
        }
    }
}

/// What a domain may do with a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Nothing.
    None,
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Both.
    ReadWrite,
}

/// A node's permissions, the owner's entry first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Perms {
    text: Vec<u8>,
}

impl Perms {
    /// `domid` owns the node and may do all with it; every domain not named later has `others`.
    #[must_use]
    pub fn new(domid: DomId, others: Access) -> Self {
        Self { text: Vec::new() }.and(domid, others)
    }

    /// And `domid` has `access`.
    #[must_use]
    pub fn and(mut self, domid: DomId, access: Access) -> Self {
        let letter = match access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::ReadWrite => 'b',
        };
        self.text.extend_from_slice(format!("{letter}{domid}\0").as_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_checked_with_their_own_limit() {
        let path = |first: &str, len: usize| format!("{first}{}", "a".repeat(len - 1));
        let check = |path: &str| Request::Read(path).check();
        assert_eq!(check(""), Err(SubmitError::EmptyPath));
        assert_eq!(check("a\0b"), Err(SubmitError::ContainsNul { offset: 1 }));
        assert_eq!(check(&path("a", 2048)), Ok(16 + 2049));
        assert_eq!(
            check(&path("a", 2049)),
            Err(SubmitError::PathTooLong { len_bytes: 2049, max_bytes: 2048 })
        );
        for first in ["/", "@"] {
            assert_eq!(check(&path(first, 3072)), Ok(16 + 3073));
            assert_eq!(
                check(&path(first, 3073)),
                Err(SubmitError::PathTooLong { len_bytes: 3073, max_bytes: 3072 })
            );
        }
    }

    #[test]
    fn every_request_with_a_path_has_it_checked() {
        let perms = Perms::new(DomId(0), Access::None);
        for request in [
            Request::Read(""),
            Request::Directory(""),
            Request::Write("", b""),
            Request::Mkdir(""),
            Request::Remove(""),
            Request::SetPerms("", &perms),
            Request::Watch { path: "", token: "" },
            Request::Unwatch { path: "", token: "" },
            Change::Remove(String::new()).request(),
        ] {
            assert_eq!(request.check(), Err(SubmitError::EmptyPath), "{request:?}");
        }
        let watch = Request::Watch { path: "a", token: "to\0ken" };
        assert_eq!(watch.check(), Err(SubmitError::ContainsNul { offset: 2 }));
        let unwatch = Request::Unwatch { path: "a", token: "\0" };
        assert_eq!(unwatch.check(), Err(SubmitError::ContainsNul { offset: 0 }));
    }

    #[test]
    fn a_payload_has_at_most_4096_bytes() {
        let value = [0; 4095];
        assert_eq!(Request::Write("a", &value[..4094]).check(), Ok(16 + 4096));
        assert_eq!(
            Request::Write("a", &value).check(),
            Err(SubmitError::PayloadTooLong { len_bytes: 4097, max_bytes: 4096 })
        );
    }

    #[test]
    fn permissions_read_as_letter_and_domid() {
        let perms = Perms::new(DomId(0), Access::None)
            .and(DomId(7), Access::Read)
            .and(DomId(65535), Access::Write)
            .and(DomId(12), Access::ReadWrite);
        assert_eq!(perms.text, b"n0\0r7\0w65535\0b12\0");
    }
}
