//! What a backend says of itself and its disk: allegations, until they are checked here.

use alloc::string::{String, ToString};

use blkif::{MAX_SEGMENTS, RingOrder, keys};
use store::{Access, BlockSize, Geometry, SecureDiscard};
use thiserror::Error;

/// Most sectors that a disk can have: 8 EiB.
const MAX_SECTORS: u64 = 1 << 54;

/// Largest physical block in bytes.
const MAX_PHYSICAL_BYTES: u32 = 1 << 20;

/// Most segments of a request of ours, 1 MiB: Linux' backend takes no more, and they fit one page.
const MAX_INDIRECT: u32 = 256;

/// A key of the backend that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum KeyError {
    /// The node is not there, and has no default.
    #[error("the backend has no {key}")]
    Missing {
        /// Which.
        key: &'static str,
    },
    /// It makes no sense.
    #[error("the backend's {key} is \"{value}\", not {expected}")]
    Bad {
        /// Which.
        key: &'static str,
        /// What it says: the first 32 bytes, escaped.
        value: String,
        /// What it might have said.
        expected: &'static str,
    },
}

/// How writes are made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// By `BLKIF_OP_FLUSH_DISKCACHE` (`feature-flush-cache`).
    Cache,
    /// By an empty `BLKIF_OP_WRITE_BARRIER`: only `feature-barrier` is offered.
    Barrier,
    /// Not at all.
    None,
}

/// What discards come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiscardLimits {
    /// The unit that they free, in bytes: at least one logical block, a multiple of it.
    pub granularity_bytes: u32,
    /// Bytes from the disk's start to the first such unit, less than one.
    pub alignment_bytes: u32,
    /// Whether contents can be made to be gone for good (`discard-secure`).
    pub secure: SecureDiscard,
}

/// A disk as its backend describes it, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    /// Capacity in sectors of 512 bytes: 1 to 2^54, whole logical blocks.
    pub nr_sectors: u64,
    /// Logical block size.
    pub logical: BlockSize,
    /// Physical block size in bytes: a power of two from the logical one to 1 MiB.
    pub physical_bytes: u32,
    /// Whether it may be written.
    pub access: Access,
    /// How writes are made durable.
    pub flush: Flush,
    /// What discards come to; `None` where they are not offered.
    pub discard: Option<DiscardLimits>,
    /// Most segments of a request: 11, or what is offered of indirect ones, at most 256.
    pub max_segments: u16,
}

/// The largest ring that the backend offers and that we know, from its
/// [`max-ring-page-order`](keys::MAX_RING_PAGE_ORDER), to be read when it stands in InitWait.
///
/// # Errors
/// [`KeyError::Bad`] where it is no number.
pub fn offered_ring_order(value: Option<&[u8]>) -> Result<RingOrder, KeyError> {
    let order = Node(keys::MAX_RING_PAGE_ORDER, value).number_or(0, &|_| true, "a number")?;
    Ok(RingOrder::new(order).unwrap_or(RingOrder::MAX))
}

impl Disk {
    /// The nodes to read once the backend is connected, in its directory.
    pub const KEYS: [&'static str; 12] = [
        keys::SECTORS,
        keys::SECTOR_SIZE,
        keys::PHYSICAL_SECTOR_SIZE,
        keys::INFO,
        keys::MODE,
        keys::FEATURE_FLUSH_CACHE,
        keys::FEATURE_BARRIER,
        keys::FEATURE_DISCARD,
        keys::DISCARD_GRANULARITY,
        keys::DISCARD_ALIGNMENT,
        keys::DISCARD_SECURE,
        keys::FEATURE_MAX_INDIRECT_SEGMENTS,
    ];

    /// Reads what stands in [`KEYS`](Self::KEYS), in their order; `None` for a node that is not
    /// there.
    ///
    /// # Errors
    /// The first key that cannot be used.
    pub fn parse(values: [Option<&[u8]>; 12]) -> Result<Self, KeyError> {
        let node = |nth: usize| Node(Self::KEYS[nth], values[nth]);
        let (sectors, logical, physical, info) = (node(0), node(1), node(2), node(3));
        let (mode, cache, barrier, discard) = (node(4), node(5), node(6), node(7));
        let (granularity, alignment) = (node(8), node(9));
        let (secure, indirect) = (node(10), node(11));
        let logical = logical.block_size()?;
        let logical_bytes = logical.bytes();
        let physical_bytes = physical.number_or(
            logical_bytes,
            &|bytes| {
                bytes.is_power_of_two() && (logical_bytes..=MAX_PHYSICAL_BYTES).contains(&bytes)
            },
            "a power of two from sector-size to 1048576",
        )?;
        let info: u32 = info.required()?.number_or(0, &|_| true, "a number of 32 bits")?;
        let writable = mode.is_writable()?;
        let access = if info & keys::VdiskInfo::READONLY.bits() == 0 && writable {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        };
        let flush = match (cache.flag()?, barrier.flag()?) {
            (true, _) => Flush::Cache,
            (false, true) => Flush::Barrier,
            (false, false) => Flush::None,
        };
        let discard = if discard.flag()? {
            let granularity_bytes = granularity.number_or(
                logical_bytes,
                &|bytes| bytes > 0 && bytes.is_multiple_of(logical_bytes),
                "a multiple of sector-size",
            )?;
            let alignment_bytes = alignment.number_or(
                0,
                &|bytes| bytes < granularity_bytes,
                "less than discard-granularity",
            )?;
            let secure = if secure.flag()? { SecureDiscard::Offered } else { SecureDiscard::No };
            Some(DiscardLimits { granularity_bytes, alignment_bytes, secure })
        } else {
            None
        };
        let indirect = indirect.number_or(0, &|_| true, "a number of 32 bits")?;
        #[expect(clippy::cast_possible_truncation, reason = "11 to 256")]
        let max_segments = indirect.clamp(MAX_SEGMENTS as u32, MAX_INDIRECT) as u16;
        let nr_sectors = sectors.sectors(logical)?;
        Ok(Self { nr_sectors, logical, physical_bytes, access, flush, discard, max_segments })
    }

    /// Reads what stands in [`sectors`](keys::SECTORS) now: the disk's size may change while it is
    /// connected.
    ///
    /// # Errors
    /// It cannot be used; the disk is best taken to be as large as before.
    pub fn parse_sectors(&self, value: Option<&[u8]>) -> Result<u64, KeyError> {
        Node(keys::SECTORS, value).sectors(self.logical)
    }

    /// The disk as stores describe one.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let Self { nr_sectors, logical, physical_bytes, access, .. } = *self;
        let discard = self.discard.map(|limits| store::DiscardLimits {
            // Units that do not begin where the disk does are none to who can say no more of them.
            granularity_bytes: match limits.alignment_bytes {
                0 => limits.granularity_bytes,
                _ => logical.bytes(),
            },
            secure: limits.secure,
        });
        Geometry { nr_sectors, logical, physical_bytes, access, discard }
    }
}

/// A node of the backend, as it was read.
#[derive(Clone, Copy)]
struct Node<'a>(&'static str, Option<&'a [u8]>);

impl Node<'_> {
    fn bad(&self, expected: &'static str) -> KeyError {
        let Self(key, value) = *self;
        let Some(value) = value else { return KeyError::Missing { key } };
        let shown = &value[..value.len().min(32)];
        KeyError::Bad { key, value: shown.escape_ascii().to_string(), expected }
    }

    /// The node, if it is there.
    fn required(self) -> Result<Self, KeyError> {
        if self.1.is_none() { Err(self.bad("")) } else { Ok(self) }
    }

    /// A number that is `good`; without a default.
    fn number(self, good: &dyn Fn(u64) -> bool, expected: &'static str) -> Result<u64, KeyError> {
        let number = self.1.and_then(keys::number).filter(|&number| good(number));
        number.ok_or_else(|| self.bad(expected))
    }

    /// A number of 32 bits that is `good`, or its default.
    fn number_or(
        self,
        default: u32,
        good: &dyn Fn(u32) -> bool,
        expected: &'static str,
    ) -> Result<u32, KeyError> {
        if self.1.is_none() {
            return Ok(default);
        }
        let number = self.number(&|number| u32::try_from(number).is_ok_and(good), expected)?;
        u32::try_from(number).map_err(|_| self.bad(expected))
    }

    fn flag(self) -> Result<bool, KeyError> {
        match self.1 {
            None | Some(b"0") => Ok(false),
            Some(b"1") => Ok(true),
            Some(_) => Err(self.bad("0 or 1")),
        }
    }

    fn is_writable(self) -> Result<bool, KeyError> {
        match self.1 {
            Some(b"r") => Ok(false),
            // The protocol has no default; what counts for a frontend is `info`.
            None | Some(b"w") => Ok(true),
            Some(_) => Err(self.bad("r or w")),
        }
    }

    fn block_size(self) -> Result<BlockSize, KeyError> {
        let size = self.1.and_then(keys::number).and_then(BlockSize::of_bytes);
        size.ok_or_else(|| self.bad("a power of two from 512 to 4096"))
    }

    fn sectors(self, logical: BlockSize) -> Result<u64, KeyError> {
        self.number(
            &|sectors| {
                (1..=MAX_SECTORS).contains(&sectors) && sectors.is_multiple_of(logical.sectors())
            },
            "1 to 2^54 sectors in whole blocks of sector-size",
        )
    }
}
