//! Requests on their way out, and what waits for their answers.

use alloc::collections::VecDeque;

use xen_abi::SharedMemory;

use crate::error::{ProtocolError, SubmitError};
use crate::listing::Listing;
use crate::ring::Rings;
use crate::wire::{Header, MessageType};

/// How many bytes unanswered requests may hold together, unless the client was built with another
/// bound. Enough to publish two dozen disks at once.
pub const QUEUE_BYTES: usize = 64 * 1024;

/// Who waits for an answer, and what it holds until then.
#[derive(Debug)]
pub(crate) struct Due<T> {
    pub(crate) tag: T,
    pub(crate) held_bytes: usize,
}

/// What an answer means.
#[derive(Debug)]
pub(crate) enum Then<T> {
    /// It is the answer.
    Answer(Due<T>),
    /// The names of a directory, which may have to be read in parts.
    Directory(Listing, Due<T>),
    /// A part of them.
    Part(Listing, Due<T>),
    /// A step of the transaction that is under way: of its changes the one with this index.
    Transaction(usize),
}

/// A request without its answer.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    req_id: u32,
    pub(crate) kind: MessageType,
    pub(crate) then: Then<T>,
}

#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// Whole messages, the first perhaps sent in part.
    bytes: VecDeque<u8>,
    /// In the order they were queued in, which is also that of most answers.
    pending: VecDeque<Pending<T>>,
    last_id: u32,
    held_bytes: usize,
    bound_bytes: usize,
}

impl<T> Queue<T> {
    pub(crate) fn new(bound_bytes: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            pending: VecDeque::new(),
            last_id: 0,
            held_bytes: 0,
            bound_bytes,
        }
    }

    /// How many bytes requests may still hold.
    pub(crate) const fn room_bytes(&self) -> usize {
        self.bound_bytes - self.held_bytes
    }

    /// Counts `needed_bytes` against the bound, until [`release`](Self::release).
    pub(crate) fn hold(&mut self, needed_bytes: usize) -> Result<(), SubmitError> {
        if needed_bytes > self.room_bytes() {
            return Err(SubmitError::QueueFull {
                needed_bytes,
                held_bytes: self.held_bytes,
                bound_bytes: self.bound_bytes,
            });
        }
        self.held_bytes += needed_bytes;
        Ok(())
    }

    pub(crate) fn release(&mut self, held_bytes: usize) {
        self.held_bytes -= held_bytes;
    }

    /// Queues a message whose payload is `pieces` in a row, at most `PAYLOAD_MAX` bytes.
    pub(crate) fn push(&mut self, kind: MessageType, tx_id: u32, pieces: &[&[u8]], then: Then<T>) {
        let req_id = self.fresh_id();
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        #[expect(clippy::cast_possible_truncation, reason = "at most PAYLOAD_MAX")]
        let header = Header { kind, req_id, tx_id, len_bytes: len as u32 };
        self.bytes.extend(header.encode());
        for piece in pieces {
            self.bytes.extend(*piece);
        }
        self.pending.push_back(Pending { req_id, kind, then });
    }

    /// A number that no pending request has. Not 0, which watch events carry.
    fn fresh_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && self.find(self.last_id).is_none() {
                return self.last_id;
            }
        }
    }

    /// The request that an answer is for.
    pub(crate) fn take(&mut self, req_id: u32) -> Option<Pending<T>> {
        self.pending.remove(self.find(req_id)?)
    }

    fn find(&self, req_id: u32) -> Option<usize> {
        self.pending.iter().position(|pending| pending.req_id == req_id)
    }

    /// Moves as many bytes to the ring as fit.
    pub(crate) fn drain(
        &mut self,
        rings: &mut Rings,
        page: &impl SharedMemory,
    ) -> Result<(), ProtocolError> {
        // At most twice for the two halves of `bytes`, unless xenstored makes room meanwhile.
        loop {
            let (front, _) = self.bytes.as_slices();
            match rings.push(page, front)? {
                0 => return Ok(()),
                sent => drop(self.bytes.drain(..sent)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_neither_zero_nor_in_use() {
        let mut queue = Queue::<()>::new(100);
        queue.push(MessageType::READ, 0, &[], Then::Transaction(0));
        queue.push(MessageType::READ, 0, &[], Then::Transaction(0));
        assert!(queue.take(1).is_some());
        queue.last_id = u32::MAX - 1;
        assert_eq!(queue.fresh_id(), u32::MAX);
        assert_eq!(queue.fresh_id(), 1);
        assert_eq!(queue.fresh_id(), 3);
    }
}
