//! What can go wrong, and how far it reaches: one submission, one request, the connection.

/// Why a request was not queued. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubmitError {
    /// The empty path names nothing.
    #[error("empty xenstore path")]
    EmptyPath,
    /// A path is limited to 3072 bytes (`XENSTORE_ABS_PATH_MAX`), a relative one to 2048
    /// (`XENSTORE_REL_PATH_MAX`).
    #[error("xenstore path of {len_bytes} bytes, at most {max_bytes} are allowed")]
    PathTooLong {
        /// Length of the path.
        len_bytes: usize,
        /// Length that it may have.
        max_bytes: usize,
    },
    /// A NUL byte in a path or a token, which end in one.
    #[error("NUL byte at offset {offset} of a xenstore path or token")]
    ContainsNul {
        /// Offset of the first NUL in bytes.
        offset: usize,
    },
    /// Path, value and separators are limited to 4096 bytes (`XENSTORE_PAYLOAD_MAX`): xenstored
    /// ends the connection of who sends more.
    #[error("xenstore request of {len_bytes} bytes, at most {max_bytes} are allowed")]
    PayloadTooLong {
        /// Length of the payload.
        len_bytes: usize,
        /// Length that it may have.
        max_bytes: usize,
    },
    /// Too much is unanswered already. Try again after an answer has come.
    #[error(
        "xenstore queue full: {needed_bytes} bytes more than the {held_bytes} of {bound_bytes} in use"
    )]
    QueueFull {
        /// What this request needs.
        needed_bytes: usize,
        /// What unanswered requests hold.
        held_bytes: usize,
        /// What they may hold together.
        bound_bytes: usize,
    },
}

/// The connection is broken: where the next message begins is no longer known, or xenstored has
/// stopped listening. Every later call says the same as long as the page does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// `req_cons` is ahead of `req_prod`, or more than the ring's 1024 bytes behind.
    #[error("xenstore request ring: req_cons {consumed} does not fit req_prod {produced}")]
    RequestIndex {
        /// xenstored's `req_cons`.
        consumed: u32,
        /// Our `req_prod`.
        produced: u32,
    },
    /// `rsp_prod` is behind `rsp_cons`, or more than the ring's 1024 bytes ahead.
    #[error("xenstore response ring: rsp_prod {produced} does not fit rsp_cons {consumed}")]
    ResponseIndex {
        /// Our `rsp_cons`.
        consumed: u32,
        /// xenstored's `rsp_prod`.
        produced: u32,
    },
    /// A message says it is longer than the protocol allows.
    #[error("xenstore message of {len_bytes} bytes, at most {max_bytes} are allowed")]
    MessageTooLong {
        /// Length in the message's header.
        len_bytes: u32,
        /// Length that it may have.
        max_bytes: usize,
    },
    /// xenstored has given the connection up (`error` in `struct xenstore_domain_interface`).
    #[error("xenstored ended the connection with XENSTORE_ERROR {code}")]
    Disconnected {
        /// `XENSTORE_ERROR_*`: 1 no event channel, 2 a ring index, 3 a payload too long.
        code: u32,
    },
}

macro_rules! errors {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why xenstored did not do what was asked: the errno names of `xsd_errors`
        /// (`io/xs_wire.h`), oxenstored's own, and what does not come from xenstored.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
        pub enum Error {
            $($(#[$doc])* #[error($name)] $variant,)*
            /// An error that is not in this list.
            #[error("an unknown error")]
            Other,
            /// The answer had another type than the request, or was not built as its type asks.
            /// Whether the request took effect is not known.
            #[error("a malformed reply")]
            BadReply,
            /// A node does not say what it is [expected](crate::Change::Expect) to.
            #[error("another value than expected")]
            Unexpected,
        }

        impl Error {
            fn from_name(name: &[u8]) -> Self {
                $(if name == $name.as_bytes() {
                    return Self::$variant;
                })*
                Self::Other
            }
        }
    };
}

errors! {
    /// The request is malformed, or its path is.
    Einval = "EINVAL",
    /// The node's permissions forbid it.
    Eacces = "EACCES",
    /// The watch exists already.
    Eexist = "EEXIST",
    /// In the protocol's list; of no use to us.
    Eisdir = "EISDIR",
    /// No such node, watch or transaction.
    Enoent = "ENOENT",
    /// xenstored is short of memory, or a change of the transaction has failed.
    Enomem = "ENOMEM",
    /// xenstored's quota for us is used up: nodes, watches, transactions, size of a node.
    Enospc = "ENOSPC",
    /// xenstored could not read or write its own data.
    Eio = "EIO",
    /// In the protocol's list; of no use to us.
    Enotempty = "ENOTEMPTY",
    /// This xenstored does not know the request.
    Enosys = "ENOSYS",
    /// In the protocol's list; of no use to us.
    Erofs = "EROFS",
    /// xenstored is busy.
    Ebusy = "EBUSY",
    /// Others changed the same nodes meanwhile, on each of [`MAX_TRIES`](crate::MAX_TRIES) tries.
    Eagain = "EAGAIN",
    /// In the protocol's list; of no use to us.
    Eisconn = "EISCONN",
    /// A value above the quota, or more names in a directory than the queue's bound leaves room
    /// for.
    E2big = "E2BIG",
    /// Not permitted.
    Eperm = "EPERM",
    /// oxenstored's name for a used-up quota.
    Equota = "EQUOTA",
}

impl Error {
    /// Reads an ERROR message. It is an error whatever it says, so nothing in it is malformed.
    pub(crate) fn from_payload(payload: &[u8]) -> Self {
        Self::from_name(payload.strip_suffix(b"\0").unwrap_or(payload))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn errors_have_their_errno_names() {
        for (payload, error) in [
            (&b"ENOENT\0"[..], Error::Enoent),
            (b"ENOENT", Error::Enoent),
            (b"EQUOTA\0", Error::Equota),
            (b"E2BIG\0", Error::E2big),
            (b"EAGAIN\0", Error::Eagain),
            (b"ESRCH\0", Error::Other),
            (b"ENOENT\0\0", Error::Other),
            (b"enoent\0", Error::Other),
            (b"", Error::Other),
        ] {
            assert_eq!(Error::from_payload(payload), error, "{payload:?}");
        }
        assert_eq!(Error::Eacces.to_string(), "EACCES");
    }
}
