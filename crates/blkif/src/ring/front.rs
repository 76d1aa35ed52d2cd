//! The frontend half: requests out, responses in.

use core::num::Wrapping;

use thiserror::Error;
use xen_abi::SharedMemory;

use super::{BadRingLength, FinalCheck, Idx, Notify, ProducerOverrun, REQUESTS, RESPONSES, Sring};
use crate::layout::{PAD, REQ_EVENT, REQ_PROD, RING, RSP_EVENT, RSP_PROD};
use crate::{Abi, Request, Response, Slot};

/// The frontend half of a ring (`struct blkif_front_ring`).
///
/// As careful of its backend as [`BackRing`](super::BackRing) is of its frontend. Whether a
/// response names a request in flight is for its user to check.
#[doc(alias = "blkif_front_ring")]
pub struct FrontRing<M> {
    sring: Sring<M>,
    req_prod_pvt: Idx,
    /// What we stored to `req_prod`.
    req_prod: Idx,
    /// The last of the peer's `rsp_prod` that passed the check.
    rsp_prod: Idx,
    rsp_cons: Idx,
}

/// Every slot holds a request that was not answered, or whose response was not consumed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("all {nr_entries} slots are in use")]
pub struct RingFull {
    /// Slots of the ring.
    pub nr_entries: u32,
}

impl<M: SharedMemory> FrontRing<M> {
    /// Initialises the shared ring's header and this half (`XEN_FRONT_RING_INIT`). The slots are
    /// left as they are: whoever grants the pages zeroes them first.
    ///
    /// # Errors
    /// [`BadRingLength`] where `memory` is not 1 to 32 pages, a power of two of them.
    #[doc(alias = "XEN_FRONT_RING_INIT")]
    #[doc(alias = "SHARED_RING_INIT")]
    pub fn init(memory: M, abi: Abi) -> Result<Self, BadRingLength> {
        let ring = Self::attach_at(memory, abi, 0)?;
        let memory = &ring.sring.memory;
        memory.store_u32(REQ_PROD, 0);
        memory.store_u32(RSP_PROD, 0);
        memory.store_u32(REQ_EVENT, 1);
        memory.store_u32(RSP_EVENT, 1);
        memory.write(PAD, &[0; RING - PAD]);
        Ok(ring)
    }

    /// Attaches to a ring in which nothing is in flight and both producers stand at `index`
    /// (`FRONT_RING_ATTACH`).
    ///
    /// # Errors
    /// As [`init`](Self::init).
    #[doc(alias = "FRONT_RING_ATTACH")]
    pub fn attach_at(memory: M, abi: Abi, index: u32) -> Result<Self, BadRingLength> {
        let at = Wrapping(index);
        Ok(Self {
            sring: Sring::new(memory, abi)?,
            req_prod_pvt: at,
            req_prod: at,
            rsp_prod: at,
            rsp_cons: at,
        })
    }

    /// How many slots the ring has.
    #[must_use]
    pub const fn nr_entries(&self) -> u32 {
        self.sring.nr_entries
    }

    /// Requests that can be pushed before a response is consumed (`RING_FREE_REQUESTS`).
    #[doc(alias = "RING_FREE_REQUESTS")]
    #[must_use]
    pub fn free(&self) -> u32 {
        self.nr_entries() - (self.req_prod_pvt - self.rsp_cons).0
    }

    /// Writes a request, for [`publish`](Self::publish) to show.
    ///
    /// # Errors
    /// [`RingFull`] where no slot is free.
    pub fn push(&mut self, request: &Request) -> Result<(), RingFull> {
        self.push_slot(&request.encode(self.sring.abi))
    }

    /// Writes a slot as it is, for [`publish`](Self::publish) to show: what a backend under test
    /// must survive.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_slot(&mut self, slot: &Slot) -> Result<(), RingFull> {
        if self.free() == 0 {
            return Err(RingFull { nr_entries: self.nr_entries() });
        }
        let len_bytes = self.sring.abi.layout().entry_len_bytes;
        self.sring.write_slot(self.req_prod_pvt, &slot.0[..len_bytes]);
        self.req_prod_pvt += 1;
        Ok(())
    }

    /// Shows the backend all requests pushed (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`).
    #[doc(alias = "RING_PUSH_REQUESTS_AND_CHECK_NOTIFY")]
    pub fn publish(&mut self) -> Notify {
        let notify = self.sring.publish(&REQUESTS, self.req_prod, self.req_prod_pvt);
        self.req_prod = self.req_prod_pvt;
        notify
    }

    /// Looks once how far the backend has produced, and lets [`consume`](Self::consume) go that
    /// far. The number of responses that wait; never more than requests were published.
    ///
    /// # Errors
    /// [`ProducerOverrun`]; no slot was touched.
    pub fn unconsumed(&mut self) -> Result<u32, ProducerOverrun> {
        let room = self.req_prod - self.rsp_cons;
        self.rsp_prod = self.sring.producer(&RESPONSES, self.rsp_cons, room)?;
        Ok((self.rsp_prod - self.rsp_cons).0)
    }

    /// Copies the next response out of the ring. `None` where all that
    /// [`unconsumed`](Self::unconsumed) found is consumed.
    pub fn consume(&mut self) -> Option<Response> {
        if self.rsp_cons == self.rsp_prod {
            return None;
        }
        let len_bytes = self.sring.abi.layout().response_len_bytes;
        let mut bytes = [0; Response::LEN_BYTES];
        self.sring.read_slot(self.rsp_cons, &mut bytes[..len_bytes]);
        self.rsp_cons += 1;
        Some(Response::parse(&bytes))
    }

    /// Before waiting: asks for a notification at the next response, and looks once more
    /// (`RING_FINAL_CHECK_FOR_RESPONSES`).
    ///
    /// # Errors
    /// As [`unconsumed`](Self::unconsumed).
    #[doc(alias = "RING_FINAL_CHECK_FOR_RESPONSES")]
    pub fn final_check(&mut self) -> Result<FinalCheck, ProducerOverrun> {
        if self.unconsumed()? == 0 {
            self.sring.request_event(&RESPONSES, self.rsp_cons);
            if self.unconsumed()? == 0 {
                return Ok(FinalCheck::Idle);
            }
        }
        Ok(FinalCheck::Work)
    }
}
