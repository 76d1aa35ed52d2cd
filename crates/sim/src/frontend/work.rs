//! Random requests that a disk must serve.

use blkif::MAX_SEGMENTS;

use super::negotiated::Disk;
use crate::Rng;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    Write,
    Barrier,
    Flush,
    Discard,
}

impl Kind {
    /// Whether the backend reads the request's pages, and does not write them.
    pub(super) const fn reads_pages(self) -> bool {
        matches!(self, Self::Write | Self::Barrier)
    }

    /// Whether the disk changes.
    pub(super) const fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Barrier | Self::Discard)
    }
}

/// A request to be made.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    pub(super) sector: u64,
    /// First and last sector of each piece within its page.
    pub(super) pieces: Vec<(u8, u8)>,
    /// Sectors of a discard.
    pub(super) discarded: u64,
    /// Indirect also where a direct request would do.
    pub(super) indirect: bool,
}

const SECTORS_PER_PAGE: u64 = 8;

impl Plan {
    pub(super) fn nr_sectors(&self) -> u64 {
        let in_pieces = |&(first, last): &(u8, u8)| u64::from(last - first) + 1;
        self.pieces.iter().map(in_pieces).sum::<u64>() + self.discarded
    }

    /// A request that `disk` must do.
    pub(super) fn random(disk: &Disk, rng: &mut Rng) -> Self {
        let kind = match rng.below(20) {
            0 if disk.flush => Kind::Flush,
            1 if disk.barrier && !disk.read_only => Kind::Barrier,
            2 if disk.discard && !disk.read_only => Kind::Discard,
            3..=10 if !disk.read_only => Kind::Write,
            _ => Kind::Read,
        };
        let mut plan = Self { kind, sector: 0, pieces: Vec::new(), discarded: 0, indirect: false };
        let block = disk.sectors_per_block();
        let capacity = disk.nr_sectors;
        match kind {
            Kind::Flush => return plan,
            Kind::Discard => plan.discarded = rng.between(1, capacity.min(256) / block) * block,
            Kind::Read | Kind::Write | Kind::Barrier => {
                let indirect_max = u64::from(disk.max_indirect.get());
                let may_be_indirect = indirect_max > 0 && kind != Kind::Barrier;
                let most = match rng.below(16) {
                    0 if may_be_indirect => indirect_max,
                    1..=3 if may_be_indirect => indirect_max.min(32),
                    4..=8 => MAX_SEGMENTS as u64,
                    _ => 4.min(MAX_SEGMENTS as u64),
                };
                plan.indirect = may_be_indirect && rng.one_in(8);
                let nr_pieces =
                    rng.between(1, if plan.indirect { most.min(indirect_max) } else { most });
                let odd = rng.one_in(3);
                for _ in 0..nr_pieces {
                    let piece = random_piece(block, odd, rng);
                    plan.pieces.push(piece);
                }
            }
        }
        if plan.nr_sectors() > capacity {
            plan.pieces = vec![(0, u8::try_from(block - 1).expect("at most a page"))];
        }
        let last_start = capacity - plan.nr_sectors();
        plan.sector = rng.between(0, last_start / block) * block;
        plan
    }
}

/// A whole page, or any run of blocks in one.
fn random_piece(block: u64, odd: bool, rng: &mut Rng) -> (u8, u8) {
    let nr_blocks = SECTORS_PER_PAGE / block;
    let (first, last) = if odd {
        let first = rng.below(nr_blocks);
        (first, rng.between(first, nr_blocks - 1))
    } else {
        (0, nr_blocks - 1)
    };
    let sector = |block_index: u64| u8::try_from(block_index).expect("at most 8");
    (sector(first * block), sector(last * block + block - 1))
}
