//! A submission queue and its completion queue (base specification 1.4, section 4.1).

use store::PageNumber;
use thiserror::Error;
use xen_abi::{PAGE_SIZE, SharedMemory};

use crate::command::{COMMAND_LEN, Command};
use crate::completion::{COMPLETION_LEN, Entry};
use crate::memory::Memory;
use crate::registers::{Cap, Registers};

/// Most entries of a queue: those of a page.
pub(crate) const MAX_ENTRIES: u16 = 64;

const _: () = assert!(MAX_ENTRIES as usize * COMMAND_LEN == PAGE_SIZE);

/// What no controller may say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Broken {
    /// A completion of another submission queue.
    #[error("a completion in queue {queue} is of submission queue {sqid}")]
    Queue {
        /// The queue's number.
        queue: u16,
        /// SQID.
        sqid: u16,
    },
    /// SQHD is not within the submission queue.
    #[error("the head of submission queue {queue} is {head} of {nr_entries}")]
    Head {
        /// The queue's number.
        queue: u16,
        /// SQHD.
        head: u16,
        /// Entries that the queue has.
        nr_entries: u16,
    },
    /// CID names nothing that is in flight.
    #[error("queue {queue} completes command {cid:#06x}, which is not in flight")]
    Command {
        /// The queue's number.
        queue: u16,
        /// CID.
        cid: u16,
    },
    /// The list of active namespaces does not rise.
    #[error("namespace {found} is listed behind {after}")]
    NamespaceList {
        /// The one before, or 0.
        after: u32,
        /// An entry of the list.
        found: u32,
    },
}

/// Both queues of a number, of as many entries each. Its commands in flight never fill it.
#[derive(Debug)]
pub(crate) struct QueuePair {
    id: u16,
    sq: PageNumber,
    cq: PageNumber,
    nr_entries: u16,
    tail: u16,
    head: u16,
    /// The phase tag of an entry that is new.
    phase: u32,
    /// What the doorbells were told.
    told_tail: u16,
    told_head: u16,
}

impl QueuePair {
    pub(crate) const fn new(id: u16, sq: PageNumber, cq: PageNumber, nr_entries: u16) -> Self {
        Self { id, sq, cq, nr_entries, tail: 0, head: 0, phase: 1, told_tail: 0, told_head: 0 }
    }

    pub(crate) const fn id(&self) -> u16 {
        self.id
    }

    pub(crate) const fn nr_entries(&self) -> u16 {
        self.nr_entries
    }

    pub(crate) const fn sq(&self) -> PageNumber {
        self.sq
    }

    pub(crate) const fn cq(&self) -> PageNumber {
        self.cq
    }

    /// Empties both, while the controller is disabled: no entry's phase tag is that of a new one.
    pub(crate) fn reset<M: SharedMemory>(&mut self, memory: &Memory<M>) {
        *self = Self::new(self.id, self.sq, self.cq, self.nr_entries);
        memory.zero(self.sq);
        memory.zero(self.cq);
    }

    const fn next(&self, index: u16) -> u16 {
        if index + 1 == self.nr_entries { 0 } else { index + 1 }
    }

    /// Puts a command into the queue; [`ring`](Self::ring) tells of it.
    pub(crate) fn push<M: SharedMemory>(
        &mut self,
        memory: &Memory<M>,
        cid: u16,
        command: &Command,
    ) {
        let at = Memory::<M>::at(self.sq, usize::from(self.tail) * COMMAND_LEN);
        memory.shared().write(at, &command.encode(cid));
        self.tail = self.next(self.tail);
    }

    /// Takes a completion; [`ring`](Self::ring) tells that there is room again.
    pub(crate) fn take<M: SharedMemory>(
        &mut self,
        memory: &Memory<M>,
    ) -> Result<Option<Entry>, Broken> {
        let at = Memory::<M>::at(self.cq, usize::from(self.head) * COMPLETION_LEN);
        let memory = memory.shared();
        // Little-endian words, each loaded once; the last, with the phase tag, is written last.
        let dw3 = u32::from_le(memory.load_u32(at + 12));
        if dw3 >> 16 & 1 != self.phase {
            return Ok(None);
        }
        let dw2 = u32::from_le(memory.load_u32(at + 8));
        self.head = self.next(self.head);
        if self.head == 0 {
            self.phase ^= 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "its halves")]
        let (head, sqid) = (dw2 as u16, (dw2 >> 16) as u16);
        let (queue, nr_entries) = (self.id, self.nr_entries);
        if sqid != queue {
            return Err(Broken::Queue { queue, sqid });
        }
        if head >= nr_entries {
            return Err(Broken::Head { queue, head, nr_entries });
        }
        Ok(Some(Entry::parse(dw3)))
    }

    /// Tells the controller what it has not been told.
    pub(crate) fn ring<R: Registers>(&mut self, registers: &mut R, cap: Cap) {
        if self.told_head != self.head {
            registers.write32(cap.head_doorbell(self.id), self.head.into());
            self.told_head = self.head;
        }
        if self.told_tail != self.tail {
            registers.write32(cap.tail_doorbell(self.id), self.tail.into());
            self.told_tail = self.tail;
        }
    }
}
