//! Why a disk cannot be had or changed.

use alloc::string::String;
use core::fmt;

use catalog::{Ground, Namespace, VirtualDevice};
use store::StoreError;

use crate::disks::HeldBy;

/// Why a disk cannot be had or changed, as a person is told.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The toolstack's or dom0's words.
    #[error("{0}")]
    Words(String),
    #[error("there is no disk or image called {0}")]
    Unknown(String),
    #[error("there is no image called {0}")]
    NoImage(String),
    #[error("{0} is an image: it stays as it is")]
    IsImage(String),
    #[error("there is a disk or an image called {0} already")]
    Exists(String),
    #[error("{name} is no overlay of {image}")]
    OtherBase { name: String, image: String },
    #[error("{name} is in use: {by}")]
    Held { name: String, by: HeldBy },
    #[error("{0} is still giving its pages back")]
    AtWork(String),
    #[error("{0} is read-only: say access=ro, or add ro to its target=")]
    ReadOnly(String),
    #[error("{name} is no disk that can {verb}")]
    Unable { name: String, verb: &'static str },
    #[error("there are {0} disks, more are not kept")]
    TooMany(usize),
    #[error("upstream {device} is not connected: {state}")]
    NotConnected { device: VirtualDevice, state: String },
    #[error("{0} is gone")]
    Gone(Namespace),
    #[error("{} is in use there: {by}", Titled(*device))]
    UpstreamHeld { device: Ground, by: HeldBy },
    #[error("{} is in use there: {name} stands on it", Titled(*device))]
    UpstreamBase { device: Ground, name: String },
    #[error("there are {0} upstream disks, more are not kept")]
    TooManyUpstreams(usize),
    #[error("Granary is ending")]
    Ending,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a disk is on, as a person is told.
struct Titled(Ground);

impl fmt::Display for Titled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ground::Vbd(device) => write!(f, "upstream {device}"),
            Ground::Namespace(namespace) => namespace.fmt(f),
        }
    }
}

/// errno numbers as an `error` node begins with.
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
const ENOENT: u32 = 2;
const ENXIO: u32 = 6;
const ENOMEM: u32 = 12;
const EBUSY: u32 = 16;
const EEXIST: u32 = 17;
const EROFS: u32 = 30;

impl Refusal {
    /// The errno for the error node.
    pub(crate) const fn errno(&self) -> u32 {
        match self {
            Self::Unknown(_) | Self::NoImage(_) => ENOENT,
            Self::Exists(_) => EEXIST,
            Self::Held { .. }
            | Self::UpstreamHeld { .. }
            | Self::UpstreamBase { .. }
            | Self::AtWork(_)
            | Self::Ending => EBUSY,
            Self::NotConnected { .. } | Self::Gone(_) => ENXIO,
            Self::ReadOnly(_) => EROFS,
            Self::TooMany(_)
            | Self::TooManyUpstreams(_)
            | Self::Store(StoreError::TooLarge { .. } | StoreError::NoMemory { .. }) => ENOMEM,
            _ => EINVAL,
        }
    }
}

impl From<catalog::Error<'_>> for Refusal {
    fn from(error: catalog::Error<'_>) -> Self {
        let word = crate::text::Printable(error.word.as_bytes());
        Self::Words(alloc::format!("`{word}`: {}", error.problem))
    }
}
