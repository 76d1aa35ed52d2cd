//! How a request becomes commands.

use store::{Buffer, PageNumber};
use xen_abi::SharedMemory;

use crate::NamespaceId;
use crate::command::{self, Command, IoOpcode};
use crate::memory::Memory;

/// Most sectors that the commands in flight deallocate, 1 GiB: a range may have 2^32 - 1 blocks, but
/// drives that are slow at it must be done in time.
pub(crate) const MAX_DEALLOCATED: u64 = 1 << 21;

/// What is to be sent of a request, in logical blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rest {
    Transfer {
        opcode: IoOpcode,
        lba: u64,
        nr_blocks: u64,
        /// Where the data lies.
        data: PageNumber,
        /// Where the next PRP list goes.
        list: PageNumber,
    },
    Zeroes {
        lba: u64,
        nr_blocks: u64,
    },
    Deallocate {
        lba: u64,
        nr_blocks: u64,
    },
    Flush,
}

/// A namespace and the unit of its commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    /// Its place among the namespaces.
    pub(crate) index: usize,
    pub(crate) nsid: NamespaceId,
    /// 1 or 8.
    pub(crate) sectors_per_block: u64,
    /// Most pages of a command.
    pub(crate) max_pages: u16,
    /// Most blocks that a command deallocates.
    pub(crate) max_deallocated: u64,
}

impl Rest {
    /// All of a read or write from sector `first` on.
    pub(crate) fn transfer(opcode: IoOpcode, first: u64, buffer: &Buffer, per_block: u64) -> Self {
        Self::Transfer {
            opcode,
            lba: first / per_block,
            nr_blocks: u64::from(buffer.nr_sectors()) / per_block,
            data: buffer.data(),
            list: buffer.lists(),
        }
    }

    pub(crate) const fn is_discard(self) -> bool {
        matches!(self, Self::Deallocate { .. })
    }

    /// Sectors that the next command deallocates.
    pub(crate) fn nr_deallocated(self, target: Target) -> u64 {
        match self {
            Self::Deallocate { nr_blocks, .. } => {
                let nr_blocks = nr_blocks.min(target.max_deallocated);
                (nr_blocks * target.sectors_per_block).min(MAX_DEALLOCATED)
            }
            _ => 0,
        }
    }

    /// The next command, to be sent from `slot`, and what is left then.
    pub(crate) fn next_part<M: SharedMemory>(
        self,
        target: Target,
        memory: &Memory<M>,
        slot: usize,
    ) -> (Command, Option<Self>) {
        let Target { nsid, sectors_per_block, max_pages, .. } = target;
        let blocks_per_page = 8 / sectors_per_block;
        // Write Zeroes moves no data, yet controllers had better not be asked for more at once.
        let max_blocks = u64::from(max_pages) * blocks_per_page;
        match self {
            Self::Transfer { opcode, lba, nr_blocks, data, list } => {
                let nr_now = nr_blocks.min(max_blocks);
                let nr_pages = nr_now.div_ceil(blocks_per_page);
                let (prp, data) = memory.describe(data, small(nr_pages), list);
                let command = Command::blocks(opcode, nsid, lba, small(nr_now), prp);
                let list = if nr_pages > 2 { memory.after(list) } else { list };
                let (lba, nr_blocks) = (lba + nr_now, nr_blocks - nr_now);
                let rest = Self::Transfer { opcode, lba, nr_blocks, data, list };
                (command, (nr_blocks > 0).then_some(rest))
            }
            Self::Zeroes { lba, nr_blocks } => {
                let nr_now = nr_blocks.min(max_blocks);
                let opcode = IoOpcode::WriteZeroes;
                let command = Command::blocks(opcode, nsid, lba, small(nr_now), [0; 2]);
                let rest = Self::Zeroes { lba: lba + nr_now, nr_blocks: nr_blocks - nr_now };
                (command, (nr_blocks > nr_now).then_some(rest))
            }
            Self::Deallocate { lba, nr_blocks } => {
                let nr_now = self.nr_deallocated(target) / sectors_per_block;
                let range = memory.write_range(slot, &command::range(lba, small(nr_now)));
                let rest = Self::Deallocate { lba: lba + nr_now, nr_blocks: nr_blocks - nr_now };
                (Command::deallocate(nsid, range), (nr_blocks > nr_now).then_some(rest))
            }
            Self::Flush => (Command::flush(nsid), None),
        }
    }
}

/// A number that was bounded to 32 bits.
fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
