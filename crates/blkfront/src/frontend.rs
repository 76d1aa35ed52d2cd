//! Requests to a disk that another domain serves.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use blkif::{IndirectOp, Sector};
use store::{
    Access, Buffer, Completion, Device, Failure, Flushing, Geometry, Refusal, Refused, Request,
    SectorRange, SecureDiscard, Tag,
};
use xen_abi::{DomId, EvtchnPort, Gfn, SharedMemory};

use crate::granted::{Retired, grant};
use crate::pages::{Pages, part_limits};
use crate::parts::Rest;
use crate::ring::Answered;
use crate::{Broken, Disk, Flush, GrantTable, OutOfGrants, Ring};

/// A request that was taken.
struct Entry {
    tag: Tag,
    buffer: Option<Buffer>,
    /// What is to be sent of it. While there is some, it waits.
    rest: Option<Rest>,
    nr_in_flight: u32,
    result: Result<(), Failure>,
}

/// A disk that a backend serves, connected.
///
/// Requests are taken by [`submit`](Self::submit), sent by [`publish`](Self::publish), and come back
/// by [`complete`](Self::complete), in any order, each exactly once. Larger ones than the ring can
/// carry are sent in parts, as slots get free. What the backend writes is copied out of shared
/// memory once and checked; if it does what no backend may do, the ring is dead, and everything that
/// was taken fails.
///
/// Data lies in frames that the backend can write at any time, also after the completion: what is
/// read there twice may differ.
pub struct Frontend<M> {
    ring: Ring<M>,
    pages: Pages<M>,
    disk: Disk,
    /// As many as the ring has slots.
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Those that are not sent, or not all of them; of the first a part may be.
    waiting: VecDeque<u32>,
    end: Option<End>,
}

/// Why nothing is sent or taken any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Broken(Broken),
    Abandoned,
}

impl<M: SharedMemory> Frontend<M> {
    /// Grants these frames to the backend for data, all at once and for as long as it is connected.
    /// Linux' backend keeps 1056 pages mapped.
    ///
    /// # Errors
    /// Not all could be granted. They and the ring's are in `retired`.
    pub fn connect<G: GrantTable<Memory = M>>(
        ring: Ring<M>,
        disk: Disk,
        frames: &[Gfn],
        to: DomId,
        grants: &mut G,
        retired: &mut Retired,
    ) -> Result<Self, OutOfGrants> {
        let pages = match grant(frames, to, grants, retired) {
            Ok(granted) => Pages::new(granted),
            Err(error) => {
                ring.retire(retired);
                return Err(error);
            }
        };
        let nr_entries = ring.nr_entries();
        Ok(Self {
            ring,
            pages,
            disk,
            entries: (0..nr_entries).map(|_| None).collect(),
            free: (0..nr_entries).rev().collect(),
            waiting: VecDeque::with_capacity(nr_entries as usize),
            end: None,
        })
    }

    /// The disk.
    #[must_use]
    pub const fn disk(&self) -> &Disk {
        &self.disk
    }

    /// What the backend did that made the ring dead.
    #[must_use]
    pub const fn broken(&self) -> Option<Broken> {
        match self.end {
            Some(End::Broken(broken)) => Some(broken),
            _ => None,
        }
    }

    /// Requests that were taken and are not completed.
    #[must_use]
    pub fn nr_in_flight(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// The disk has another size now; what is in flight is not looked at again.
    pub const fn resize(&mut self, nr_sectors: u64) {
        self.disk.nr_sectors = nr_sectors;
    }

    /// Sends what was taken, as far as there are slots. Our port, if the backend waits for an event.
    #[must_use = "the backend waits for an event"]
    pub fn publish(&mut self) -> Option<EvtchnPort> {
        if self.end.is_some() {
            return None;
        }
        while self.ring.has_room()
            && let Some(&owner) = self.waiting.front()
            && let Some(entry) = &mut self.entries[owner as usize]
            && let Some(rest) = entry.rest
        {
            let (operation, rest) = rest.next_part(&self.disk, &self.pages);
            self.ring.push(owner, operation);
            entry.nr_in_flight += 1;
            entry.rest = rest;
            if entry.rest.is_none() {
                self.waiting.pop_front();
            }
        }
        self.ring.publish()
    }

    /// Checks a request, and takes an entry for it.
    fn check(&mut self, request: &Request<Buffer>) -> Result<u32, Refusal> {
        if self.end.is_some() {
            return Err(Failure::Gone.into());
        }
        let changes = !matches!(request, Request::Read { .. } | Request::Flush);
        if changes && self.disk.access == Access::ReadOnly {
            return Err(Failure::ReadOnly.into());
        }
        let not_offered = Refusal::Failed(Failure::NotSupported);
        let discards = self.disk.discard;
        match *request {
            Request::Read { sector, ref buffer } | Request::Write { sector, ref buffer } => {
                self.check_range(sector, buffer.nr_sectors().into())?;
            }
            Request::Flush if self.disk.flush == Flush::None => return Err(not_offered),
            Request::Flush => {}
            Request::Discard { sector, nr_sectors } => {
                discards.ok_or(not_offered)?;
                self.check_range(sector, nr_sectors)?;
            }
            Request::SecureDiscard { sector, nr_sectors } => {
                let secure = discards.filter(|limits| limits.secure == SecureDiscard::Offered);
                secure.ok_or(not_offered)?;
                self.check_range(sector, nr_sectors)?;
            }
        }
        self.free.pop().ok_or(Refusal::Full { max: self.entries.len() })
    }

    /// Checks a range against the disk as it is now: it may have become smaller since it was asked for.
    fn check_range(&self, first: u64, nr: u64) -> Result<(), Failure> {
        let on_disk = SectorRange::on(&self.disk.geometry(), first, nr);
        on_disk.map(|_| ()).map_err(|_| Failure::Range)
    }

    /// One part of a request was answered.
    fn answered(&mut self, owner: u32, status: Answered) -> Option<Completion<Buffer>> {
        let slot = &mut self.entries[owner as usize];
        let entry = slot.as_mut()?;
        let result = match status {
            Answered::Okay => Ok(()),
            Answered::Error => Err(Failure::Device),
            Answered::NotSupported => Err(Failure::NotSupported),
        };
        entry.result = entry.result.and(result);
        entry.nr_in_flight -= 1;
        // The rest of what has failed is not sent; it is the first that waits, as parts of it were.
        if entry.result.is_err() && entry.rest.take().is_some() {
            self.waiting.pop_front();
        }
        if entry.nr_in_flight > 0 || entry.rest.is_some() {
            return None;
        }
        let Entry { tag, result, buffer, .. } = slot.take()?;
        self.free.push(owner);
        Some(Completion { tag, result, buffer })
    }

    /// Nobody serves the ring any more: it is not looked at again, and
    /// [`complete`](Self::complete) says of everything that was taken that it has failed. What was
    /// answered before is still a success to who calls `complete` before this.
    pub fn abandon(&mut self) {
        self.end.get_or_insert(End::Abandoned);
    }

    /// Lets everything go; buffers that are still out are void. What was taken and not completed is
    /// forgotten: [`complete`](Self::complete) comes first.
    pub fn retire(self, retired: &mut Retired) {
        self.ring.retire(retired);
        self.pages.retire(retired);
    }
}

/// What is taken is sent by the next [`publish`](Frontend::publish), which also sends what has waited
/// for slots. Completions after the backend is gone have no buffer: it may still write there.
impl<M: SharedMemory> Device for Frontend<M> {
    type Buffer = Buffer;

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn flushing(&self) -> Flushing {
        match self.disk.flush {
            Flush::Cache | Flush::Barrier => Flushing::Offered,
            Flush::None => Flushing::No,
        }
    }

    fn max_sectors(&self) -> u64 {
        self.pages.buffers.max_sectors(part_limits(&self.disk))
    }

    fn reserve(&mut self, nr_sectors: u32) -> Option<Buffer> {
        self.pages.buffers.reserve(nr_sectors, part_limits(&self.disk))
    }

    fn give_back(&mut self, buffer: Buffer) {
        self.pages.buffers.give_back(buffer);
    }

    fn frames(&self, buffer: &Buffer, each: &mut dyn FnMut(Gfn)) {
        self.pages.frames(buffer).for_each(each);
    }

    fn submit(&mut self, tag: Tag, request: Request<Buffer>) -> Result<(), Refused<Buffer>> {
        let index = match self.check(&request) {
            Ok(index) => index,
            Err(reason) => return Err(Refused { reason, request }),
        };
        let (rest, buffer) = match request {
            Request::Read { sector, buffer } => {
                (Rest::of_transfer(IndirectOp::Read, Sector(sector), &buffer), Some(buffer))
            }
            Request::Write { sector, buffer } => {
                (Rest::of_transfer(IndirectOp::Write, Sector(sector), &buffer), Some(buffer))
            }
            Request::Flush => (Rest::Flush, None),
            Request::Discard { sector, nr_sectors } => {
                (Rest::Discard { sector: Sector(sector), nr_sectors, secure: false }, None)
            }
            Request::SecureDiscard { sector, nr_sectors } => {
                (Rest::Discard { sector: Sector(sector), nr_sectors, secure: true }, None)
            }
        };
        let entry = Entry { tag, buffer, rest: Some(rest), nr_in_flight: 0, result: Ok(()) };
        self.entries[index as usize] = Some(entry);
        self.waiting.push_back(index);
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion<Buffer>> {
        while self.end.is_none() {
            match self.ring.take() {
                Ok(None) => return None,
                Ok(Some(answer)) => {
                    if let Some(completion) = self.answered(answer.owner, answer.status) {
                        return Some(completion);
                    }
                }
                Err(broken) => self.end = Some(End::Broken(broken)),
            }
        }
        let (index, entry) =
            (0..).zip(&mut self.entries).find_map(|(n, entry)| Some((n, entry.take()?)))?;
        self.free.push(index);
        let result = entry.result.and(Err(Failure::Gone));
        Some(Completion { tag: entry.tag, result, buffer: None })
    }
}
