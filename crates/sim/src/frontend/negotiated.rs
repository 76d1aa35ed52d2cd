//! What the backend offers, and what the disk is.

use blkif::{MaxIndirectSegments, SECTOR_SIZE, keys};

use crate::Xs;

/// What a backend advertises before it stands in InitWait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Offer {
    pub(super) max_ring_order: u32,
    pub(super) max_queues: u32,
    pub(super) persistent: bool,
}

/// What a frontend knows that did not look.
pub(super) const NO_OFFER: Offer = Offer { max_ring_order: 0, max_queues: 1, persistent: false };

fn number(xs: &Xs, path: &str, key: &str, default: u64) -> u64 {
    let Some(text) = xs.get(&format!("{path}/{key}")) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{key} is {text:?}"))
}

fn small(xs: &Xs, path: &str, key: &str, default: u32) -> u32 {
    u32::try_from(number(xs, path, key, u64::from(default))).expect("a small number")
}

fn flag(xs: &Xs, path: &str, key: &str) -> bool {
    match number(xs, path, key, 0) {
        0 => false,
        1 => true,
        other => panic!("{key} is {other}"),
    }
}

impl Offer {
    pub(super) fn read(xs: &Xs, path: &str) -> Self {
        Self {
            max_ring_order: small(xs, path, keys::MAX_RING_PAGE_ORDER, 0),
            max_queues: small(xs, path, keys::MULTI_QUEUE_MAX_QUEUES, 1),
            persistent: flag(xs, path, keys::FEATURE_PERSISTENT),
        }
    }
}

/// A disk as its backend describes it, in Connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disk {
    /// Sectors of 512 bytes.
    pub nr_sectors: u64,
    /// `sector-size` in bytes.
    pub sector_size: u32,
    /// `physical-sector-size` in bytes.
    pub physical_sector_size: u32,
    /// `info`: writes fail.
    pub read_only: bool,
    /// `feature-flush-cache`.
    pub flush: bool,
    /// `feature-barrier`.
    pub barrier: bool,
    /// `feature-discard`.
    pub discard: bool,
    /// `feature-max-indirect-segments`.
    pub max_indirect: MaxIndirectSegments,
}

impl Disk {
    pub(super) fn read(xs: &Xs, path: &str) -> Self {
        let sector_size = small(xs, path, keys::SECTOR_SIZE, 512);
        let max_indirect = number(xs, path, keys::FEATURE_MAX_INDIRECT_SEGMENTS, 0);
        let max_indirect = u16::try_from(max_indirect).ok().and_then(MaxIndirectSegments::new);
        let info = number(xs, path, keys::INFO, 0);
        let readonly = u64::from(keys::VdiskInfo::READONLY.bits());
        Self {
            nr_sectors: number(xs, path, keys::SECTORS, 0),
            sector_size,
            physical_sector_size: small(xs, path, keys::PHYSICAL_SECTOR_SIZE, sector_size),
            read_only: info & readonly != 0,
            flush: flag(xs, path, keys::FEATURE_FLUSH_CACHE),
            barrier: flag(xs, path, keys::FEATURE_BARRIER),
            discard: flag(xs, path, keys::FEATURE_DISCARD),
            max_indirect: max_indirect.expect("at most 4096 indirect segments"),
        }
    }

    /// Sectors of 512 bytes in a logical block.
    #[must_use]
    pub fn sectors_per_block(&self) -> u64 {
        u64::from(self.sector_size / u32::from(SECTOR_SIZE))
    }
}
