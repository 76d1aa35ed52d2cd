//! The ring, from its grant on, and the requests that are in its slots.

use alloc::string::String;
use alloc::vec::Vec;

use blkif::{
    Abi, BadRingLength, FinalCheck, FrontRing, Notify, OpCode, Operation, ProducerOverrun, Request,
    RequestId, Response, Status,
};
use thiserror::Error;
use xen_abi::{DomId, EvtchnPort, Gfn, GrantRef, SharedMemory};

use crate::granted::{Granted, Retired, grant};
use crate::{GrantTable, OutOfGrants, announcement};

/// What a backend did that no backend may do. Its ring is not looked at again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Broken {
    /// It produced more responses than there are requests.
    #[error("broken backend: {0}")]
    ProducerOverrun(#[from] ProducerOverrun),
    /// It answered what was not asked, or was answered before.
    #[error("broken backend: no request {:#x} is in flight", .id.0)]
    UnknownId {
        /// The response's id.
        id: RequestId,
    },
    /// It answered something else than was asked.
    #[error("broken backend: operation {} is answered as {}", .asked.0, .answered.0)]
    WrongOperation {
        /// The request's operation.
        asked: OpCode,
        /// The response's.
        answered: OpCode,
    },
    /// It answered neither OKAY nor ERROR nor EOPNOTSUPP.
    #[error("broken backend: status {}", .status.0)]
    UnknownStatus {
        /// The response's status.
        status: Status,
    },
}

/// Why there is no ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NoRing {
    /// Not 1, 2, 4, 8, 16 or 32 frames.
    #[error(transparent)]
    Length(#[from] BadRingLength),
    /// It could not be granted.
    #[error(transparent)]
    Grants(#[from] OutOfGrants),
}

/// A ring that is granted to a backend.
pub struct Ring<M> {
    front: FrontRing<M>,
    granted: Vec<Granted>,
    port: EvtchnPort,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

/// What is in flight under one id.
struct Slot {
    /// Changes with each use: a response that is told twice has an old one.
    generation: u32,
    used: Option<Sent>,
}

/// A request in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sent {
    operation: OpCode,
    owner: u32,
}

/// How a request went, and whose it is.
pub(crate) struct Answer {
    pub(crate) owner: u32,
    pub(crate) status: Answered,
}

/// A status that a backend may answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answered {
    Okay,
    Error,
    NotSupported,
}

impl<M: SharedMemory> Ring<M> {
    /// Grants a ring of these frames to `to`, which is told of it by `port`: ours, and unbound.
    ///
    /// # Errors
    /// It cannot be; the frames are in `retired`.
    pub fn grant<G: GrantTable<Memory = M>>(
        frames: &[Gfn],
        to: DomId,
        port: EvtchnPort,
        grants: &mut G,
        retired: &mut Retired,
    ) -> Result<Self, NoRing> {
        let (granted, memory) = grant(frames, to, grants, retired)?;
        match FrontRing::init(memory, Abi::NATIVE) {
            Ok(front) => {
                let nr_entries = front.nr_entries();
                let slots = (0..nr_entries).map(|_| Slot { generation: 0, used: None }).collect();
                Ok(Self { front, granted, port, slots, free: (0..nr_entries).rev().collect() })
            }
            Err(error) => {
                retired.add(granted);
                Err(error.into())
            }
        }
    }

    /// The nodes that tell the backend of it; see [`announcement`](crate::announcement()).
    #[must_use]
    pub fn announcement(&self) -> Vec<(String, Option<String>)> {
        let refs: Vec<GrantRef> = self.granted.iter().map(Granted::gref).collect();
        announcement(&refs, self.port)
    }

    /// Our end of the event channel.
    #[must_use]
    pub const fn port(&self) -> EvtchnPort {
        self.port
    }

    /// Lets it go.
    pub fn retire(self, retired: &mut Retired) {
        retired.add(self.granted);
    }

    /// Slots of the ring: the most requests that can be in flight.
    pub(crate) const fn nr_entries(&self) -> u32 {
        self.front.nr_entries()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.front.free() > 0 && !self.free.is_empty()
    }

    /// Writes a request of `owner`, where there [is room](Self::has_room).
    pub(crate) fn push(&mut self, owner: u32, op: Operation) {
        let Some(index) = self.free.pop() else { return };
        let slot = &mut self.slots[index as usize];
        let id = RequestId(u64::from(slot.generation) << 32 | u64::from(index));
        let request = Request { id, handle: 0, op };
        slot.used = Some(Sent { operation: request.operation(), owner });
        let pushed = self.front.push(&request);
        debug_assert_eq!(pushed, Ok(()), "there are as many ids as slots");
    }

    /// Shows the backend what was written. Our port, if it waits for an event.
    pub(crate) fn publish(&mut self) -> Option<EvtchnPort> {
        (self.front.publish() == Notify::Needed).then_some(self.port)
    }

    /// Takes the next response; `None` where there is none, and an event will tell of the next.
    pub(crate) fn take(&mut self) -> Result<Option<Answer>, Broken> {
        loop {
            if let Some(response) = self.front.consume() {
                return self.check(response).map(Some);
            }
            if self.front.final_check()? == FinalCheck::Idle {
                return Ok(None);
            }
        }
    }

    fn check(&mut self, Response { id, operation, status }: Response) -> Result<Answer, Broken> {
        #[expect(clippy::cast_possible_truncation, reason = "its two halves")]
        let (index, generation) = (id.0 as u32, (id.0 >> 32) as u32);
        let slot = self.slots.get_mut(index as usize);
        let slot = slot.filter(|slot| slot.generation == generation);
        let Some((slot, sent)) = slot.and_then(|slot| slot.used.map(|sent| (slot, sent))) else {
            return Err(Broken::UnknownId { id });
        };
        if operation != sent.operation {
            return Err(Broken::WrongOperation { asked: sent.operation, answered: operation });
        }
        let status = match status {
            Status::OKAY => Answered::Okay,
            Status::ERROR => Answered::Error,
            Status::EOPNOTSUPP => Answered::NotSupported,
            status => return Err(Broken::UnknownStatus { status }),
        };
        slot.used = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Ok(Answer { owner: sent.owner, status })
    }
}
