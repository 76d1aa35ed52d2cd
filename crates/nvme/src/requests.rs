//! Requests that were taken, and the commands in flight that they became.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use store::{Buffer, Completion, Tag};
use xen_abi::{Instant, SharedMemory};

use crate::command::Command;
use crate::completion::{Entry, Retry};
use crate::memory::Memory;
use crate::parts::{MAX_DEALLOCATED, Rest, Target};
use crate::queue::{Broken, QueuePair};
use crate::{IoError, NamespaceId};

/// How long a command may take: what Linux gives it (`nvme_core.io_timeout`). It is looked at once a
/// second, so that up to two seconds more go by.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How often a command is sent that fails and may succeed if it is sent again.
const MAX_TRIES: u8 = 3;

/// Bits of a command's identifier that name its slot; those above count the slot's uses.
const SLOT_BITS: u32 = 6;

/// The slots of a full queue are one fewer than its 64 entries: no identifier is FFFFh, which means
/// none in an error log.
const _: () = assert!(crate::queue::MAX_ENTRIES == 1 << SLOT_BITS);

/// A request that was taken.
#[derive(Debug)]
struct Taken {
    tag: Tag,
    target: Target,
    buffer: Option<Buffer>,
    /// What is to be sent of it. While there is some, it waits.
    rest: Option<Rest>,
    nr_in_flight: u32,
    result: Result<(), IoError>,
}

/// A command that was sent, or is to be sent again.
#[derive(Clone, Copy, Debug)]
struct Sent {
    command: Command,
    /// Index of its request.
    owner: u32,
    /// Sectors that it deallocates.
    nr_deallocated: u64,
    nr_tries: u8,
    nr_resets: u8,
    /// When it was first seen to be in flight.
    since: Option<Instant>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Slot {
    generation: u16,
    sent: Option<Sent>,
}

/// Requests of all namespaces, and the slots of their commands.
#[derive(Debug)]
pub(crate) struct Requests {
    /// As many as there are slots.
    taken: Vec<Option<Taken>>,
    free: Vec<u32>,
    /// Those that are not sent, or not all of them; of the first a part may be.
    waiting: VecDeque<u32>,
    /// Discards that are not sent, or not all of them, and have no command in flight: they take turns,
    /// and nobody else waits behind them.
    discards: VecDeque<u32>,
    /// Those that are over, until they are asked for: of each namespace.
    over: Vec<VecDeque<u32>>,
    /// How many are taken of each namespace.
    nr_of: Vec<u32>,
    slots: Vec<Slot>,
    /// A bit for each slot: no command.
    idle: u64,
    /// Its command is to be sent again.
    again: u64,
    /// Its command was not answered in time.
    overdue: u64,
    /// The last that failed and was handed back.
    last_error: Option<(NamespaceId, IoError)>,
}

/// The bits that are set.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros() as usize);
        mask &= mask.wrapping_sub(1);
        bit
    })
}

impl Requests {
    /// For a queue of so many commands, 1 to 63.
    pub(crate) fn new(nr_slots: u16) -> Self {
        let nr_slots = u32::from(nr_slots);
        Self {
            taken: (0..nr_slots).map(|_| None).collect(),
            free: (0..nr_slots).rev().collect(),
            waiting: VecDeque::with_capacity(nr_slots as usize),
            discards: VecDeque::with_capacity(nr_slots as usize),
            over: Vec::new(),
            nr_of: Vec::new(),
            slots: (0..nr_slots).map(|_| Slot::default()).collect(),
            idle: (1 << nr_slots) - 1,
            again: 0,
            overdue: 0,
            last_error: None,
        }
    }

    /// How many namespaces there are; makes room for the answers of each.
    pub(crate) fn set_nr_namespaces(&mut self, nr: usize) {
        let nr_slots = self.slots.len();
        self.over.resize_with(nr, || VecDeque::with_capacity(nr_slots));
        self.nr_of.resize(nr, 0);
    }

    /// Most requests at once.
    pub(crate) const fn max(&self) -> usize {
        self.taken.len()
    }

    /// Requests that were taken and not handed back.
    pub(crate) const fn nr_taken(&self) -> usize {
        self.taken.len() - self.free.len()
    }

    /// Slots whose commands the controller has.
    fn in_flight(&self) -> u64 {
        let all = (1 << self.slots.len()) - 1;
        all & !self.idle & !self.again
    }

    pub(crate) fn any_in_flight(&self) -> bool {
        self.in_flight() != 0
    }

    /// Whether every request is over.
    pub(crate) fn all_over(&self) -> bool {
        let none_waits = self.waiting.is_empty() && self.discards.is_empty();
        none_waits && self.again == 0 && !self.any_in_flight()
    }

    /// Takes a request, if it [`has_room`](Self::has_room).
    pub(crate) fn take(&mut self, tag: Tag, target: Target, rest: Rest, buffer: Option<Buffer>) {
        let Some(index) = self.free.pop() else { return };
        self.nr_of[target.index] += 1;
        let queue = if rest.is_discard() { &mut self.discards } else { &mut self.waiting };
        queue.push_back(index);
        let rest = Some(rest);
        let taken = Taken { tag, target, buffer, rest, nr_in_flight: 0, result: Ok(()) };
        self.taken[index as usize] = Some(taken);
    }

    /// Whether a request of a namespace can be taken. One that has some already leaves room for one of
    /// each of the `others` that has none.
    pub(crate) fn has_room(&self, namespace: usize, others: impl Iterator<Item = usize>) -> bool {
        let nr_free = self.free.len();
        let nr_kept = match self.nr_of[namespace] {
            0 => 0,
            _ => others.filter(|&other| self.nr_of[other] == 0).count(),
        };
        nr_free > nr_kept
    }

    /// Puts commands into the queue, as far as there are slots.
    pub(crate) fn send<M: SharedMemory>(&mut self, memory: &Memory<M>, queue: &mut QueuePair) {
        for slot in bits(core::mem::take(&mut self.again)) {
            self.push(memory, queue, slot);
        }
        // They have a slot each at most, which leaves one to each of the others.
        while let Some(&owner) = self.discards.front()
            && self.may_deallocate(owner)
            && self.send_part(owner, memory, queue).is_some()
        {
            self.discards.pop_front();
        }
        while let Some(&owner) = self.waiting.front()
            && let Some(is_all) = self.send_part(owner, memory, queue)
        {
            if is_all {
                self.waiting.pop_front();
            }
        }
    }

    /// Whether the next part of a discard may be sent beside what is in flight.
    fn may_deallocate(&self, owner: u32) -> bool {
        let nr_next = self.taken[owner as usize]
            .as_ref()
            .and_then(|taken| Some(taken.rest?.nr_deallocated(taken.target)));
        let sent = self.slots.iter().filter_map(|slot| slot.sent);
        let nr_in_flight: u64 = sent.map(|sent| sent.nr_deallocated).sum();
        nr_next.is_some_and(|nr_next| nr_in_flight + nr_next <= MAX_DEALLOCATED)
    }

    /// Puts the next command of a request into the queue, if a slot is idle. Whether that was all.
    fn send_part<M: SharedMemory>(
        &mut self,
        owner: u32,
        memory: &Memory<M>,
        queue: &mut QueuePair,
    ) -> Option<bool> {
        let slot = bits(self.idle).next()?;
        let taken = self.taken[owner as usize].as_mut()?;
        let (target, rest) = (taken.target, taken.rest?);
        let nr_deallocated = rest.nr_deallocated(target);
        let (command, rest) = rest.next_part(target, memory, slot);
        taken.nr_in_flight += 1;
        taken.rest = rest;
        self.idle &= !(1 << slot);
        let (nr_tries, nr_resets, since) = (0, 0, None);
        let sent = Sent { command, owner, nr_deallocated, nr_tries, nr_resets, since };
        self.slots[slot].sent = Some(sent);
        self.push(memory, queue, slot);
        Some(rest.is_none())
    }

    fn push<M: SharedMemory>(&mut self, memory: &Memory<M>, queue: &mut QueuePair, slot: usize) {
        let Slot { generation, sent: Some(sent) } = &mut self.slots[slot] else { return };
        sent.nr_tries += 1;
        sent.since = None;
        *generation = generation.wrapping_add(1) & (u16::MAX >> SLOT_BITS);
        #[expect(clippy::cast_possible_truncation, reason = "less than 63")]
        let cid = *generation << SLOT_BITS | slot as u16;
        queue.push(memory, cid, &sent.command);
    }

    /// Takes what is completed; whether anything was done.
    pub(crate) fn collect<M: SharedMemory>(
        &mut self,
        memory: &Memory<M>,
        queue: &mut QueuePair,
    ) -> Result<bool, Broken> {
        let mut any_done = false;
        while let Some(Entry { cid, result }) = queue.take(memory)? {
            let index = usize::from(cid) & ((1 << SLOT_BITS) - 1);
            let unknown = Broken::Command { queue: queue.id(), cid };
            if self.in_flight() >> index & 1 == 0 {
                return Err(unknown);
            }
            let Slot { generation, sent: Some(sent) } = self.slots[index] else {
                return Err(unknown);
            };
            if generation != cid >> SLOT_BITS {
                return Err(unknown);
            }
            any_done |= result.is_ok();
            match result {
                Ok(()) => self.end(index, Ok(())),
                Err((_, Retry::May)) if sent.nr_tries < MAX_TRIES => self.again |= 1 << index,
                Err((status, _)) => self.end(index, Err(status.into())),
            }
        }
        Ok(any_done)
    }

    /// A slot's command is over.
    fn end(&mut self, slot: usize, result: Result<(), IoError>) {
        let Some(sent) = self.slots[slot].sent.take() else { return };
        self.idle |= 1 << slot;
        self.again &= !(1 << slot);
        let Some(taken) = &mut self.taken[sent.owner as usize] else { return };
        taken.result = taken.result.and(result);
        taken.nr_in_flight -= 1;
        // The rest of what has failed is not sent. Unless it is a discard's, it is the first that waits,
        // as parts of it were sent.
        if taken.result.is_err() && taken.rest.take().is_some_and(|rest| !rest.is_discard()) {
            self.waiting.pop_front();
        }
        if taken.nr_in_flight == 0 && taken.rest.is_none() {
            self.over[taken.target.index].push_back(sent.owner);
        } else if taken.rest.is_some_and(Rest::is_discard) {
            self.discards.push_back(sent.owner);
        }
    }

    /// Notes the time of what is in flight; whether something is overdue.
    pub(crate) fn check_time(&mut self, now: Instant) -> bool {
        for slot in bits(self.in_flight()) {
            if let Some(sent) = &mut self.slots[slot].sent
                && sent.since.get_or_insert(now).after(TIMEOUT) <= now
            {
                self.overdue |= 1 << slot;
            }
        }
        self.overdue != 0
    }

    /// The controller is disabled and has let go of everything: what was overdue has failed. The rest
    /// is sent again, once; that is harmless, since nobody was told that it was done.
    pub(crate) fn after_reset(&mut self) {
        let overdue = core::mem::take(&mut self.overdue);
        for slot in bits(self.in_flight()) {
            let Some(sent) = &mut self.slots[slot].sent else { continue };
            let owner = self.taken[sent.owner as usize].as_ref();
            if overdue >> slot & 1 == 1 {
                self.end(slot, Err(IoError::TimedOut { seconds: TIMEOUT.as_secs() }));
            } else if sent.nr_resets > 0 || owner.is_none_or(|taken| taken.result.is_err()) {
                self.end(slot, Err(IoError::Reset));
            } else {
                sent.nr_resets += 1;
                self.again |= 1 << slot;
            }
        }
    }

    /// Fails what is left of a namespace, or of all; buffers that the controller may still write are
    /// not handed back.
    pub(crate) fn fail(&mut self, namespace: Option<usize>, is_quiet: bool) {
        for index in 0..self.slots.len() {
            let Some(sent) = self.slots[index].sent else { continue };
            let Some(taken) = &mut self.taken[sent.owner as usize] else { continue };
            if namespace.is_none_or(|namespace| namespace == taken.target.index) {
                if !is_quiet {
                    taken.buffer = None;
                }
                self.end(index, Err(IoError::Gone));
            }
        }
        let Self { taken, over, waiting, discards, .. } = self;
        let mut stays = |&owner: &u32| {
            let Some(taken) = &mut taken[owner as usize] else { return false };
            let stays = namespace.is_some_and(|namespace| namespace != taken.target.index);
            if !stays {
                taken.result = Err(IoError::Gone);
                over[taken.target.index].push_back(owner);
            }
            stays
        };
        waiting.retain(&mut stays);
        discards.retain(&mut stays);
    }

    /// Whether a request that is over was not handed back.
    pub(crate) fn has_completed(&self) -> bool {
        self.over.iter().any(|over| !over.is_empty())
    }

    /// Hands back a request of a namespace that is over.
    pub(crate) fn complete(&mut self, namespace: usize) -> Option<Completion<Buffer>> {
        let index = self.over.get_mut(namespace)?.pop_front()?;
        let Taken { tag, target, result, buffer, .. } = self.taken[index as usize].take()?;
        self.free.push(index);
        self.nr_of[namespace] -= 1;
        if let Err(error) = result {
            self.last_error = Some((target.nsid, error));
        }
        Some(Completion { tag, result: result.map_err(Into::into), buffer })
    }

    pub(crate) const fn take_error(&mut self) -> Option<(NamespaceId, IoError)> {
        self.last_error.take()
    }
}

#[cfg(test)]
mod tests {
    use super::Requests;
    use crate::NamespaceId;
    use crate::parts::{Rest, Target};
    use store::Tag;

    /// The way of a request allocates nothing.
    #[test]
    fn there_is_room_from_the_start_for_all_to_be_over() {
        let mut requests = Requests::new(63);
        requests.set_nr_namespaces(2);
        for index in [0, 1] {
            let room = requests.over[index].capacity();
            let (nsid, sectors_per_block) = (NamespaceId(1), 8);
            let (max_pages, max_deallocated) = (32, 1);
            let target = Target { index, nsid, sectors_per_block, max_pages, max_deallocated };
            for n in 0..63 {
                requests.take(Tag(n), target, Rest::Flush, None);
            }
            requests.fail(None, true);
            assert_eq!((requests.over[index].len(), requests.over[index].capacity()), (63, room));
            while requests.complete(index).is_some() {}
            assert_eq!(requests.nr_taken(), 0);
        }
    }
}
