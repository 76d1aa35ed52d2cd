//! The backend half: requests in, responses out.

use core::num::Wrapping;

use thiserror::Error;
use xen_abi::SharedMemory;

use super::{BadRingLength, FinalCheck, Idx, Notify, ProducerOverrun, REQUESTS, RESPONSES, Sring};
use crate::{Abi, Malformed, MaxIndirectSegments, Request, Response, Slot};

/// The backend half of a ring (`struct blkif_back_ring`).
///
/// A turn: [`unconsumed`](Self::unconsumed), [`consume`](Self::consume) until `None`,
/// [`push`](Self::push) what is done, [`publish`](Self::publish) and notify; before waiting,
/// [`final_check`](Self::final_check).
///
/// A response takes the slot of the oldest request not answered yet, whatever request it answers.
/// Responses in request order keep every unanswered request in the ring.
#[doc(alias = "blkif_back_ring")]
pub struct BackRing<M> {
    sring: Sring<M>,
    max_indirect: MaxIndirectSegments,
    /// The last of the peer's `req_prod` that passed the check.
    req_prod: Idx,
    req_cons: Idx,
    rsp_prod_pvt: Idx,
    /// What we stored to `rsp_prod`.
    rsp_prod: Idx,
    /// Our copy of the request consumed last.
    slot: Slot,
}

/// A response without a request to answer: a bug of the backend. Nothing was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("response {rsp_prod} has no request")]
pub struct ResponseUnasked {
    /// The index that the response would have had.
    pub rsp_prod: u32,
}

impl<M: SharedMemory> BackRing<M> {
    /// Attaches to a ring that its frontend has just initialised (`BACK_RING_INIT`).
    ///
    /// # Errors
    /// [`BadRingLength`] where `memory` is not 1 to 32 pages, a power of two of them.
    #[doc(alias = "BACK_RING_INIT")]
    pub fn attach(
        memory: M,
        abi: Abi,
        max_indirect: MaxIndirectSegments,
    ) -> Result<Self, BadRingLength> {
        Self::attach_at(memory, abi, max_indirect, 0)
    }

    /// Attaches to a ring in use, of which everything before `rsp_prod` was answered
    /// (`BACK_RING_ATTACH`). Requests from there on are consumed again.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    #[doc(alias = "BACK_RING_ATTACH")]
    pub fn attach_at(
        memory: M,
        abi: Abi,
        max_indirect: MaxIndirectSegments,
        rsp_prod: u32,
    ) -> Result<Self, BadRingLength> {
        let at = Wrapping(rsp_prod);
        Ok(Self {
            sring: Sring::new(memory, abi)?,
            max_indirect,
            req_prod: at,
            req_cons: at,
            rsp_prod_pvt: at,
            rsp_prod: at,
            slot: Slot::ZERO,
        })
    }

    /// Gives the shared memory back, for its owner to let go of.
    #[must_use]
    pub fn into_memory(self) -> M {
        self.sring.memory
    }

    /// How many slots the ring has: the most requests that can wait for an answer.
    #[must_use]
    pub const fn nr_entries(&self) -> u32 {
        self.sring.nr_entries
    }

    /// Requests consumed and not answered yet, 0 to [`nr_entries`](Self::nr_entries).
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        (self.req_cons - self.rsp_prod_pvt).0
    }

    /// Looks once how far the frontend has produced, and lets [`consume`](Self::consume) go that
    /// far. The number of requests that wait; never more than there are slots without one
    /// outstanding.
    ///
    /// # Errors
    /// [`ProducerOverrun`]; no slot was touched.
    pub fn unconsumed(&mut self) -> Result<u32, ProducerOverrun> {
        self.req_prod = self.producer()?;
        Ok((self.req_prod - self.req_cons).0)
    }

    /// Requests that the frontend waits for now, consumed or not, 0 to
    /// [`nr_entries`](Self::nr_entries). Of those of a broken ring only the consumed ones.
    #[must_use]
    pub fn nr_in_flight(&self) -> u32 {
        (self.producer().unwrap_or(self.req_cons) - self.rsp_prod_pvt).0
    }

    /// How far the frontend has produced.
    fn producer(&self) -> Result<Idx, ProducerOverrun> {
        let room = Wrapping(self.nr_entries() - self.outstanding());
        self.sring.producer(&REQUESTS, self.req_cons, room)
    }

    /// Copies the next request out of the ring and parses the copy. `None` where all that
    /// [`unconsumed`](Self::unconsumed) found is consumed. A malformed request is consumed too, and
    /// is to be answered.
    pub fn consume(&mut self) -> Option<Result<Request, Malformed>> {
        if self.req_cons == self.req_prod {
            return None;
        }
        let abi = self.sring.abi;
        let bytes = &mut self.slot.0[..abi.layout().entry_len_bytes];
        self.sring.read_slot(self.req_cons, bytes);
        self.req_cons += 1;
        Some(Request::parse(&self.slot, abi, self.max_indirect))
    }

    /// Writes a response, for [`publish`](Self::publish) to show.
    ///
    /// # Errors
    /// [`ResponseUnasked`] where every consumed request is answered.
    pub fn push(&mut self, response: &Response) -> Result<(), ResponseUnasked> {
        if self.rsp_prod_pvt == self.req_cons {
            return Err(ResponseUnasked { rsp_prod: self.rsp_prod_pvt.0 });
        }
        let len_bytes = self.sring.abi.layout().response_len_bytes;
        self.sring.write_slot(self.rsp_prod_pvt, &response.encode()[..len_bytes]);
        self.rsp_prod_pvt += 1;
        Ok(())
    }

    /// Shows the frontend all responses pushed (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
    #[doc(alias = "RING_PUSH_RESPONSES_AND_CHECK_NOTIFY")]
    pub fn publish(&mut self) -> Notify {
        let notify = self.sring.publish(&RESPONSES, self.rsp_prod, self.rsp_prod_pvt);
        self.rsp_prod = self.rsp_prod_pvt;
        notify
    }

    /// Before waiting: asks for a notification at the next request, and looks once more
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`).
    ///
    /// # Errors
    /// As [`unconsumed`](Self::unconsumed).
    #[doc(alias = "RING_FINAL_CHECK_FOR_REQUESTS")]
    pub fn final_check(&mut self) -> Result<FinalCheck, ProducerOverrun> {
        if self.unconsumed()? == 0 {
            self.sring.request_event(&REQUESTS, self.req_cons);
            if self.unconsumed()? == 0 {
                return Ok(FinalCheck::Idle);
            }
        }
        Ok(FinalCheck::Work)
    }
}
