//! xenstore keys of the block protocol (`io/blkif.h`).
//!
//! Numbers are decimal text; a flag is 0 or 1. The default is what holds where the node is missing,
//! and is never written.

use core::fmt;
use core::str::FromStr;

/// Reads a number: decimal digits and nothing else. `None` for any other text, and for a number that
/// `T` cannot hold.
#[must_use]
pub fn number<T: FromStr>(text: &[u8]) -> Option<T> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// Backend, from the toolstack: `r` or `w`.
pub const MODE: &str = "mode";
/// Backend, from the toolstack: what to serve, any text; for libxl the disk's `target=`.
pub const PARAMS: &str = "params";
/// Backend, from the toolstack: `file`, `phy` or `tap`; libxl writes `phy`.
pub const TYPE: &str = "type";
/// Backend, from the toolstack: flag, whether direct I/O may be used; default 0. No meaning here.
pub const DIRECT_IO_SAFE: &str = "direct-io-safe";
/// Backend, from the toolstack: flag, whether to offer discard where the store can; default 1.
pub const DISCARD_ENABLE: &str = "discard-enable";

/// Backend: flag, barriers are known; default 0.
pub const FEATURE_BARRIER: &str = "feature-barrier";
/// Backend: flag, flushes are known; default 0.
pub const FEATURE_FLUSH_CACHE: &str = "feature-flush-cache";
/// Backend: flag, discards are known; default 0.
pub const FEATURE_DISCARD: &str = "feature-discard";
/// Backend: granted pages may stay mapped. Frontend: the same grants are used again, writable.
/// Flag; default 0.
pub const FEATURE_PERSISTENT: &str = "feature-persistent";
/// Backend: most segments of an indirect request, 1 to 4096; missing: no indirect requests.
pub const FEATURE_MAX_INDIRECT_SEGMENTS: &str = "feature-max-indirect-segments";
/// Backend: largest ring, log2 of pages; default 0.
pub const MAX_RING_PAGE_ORDER: &str = "max-ring-page-order";
/// Backend: largest ring, pages, a power of two; default 1. Deprecated, still written beside
/// [`MAX_RING_PAGE_ORDER`] for frontends that know only this.
pub const MAX_RING_PAGES: &str = "max-ring-pages";
/// Backend: most queues; missing: one.
pub const MULTI_QUEUE_MAX_QUEUES: &str = "multi-queue-max-queues";

/// Backend: bytes from the disk's start to its first discardable extent; default 0.
pub const DISCARD_ALIGNMENT: &str = "discard-alignment";
/// Backend: bytes of a discardable extent; default [`SECTOR_SIZE`].
pub const DISCARD_GRANULARITY: &str = "discard-granularity";
/// Backend: flag, secure discards are known; default 0.
pub const DISCARD_SECURE: &str = "discard-secure";
/// Backend: [`VdiskInfo`] bits; no default.
pub const INFO: &str = "info";
/// Backend: logical block size in bytes, a power of two from 512; no default. It leaves the unit of
/// every sector number at 512 bytes.
pub const SECTOR_SIZE: &str = "sector-size";
/// Backend: physical block size in bytes, a multiple of [`SECTOR_SIZE`], which is its default.
pub const PHYSICAL_SECTOR_SIZE: &str = "physical-sector-size";
/// Backend: size of the disk, in units of 512 bytes; no default.
pub const SECTORS: &str = "sectors";

/// Frontend, per queue: the event channel's port; no default.
pub const EVENT_CHANNEL: &str = "event-channel";
/// Frontend, per queue: grant reference of a ring of one page. Larger rings have [`RingRef`]s.
pub const RING_REF: &str = "ring-ref";
/// Frontend: the [`Abi`](crate::Abi) as text; default native.
pub const PROTOCOL: &str = "protocol";
/// Frontend: log2 of the pages of each ring; default 0.
pub const RING_PAGE_ORDER: &str = "ring-page-order";
/// Frontend: pages of each ring, a power of two; default 1. Deprecated in favour of
/// [`RING_PAGE_ORDER`].
pub const NUM_RING_PAGES: &str = "num-ring-pages";
/// Frontend: how many queues it uses, 1 to [`MULTI_QUEUE_MAX_QUEUES`]; default 1. From 2 on the
/// keys per queue stand below [`Queue`] only.
pub const MULTI_QUEUE_NUM_QUEUES: &str = "multi-queue-num-queues";
/// Frontend: flag, sector numbers are in units of `sector-size`; default 0. Deprecated, and no
/// backend should look at it.
pub const FEATURE_LARGE_SECTOR_SIZE: &str = "feature-large-sector-size";
/// Frontend, from the toolstack: flag, whether it may trust its backend; default 1.
pub const TRUSTED: &str = "trusted";
/// Both, from the toolstack: `disk`, `cdrom`, …
pub const DEVICE_TYPE: &str = "device-type";
/// Frontend, from the toolstack: the vdev's number (`docs/man/xen-vbd-interface.7.pandoc`).
pub const VIRTUAL_DEVICE: &str = "virtual-device";

/// Frontend, per queue: `ring-ref%u`, grant reference of page `.0` of a ring of several pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingRef(pub u32);

impl fmt::Display for RingRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{RING_REF}{}", self.0)
    }
}

/// Frontend: `queue-%u`, the directory with the keys of queue `.0`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queue(pub u32);

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue-{}", self.0)
    }
}

bitflags::bitflags! {
    /// The bits of [`INFO`] (`VDISK_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct VdiskInfo: u32 {
        /// A CD-ROM.
        #[doc(alias = "VDISK_CDROM")]
        const CDROM = 0x1;
        /// The medium can be removed.
        #[doc(alias = "VDISK_REMOVABLE")]
        const REMOVABLE = 0x2;
        /// Writes fail.
        #[doc(alias = "VDISK_READONLY")]
        const READONLY = 0x4;
    }
}
