//! xenstored's errors (`xsd_errors`, `io/xs_wire.h`).

use std::fmt;

/// An error as xenstored names it on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Errno {
    /// The request is malformed.
    Einval,
    /// The permissions forbid it.
    Eacces,
    /// It is there already.
    Eexist,
    /// It is not there.
    Enoent,
    /// xenstored is out of memory, or the transaction failed in the middle.
    Enomem,
    /// A quota is used up.
    Enospc,
    /// Input or output failed.
    Eio,
    /// No such operation.
    Enosys,
    /// A transaction within a transaction.
    Ebusy,
    /// The transaction conflicts with what others wrote meanwhile.
    Eagain,
    /// Too large, or too many watches.
    E2big,
    /// Only the owner may.
    Eperm,
    /// A quota is used up, as oxenstored says it.
    Equota,
}

impl Errno {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Einval => "EINVAL",
            Self::Eacces => "EACCES",
            Self::Eexist => "EEXIST",
            Self::Enoent => "ENOENT",
            Self::Enomem => "ENOMEM",
            Self::Enospc => "ENOSPC",
            Self::Eio => "EIO",
            Self::Enosys => "ENOSYS",
            Self::Ebusy => "EBUSY",
            Self::Eagain => "EAGAIN",
            Self::E2big => "E2BIG",
            Self::Eperm => "EPERM",
            Self::Equota => "EQUOTA",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
