//! The seam to whatever keeps a disk's bytes outside our memory: another domain's disk, a controller.
//!
//! A device moves data between its disk and pages of its own, which it can reach by itself. Requests
//! are taken, sent together, and completed in any order.

use core::convert::Infallible;

use thiserror::Error;
use xen_abi::Gfn;

use crate::block_store::Flushing;
use crate::geometry::Geometry;

/// The caller's own name for a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tag(pub u64);

/// What a device is asked for. `B` are pages that it reserved.
#[derive(PartialEq, Eq, Debug)]
pub enum Request<B> {
    /// Disk to buffer, all of it.
    Read {
        /// The disk's first sector.
        sector: u64,
        /// Where to.
        buffer: B,
    },
    /// Buffer to disk, all of it.
    Write {
        /// The disk's first sector.
        sector: u64,
        /// Where from.
        buffer: B,
    },
    /// All writes that are completed are made durable.
    Flush,
    /// These sectors are no longer in use.
    Discard {
        /// First sector.
        sector: u64,
        /// How many.
        nr_sectors: u64,
    },
    /// The contents of these sectors must be gone for good.
    SecureDiscard {
        /// First sector.
        sector: u64,
        /// How many.
        nr_sectors: u64,
    },
}

impl<B> Request<B> {
    /// The same request with another buffer; `None` where it is to have one and there is none.
    pub(crate) fn with_buffer<C>(self, buffer: Option<C>) -> Option<Request<C>> {
        Some(match self {
            Self::Read { sector, .. } => Request::Read { sector, buffer: buffer? },
            Self::Write { sector, .. } => Request::Write { sector, buffer: buffer? },
            Self::Flush => Request::Flush,
            Self::Discard { sector, nr_sectors } => Request::Discard { sector, nr_sectors },
            Self::SecureDiscard { sector, nr_sectors } => {
                Request::SecureDiscard { sector, nr_sectors }
            }
        })
    }

    /// Its buffer, if it has one.
    pub fn into_buffer(self) -> Option<B> {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } => Some(buffer),
            Self::Flush | Self::Discard { .. } | Self::SecureDiscard { .. } => None,
        }
    }
}

/// A request that was not taken.
#[derive(PartialEq, Eq, Debug, Error)]
#[error("{reason}")]
pub struct Refused<B> {
    /// Why.
    pub reason: Refusal,
    /// The request itself, with its buffer.
    pub request: Request<B>,
}

/// Why a request is not taken. The ranges of those that are were checked by who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Refusal {
    /// As many requests are under way as there can be; ask again after a completion.
    #[error("all {max} requests are in use")]
    Full {
        /// How many there can be.
        max: usize,
    },
    /// It would have failed.
    #[error("{0}")]
    Failed(#[from] Failure),
}

/// Why a request was not done. Some of it may have been.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Failure {
    /// The device answered that it failed.
    #[error("the device failed")]
    Device,
    /// The device does not know or offer it.
    #[error("the device does not support it")]
    NotSupported,
    /// Not within the disk as the device has it now, or not whole blocks of it.
    #[error("not on the device's disk")]
    Range,
    /// The device's disk is only read.
    #[error("the device is read-only")]
    ReadOnly,
    /// There was no answer in time; what became of the request is not known.
    #[error("the device did not answer in time")]
    TimedOut,
    /// The device is gone: what became of the request is not known.
    #[error("the device is gone")]
    Gone,
}

/// A request that is over.
#[derive(PartialEq, Eq, Debug)]
pub struct Completion<B> {
    /// The caller's name for it.
    pub tag: Tag,
    /// How it went.
    pub result: Result<(), Failure>,
    /// The buffer, if it had one; `None` where the device may still write it.
    pub buffer: Option<B>,
}

/// A disk that is reached by requests.
///
/// Data lies in frames that the device can write at any time, also after the completion: what is
/// read there twice may differ.
pub trait Device {
    /// Pages that are reserved for one read or write, until they are given back.
    type Buffer;

    /// What the disk says of itself now.
    fn geometry(&self) -> Geometry;

    /// Whether flushes are taken.
    fn flushing(&self) -> Flushing;

    /// The longest buffer that there can be, in sectors of 512 bytes: at least a page's. A request
    /// of it that is too long for the device to carry out at once goes in parts, but is one to whoever
    /// asks. 0 of a device that is gone ([`Failure::Gone`]), whose buffers may never come back.
    fn max_sectors(&self) -> u64;

    /// Reserves a buffer of at least one sector. `None` where too few pages are free: ask again when
    /// one has been given back.
    fn reserve(&mut self, nr_sectors: u32) -> Option<Self::Buffer>;

    /// Makes a buffer of so many sectors of pages that are not its own: 8 sectors each, the last maybe
    /// fewer. They are accessed until the buffer comes back by a [completion](Self::complete) or a refusal.
    /// `None` where that cannot be, or not now.
    fn lend(&mut self, _frames: &[Gfn], _nr_sectors: u32) -> Option<Self::Buffer> {
        None
    }

    /// Gives a buffer back.
    fn give_back(&mut self, buffer: Self::Buffer);

    /// Hands `each` the frames that hold a buffer's bytes, from the start of the first on: 8 sectors
    /// each, the last maybe fewer.
    fn frames(&self, buffer: &Self::Buffer, each: &mut dyn FnMut(Gfn));

    /// Takes a request; it may be sent later, together with others.
    ///
    /// # Errors
    /// It is not taken.
    fn submit(
        &mut self,
        tag: Tag,
        request: Request<Self::Buffer>,
    ) -> Result<(), Refused<Self::Buffer>>;

    /// Takes a request that is over. `None` where none is: an event tells of the next.
    fn complete(&mut self) -> Option<Completion<Self::Buffer>>;
}

/// No device: where there are none.
impl Device for Infallible {
    type Buffer = Self;

    fn geometry(&self) -> Geometry {
        match *self {}
    }

    fn flushing(&self) -> Flushing {
        match *self {}
    }

    fn max_sectors(&self) -> u64 {
        match *self {}
    }

    fn reserve(&mut self, _: u32) -> Option<Self> {
        match *self {}
    }

    fn give_back(&mut self, buffer: Self) {
        match buffer {}
    }

    fn frames(&self, buffer: &Self, _: &mut dyn FnMut(Gfn)) {
        match *buffer {}
    }

    fn submit(&mut self, _: Tag, _: Request<Self>) -> Result<(), Refused<Self>> {
        match *self {}
    }

    fn complete(&mut self) -> Option<Completion<Self>> {
        match *self {}
    }
}
