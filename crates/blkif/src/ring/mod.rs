//! The ring that both halves share (`io/ring.h`).
//!
//! Indices run freely through all of u32; only their differences mean anything. Each half keeps its
//! own privately and never reads them back, since the peer can write the whole ring. What it reads
//! of the peer's index is checked before a slot is touched.

mod back;
mod front;

use core::num::Wrapping;
use core::sync::atomic::{Ordering, fence};

use thiserror::Error;
use xen_abi::SharedMemory;

use crate::layout::{REQ_EVENT, REQ_PROD, RING, RSP_EVENT, RSP_PROD};
use crate::{Abi, RingOrder};

pub use back::{BackRing, ResponseUnasked};
pub use front::{FrontRing, RingFull};

/// A free-running ring index (`RING_IDX`).
type Idx = Wrapping<u32>;

/// Whether the peer asked to be told of what was just published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a peer that waits for a notification hangs without it"]
pub enum Notify {
    /// Send on the event channel.
    Needed,
    /// The peer is awake, or will look before it sleeps.
    NotNeeded,
}

/// Whether a half may wait for the next event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "to wait while there is work may be to wait for ever"]
pub enum FinalCheck {
    /// Nothing to do, and the peer will notify when there is.
    Idle,
    /// There is something to consume.
    Work,
}

/// The peer's producer index is where it cannot be: ahead by more than the ring has room for, or
/// behind what was consumed already. The ring is not to be trusted again.
#[doc(alias = "RING_REQUEST_PROD_OVERFLOW")]
#[doc(alias = "RING_RESPONSE_PROD_OVERFLOW")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("producer index {produced} is more than {room} past {consumed}")]
pub struct ProducerOverrun {
    /// Our consumer index.
    pub consumed: u32,
    /// The peer's producer index, as read.
    pub produced: u32,
    /// How far ahead it may be: for requests the slots without one in flight, for responses the
    /// requests without one.
    pub room: u32,
}

/// Shared memory that no ring fits: not 1, 2, 4, 8, 16 or 32 pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{len_bytes} bytes are no ring of 1 to 32 pages")]
pub struct BadRingLength {
    /// Length of the memory.
    pub len_bytes: usize,
}

/// One direction's fields in the header.
struct Lane {
    prod: usize,
    event: usize,
}

const REQUESTS: Lane = Lane { prod: REQ_PROD, event: REQ_EVENT };
const RESPONSES: Lane = Lane { prod: RSP_PROD, event: RSP_EVENT };

/// The shared ring as either half uses it (`struct blkif_sring`).
struct Sring<M> {
    memory: M,
    abi: Abi,
    nr_entries: u32,
}

impl<M: SharedMemory> Sring<M> {
    fn new(memory: M, abi: Abi) -> Result<Self, BadRingLength> {
        let len_bytes = memory.len_bytes();
        let order = (0..=RingOrder::MAX.get())
            .filter_map(|order| RingOrder::new(order).ok())
            .find(|order| order.len_bytes() == len_bytes)
            .ok_or(BadRingLength { len_bytes })?;
        Ok(Self { memory, abi, nr_entries: abi.nr_entries(order) })
    }

    fn slot_offset(&self, index: Idx) -> usize {
        let slot = index.0 & (self.nr_entries - 1);
        RING + slot as usize * self.abi.layout().entry_len_bytes
    }

    /// Copies the first bytes of a slot out, each byte fetched once.
    #[inline]
    fn read_slot(&self, index: Idx, into: &mut [u8]) {
        self.memory.read(self.slot_offset(index), into);
    }

    #[inline]
    fn write_slot(&self, index: Idx, from: &[u8]) {
        self.memory.write(self.slot_offset(index), from);
    }

    /// Fetches the peer's producer index once and checks it.
    fn producer(
        &self,
        lane: &Lane,
        consumed: Idx,
        room: Wrapping<u32>,
    ) -> Result<Idx, ProducerOverrun> {
        // The load acquires: the slots up to it are as the peer published them.
        let produced = Wrapping(self.memory.load_u32(lane.prod));
        if produced - consumed > room {
            return Err(ProducerOverrun {
                consumed: consumed.0,
                produced: produced.0,
                room: room.0,
            });
        }
        Ok(produced)
    }

    /// Asks the peer to notify at the next entry after `consumed`.
    fn request_event(&self, lane: &Lane, consumed: Idx) {
        self.memory.store_u32(lane.event, (consumed + Wrapping(1)).0);
        // The peer sees the wish before we look at its index again; it does the reverse.
        fence(Ordering::SeqCst);
    }

    /// Publishes the entries from `old` to `new` (`RING_PUSH_*_AND_CHECK_NOTIFY`).
    fn publish(&self, lane: &Lane, old: Idx, new: Idx) -> Notify {
        // The store releases: the peer sees the slots before the index.
        self.memory.store_u32(lane.prod, new.0);
        // The peer sees the index before we look whether it waits for it.
        fence(Ordering::SeqCst);
        let event = Wrapping(self.memory.load_u32(lane.event));
        if new - event < new - old { Notify::Needed } else { Notify::NotNeeded }
    }
}
