//! Which ABI a frontend speaks, and how large its ring is.

use thiserror::Error;
use xen_abi::PAGE_SIZE;

use crate::layout::{self, Layout};

/// The ABI of a frontend's requests and responses (`XEN_IO_PROTO_ABI_*`, `io/protocols.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Abi {
    /// `x86_64-abi`.
    X86_64,
    /// `x86_32-abi`: 64-bit fields are aligned to 4 bytes.
    X86_32,
}

/// A `protocol` node that names no ABI of this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("protocol {0:?} is neither x86_64-abi nor x86_32-abi")]
pub struct UnknownProtocol<'a>(pub &'a str);

impl Abi {
    /// What a frontend without a `protocol` node speaks (`XEN_IO_PROTO_ABI_NATIVE`).
    #[doc(alias = "XEN_IO_PROTO_ABI_NATIVE")]
    pub const NATIVE: Self = Self::X86_64;

    /// Reads a frontend's [`protocol`](crate::keys::PROTOCOL) node; `None` where there is none.
    ///
    /// # Errors
    /// [`UnknownProtocol`] for any other text: a guess would misread every request.
    pub fn from_protocol(node: Option<&str>) -> Result<Self, UnknownProtocol<'_>> {
        match node {
            None => Ok(Self::NATIVE),
            Some("x86_64-abi") => Ok(Self::X86_64),
            Some("x86_32-abi") => Ok(Self::X86_32),
            Some(other) => Err(UnknownProtocol(other)),
        }
    }

    /// The text of a `protocol` node.
    #[must_use]
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-abi",
            Self::X86_32 => "x86_32-abi",
        }
    }

    /// Where the fields of this ABI's requests lie.
    #[must_use]
    pub const fn layout(self) -> &'static Layout {
        match self {
            Self::X86_64 => &layout::X86_64,
            Self::X86_32 => &layout::X86_32,
        }
    }

    /// How many slots a ring of `order` has: what fits behind the header, rounded down to a power
    /// of two (`__CONST_RING_SIZE`, `io/ring.h`).
    #[doc(alias = "RING_SIZE")]
    #[must_use]
    pub const fn nr_entries(self, order: RingOrder) -> u32 {
        let fitting = (order.len_bytes() - layout::RING) / self.layout().entry_len_bytes;
        1 << fitting.ilog2()
    }
}

/// log2 of a ring's pages, 0 to 5 (`ring-page-order`). Order 5 is the largest that any frontend
/// asks for (FreeBSD).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RingOrder(u8);

/// A ring size that the protocol or this crate does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadRingPages {
    /// `ring-page-order` is past the largest.
    #[error("ring order {order} is larger than {max}")]
    OrderTooLarge {
        /// What was asked for.
        order: u32,
        /// [`RingOrder::MAX`].
        max: u32,
    },
    /// `num-ring-pages` is no power of two.
    #[error("{nr_pages} ring pages are no power of two")]
    NotPowerOfTwo {
        /// What was asked for.
        nr_pages: u32,
    },
}

impl RingOrder {
    /// One page, which every peer knows; the default.
    pub const ONE_PAGE: Self = Self(0);
    /// The largest ring: 32 pages.
    pub const MAX: Self = Self(5);

    /// From `ring-page-order`.
    ///
    /// # Errors
    /// [`BadRingPages::OrderTooLarge`] past [`RingOrder::MAX`].
    pub const fn new(order: u32) -> Result<Self, BadRingPages> {
        let max = Self::MAX.get();
        if order > max {
            return Err(BadRingPages::OrderTooLarge { order, max });
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 5")]
        Ok(Self(order as u8))
    }

    /// From `num-ring-pages`.
    ///
    /// # Errors
    /// [`BadRingPages::NotPowerOfTwo`], also for 0; [`BadRingPages::OrderTooLarge`].
    pub const fn from_nr_pages(nr_pages: u32) -> Result<Self, BadRingPages> {
        if !nr_pages.is_power_of_two() {
            return Err(BadRingPages::NotPowerOfTwo { nr_pages });
        }
        Self::new(nr_pages.ilog2())
    }

    /// The order itself, 0 to 5.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0 as u32
    }

    /// Pages, 1 to 32.
    #[must_use]
    pub const fn nr_pages(self) -> u32 {
        1 << self.0
    }

    /// Bytes of the whole ring, header included.
    #[must_use]
    pub const fn len_bytes(self) -> usize {
        PAGE_SIZE << self.0
    }
}
