//! One device, and what the disks on it have under way there.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem;
use core::ops::Range;

use xen_abi::Gfn;

use crate::block_store::{Flushing, StoreError, Token};
use crate::device::{Completion, Device, Failure, Refusal, Refused, Request, Tag};
use crate::geometry::{Access, BlockSize, Geometry};
use crate::lent::{Lease, Lent};

/// Operations that can be open at once, but for flushes: of those each frontend waits for one, and
/// nobody shall lose his to others' requests.
const MAX_OPERATIONS: usize = 1024;

/// A device that any number of disks are on, connected or not.
///
/// Who has the device [connects](Self::connect) it, has it send what was submitted, and
/// [pumps](Self::pump) when it may have completed something. The disks reserve, submit and end.
pub struct Shared<D: Device> {
    /// `None` before it is connected, and when it is gone.
    device: Option<D>,
    /// It is about to go.
    is_leaving: bool,
    /// What it said of itself when it was let go, and its longest buffer.
    said: (Geometry, Flushing),
    max_sectors: u64,
    operations: Vec<Operation<D::Buffer>>,
    /// The first that is not in use.
    free: Option<u32>,
    nr_open: usize,
    /// Those that the device had no room for, in their order.
    waiting: VecDeque<u32>,
    /// Those that are to have a buffer, in their order and one of each party: or short ones would take
    /// each page that a long one waits for.
    wanting: VecDeque<Wanting>,
    nr_parties: u32,
    /// Whether somebody was refused because there were [`MAX_OPERATIONS`].
    is_full: bool,
    /// Whether the next pump has something to tell.
    news: bool,
    /// Whether a change that was abandoned has ended.
    has_settled: bool,
}

/// What is known of a device that was never there.
const NO_DISK: Geometry = Geometry {
    nr_sectors: 0,
    logical: BlockSize::B512,
    physical_bytes: 512,
    access: Access::ReadOnly,
    discard: None,
};

/// A place for an operation.
struct Operation<B> {
    /// How often it was used.
    generation: u32,
    /// The device's sectors that it changes; none if it only reads or flushes.
    changes: Range<u64>,
    /// Of the pages that its buffer is made of, if they are not the device's.
    lease: Option<Lease>,
    state: State<B>,
}

/// Who has operations on a device: a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Party(u32);

/// An operation that is to have a buffer.
struct Wanting {
    operation: u32,
    party: Party,
    nr_sectors: u32,
}

enum State<B> {
    Free {
        next: Option<u32>,
    },
    /// It is to have a buffer. Then a read is submitted, and a write reserved.
    Wanting(Request<u32>),
    /// The same, and nobody waits for it any more: its buffer goes back at once.
    Unwanted,
    /// Not submitted yet: a write's data is being copied to its buffer.
    Reserved(Request<B>),
    /// To be submitted when the device has room.
    Waiting(Request<B>),
    UnderWay,
    /// It is over. The buffer holds what was read.
    Ready {
        result: Result<(), Failure>,
        buffer: Option<B>,
    },
    /// Under way, and nobody waits for it any more.
    Abandoned,
}

/// What the disks on a device need of it, whatever device it is.
pub(super) trait SharedDevice {
    /// What the device says of itself, or said last; no sectors before it was ever there.
    fn said(&self) -> (Geometry, Flushing);

    /// Somebody who has operations on the device.
    fn join(&mut self) -> Party;

    /// Opens an operation. The buffer of a read or write, to be of so many sectors, is reserved now, or
    /// in its turn: a write is ready then. [`StoreError::Busy`] where the party waits for one already.
    fn reserve(&mut self, party: Party, request: Request<u32>) -> Result<Token, StoreError>;

    /// Opens and submits a read or write of so many sectors whose buffer is made of pages that are not the
    /// device's; `None` where that cannot be now.
    fn lend(&mut self, request: Request<u32>, lent: Lent<'_>) -> Result<Option<Token>, StoreError>;

    /// Has the device begin with what is reserved, or with a read that is to have a buffer; a write's
    /// data is in its buffer. One that fails at once is ended.
    fn submit(&mut self, token: Token) -> Result<Token, StoreError>;

    /// Whether there is nothing to wait for.
    fn is_ready(&self, token: &Token) -> bool;

    /// Hands `each` the frames of the buffer of a write that is not submitted, or of a read that is
    /// ready.
    fn frames(&self, token: &Token, each: &mut dyn FnMut(Gfn)) -> Result<(), StoreError>;

    /// Ends an operation, whose buffer goes back: now, or when it is over. How it went;
    /// [`StoreError::Stale`] of one that was not ready.
    fn end(&mut self, token: Token) -> Result<(), StoreError>;

    /// Whether nothing that was abandoned may still change these sectors.
    fn is_settled(&self, sectors: Range<u64>) -> bool;
}

impl<D: Device> Default for Shared<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D: Device> Shared<D> {
    /// No device is connected yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            device: None,
            is_leaving: false,
            said: (NO_DISK, Flushing::No),
            max_sectors: 0,
            operations: Vec::new(),
            free: None,
            nr_open: 0,
            waiting: VecDeque::new(),
            wanting: VecDeque::new(),
            nr_parties: 0,
            is_full: false,
            news: false,
            has_settled: false,
        }
    }

    /// Here is the device, for the first time or again. None is connected.
    pub fn connect(&mut self, device: D) {
        debug_assert!(self.device.is_none(), "a device is connected twice");
        self.device = Some(device);
        (self.is_leaving, self.news) = (false, true);
    }

    /// The device while it is connected: to have it send what was submitted, or be resized.
    pub const fn device(&mut self) -> Option<&mut D> {
        self.device.as_mut()
    }

    /// Takes nothing new from now on, as if the device were gone. What is open goes on: once
    /// [nothing](Self::nr_open) is, the device can be let go, and nobody has lost anything.
    pub const fn refuse(&mut self) {
        self.is_leaving = true;
    }

    /// Lets the device go. What it has not completed has failed ([`Failure::Gone`]), and what was
    /// read and not yet copied is gone, too, since its frames are: no copy is under way. The next
    /// pump tells of it.
    pub fn disconnect(&mut self) -> Option<D> {
        self.complete();
        (self.said, self.max_sectors) = (self.said(), self.max_sectors());
        let device = self.device.take()?;
        self.waiting.clear();
        self.wanting.clear();
        for index in 0..self.operations.len() {
            let Operation { lease, state, .. } = &mut self.operations[index];
            if matches!(state, State::UnderWay | State::Abandoned) {
                lose(lease);
            }
            match state {
                State::Free { .. } => {}
                State::Ready { buffer, .. } => *buffer = None,
                State::Abandoned | State::Unwanted => self.close(index),
                State::Wanting(_) | State::Reserved(_) | State::Waiting(_) | State::UnderWay => {
                    *state = State::Ready { result: Err(Failure::Gone), buffer: None };
                }
            }
        }
        (self.is_full, self.news) = (false, true);
        Some(device)
    }

    /// Takes all that is over, and goes on with what had to wait. Whether there is news: something is
    /// ready, or what was busy may be asked again. A disk that lets go of something gives pages back,
    /// also to another device that has the same ones; so who has told the disks of news asks all
    /// devices again before it sleeps.
    #[must_use]
    pub fn pump(&mut self) -> bool {
        self.complete();
        self.reserve_wanting();
        self.submit_waiting();
        if self.is_full && (self.is_leaving || self.nr_open < MAX_OPERATIONS) {
            (self.is_full, self.news) = (false, true);
        }
        mem::take(&mut self.news)
    }

    /// Reserves buffers for those that wait for one, as far as there are pages.
    fn reserve_wanting(&mut self) {
        while let Some(&Wanting { operation, nr_sectors, .. }) = self.wanting.front()
            && let Some(device) = &mut self.device
        {
            // Those of a device that is gone may never come back.
            let is_gone = device.max_sectors() == 0;
            let buffer = if is_gone { None } else { device.reserve(nr_sectors) };
            if buffer.is_none() && !is_gone {
                return;
            }
            self.wanting.pop_front();
            // Its party may have the next.
            self.news = true;
            let state = &mut self.operations[operation as usize].state;
            match mem::replace(state, State::UnderWay) {
                State::Wanting(request) => match request.with_buffer(buffer) {
                    Some(read @ Request::Read { .. }) => {
                        *state = State::Waiting(read);
                        self.waiting.push_back(operation);
                    }
                    Some(write) => *state = State::Reserved(write),
                    None => *state = State::Ready { result: Err(Failure::Gone), buffer: None },
                },
                _ => {
                    self.give_back(buffer);
                    self.close(operation as usize);
                }
            }
        }
    }

    /// Whether a write or discard that nobody waited for any more has ended since this was last
    /// asked: a disk that was not [settled](crate::Disk::is_settled) may be now.
    #[must_use]
    pub const fn take_settled(&mut self) -> bool {
        mem::replace(&mut self.has_settled, false)
    }

    /// What the device says of itself, or said last; `None` before it was ever there.
    #[must_use]
    pub fn geometry(&self) -> Option<Geometry> {
        Some(self.said().0).filter(|geometry| geometry.nr_sectors > 0)
    }

    /// Whether it takes flushes, or took them when it was let go.
    #[must_use]
    pub fn flushing(&self) -> Flushing {
        self.said().1
    }

    /// Its longest buffer in sectors ([`Device::max_sectors`]), or what that was when it was let go; 0
    /// before it was ever there.
    #[must_use]
    pub fn max_sectors(&self) -> u64 {
        self.device.as_ref().map_or(self.max_sectors, Device::max_sectors)
    }

    /// Operations that are not ended, or that the device still works on.
    #[must_use]
    pub const fn nr_open(&self) -> usize {
        self.nr_open
    }

    fn complete(&mut self) {
        while let Some(Completion { tag, result, buffer }) =
            self.device.as_mut().and_then(Device::complete)
        {
            let Some(index) = self.find(tag) else {
                debug_assert!(false, "{tag:?} is over, but was not open");
                self.give_back(buffer);
                continue;
            };
            let Operation { changes, lease, state, .. } = &mut self.operations[index];
            if buffer.is_none() {
                lose(lease);
            }
            if let State::Abandoned = state {
                self.has_settled |= !changes.is_empty();
                self.give_back(buffer);
                self.close(index);
            } else {
                *state = State::Ready { result, buffer };
                self.news = true;
            }
        }
    }

    /// The place of an operation that is open.
    fn find(&self, Tag(tag): Tag) -> Option<usize> {
        #[expect(clippy::cast_possible_truncation, reason = "its two halves")]
        let (slot, generation) = (tag as u32, (tag >> 32) as u32);
        let operation = self.operations.get(slot as usize)?;
        let is_open =
            operation.generation == generation && !matches!(operation.state, State::Free { .. });
        is_open.then_some(slot as usize)
    }

    fn find_token(&self, token: &Token) -> Option<usize> {
        self.find(tag(token.slot(), token.generation()))
    }

    /// Makes sure that there is a free place.
    fn make_room(&mut self) -> Result<u32, StoreError> {
        if let Some(free) = self.free {
            return Ok(free);
        }
        let nr = self.operations.len();
        let room = self.operations.try_reserve(1);
        let room = room.and(self.waiting.try_reserve(nr + 1 - self.waiting.len()));
        let room = room.and(self.wanting.try_reserve(nr + 1 - self.wanting.len()));
        room.map_err(|_| StoreError::NoHeap)?;
        let index = as_u32(nr);
        let state = State::Free { next: None };
        self.operations.push(Operation { generation: 0, changes: 0..0, lease: None, state });
        self.free = Some(index);
        Ok(index)
    }

    /// Begins the use of a free place.
    fn open(
        &mut self,
        slot: u32,
        changes: Range<u64>,
        lease: Option<Lease>,
        state: State<D::Buffer>,
    ) -> Token {
        let operation = &mut self.operations[slot as usize];
        if let State::Free { next } = operation.state {
            self.free = next;
        }
        let generation = operation.generation;
        *operation = Operation { generation, changes, lease, state };
        self.nr_open += 1;
        Token::new(slot, generation)
    }

    /// Ends the use of a place.
    fn close(&mut self, index: usize) {
        let operation = &mut self.operations[index];
        operation.generation = operation.generation.wrapping_add(1);
        operation.lease = None;
        operation.state = State::Free { next: self.free };
        self.free = Some(as_u32(index));
        self.nr_open -= 1;
    }

    fn give_back(&mut self, buffer: Option<D::Buffer>) {
        if let (Some(device), Some(buffer)) = (&mut self.device, buffer) {
            device.give_back(buffer);
        }
    }

    /// Submits what waits, as far as the device has room.
    fn submit_waiting(&mut self) {
        while let Some(&index) = self.waiting.front()
            && let Some(device) = &mut self.device
        {
            let Operation { generation, state, .. } = &mut self.operations[index as usize];
            if let State::Waiting(request) = mem::replace(state, State::UnderWay)
                && let Err(Refused { reason, request }) =
                    device.submit(tag(index, *generation), request)
            {
                match reason {
                    Refusal::Full { .. } => {
                        *state = State::Waiting(request);
                        return;
                    }
                    Refusal::Failed(failure) => {
                        let buffer = request.into_buffer();
                        *state = State::Ready { result: Err(failure), buffer };
                        self.news = true;
                    }
                }
            }
            self.waiting.pop_front();
        }
    }
}

impl<D: Device> SharedDevice for Shared<D> {
    fn said(&self) -> (Geometry, Flushing) {
        self.device.as_ref().map_or(self.said, |device| (device.geometry(), device.flushing()))
    }

    fn join(&mut self) -> Party {
        self.nr_parties = self.nr_parties.wrapping_add(1);
        Party(self.nr_parties)
    }

    fn reserve(&mut self, party: Party, request: Request<u32>) -> Result<Token, StoreError> {
        let nr_sectors = match request {
            Request::Read { buffer, .. } | Request::Write { buffer, .. } => buffer,
            Request::Flush | Request::Discard { .. } | Request::SecureDiscard { .. } => 0,
        };
        let device = self.device.as_ref().filter(|_| !self.is_leaving).ok_or(GONE)?;
        let (nr, max) = (nr_sectors.into(), device.max_sectors());
        if nr > max {
            return Err(if max == 0 { GONE } else { StoreError::TooLong { nr, max } });
        }
        if self.nr_open >= MAX_OPERATIONS && request != Request::Flush {
            self.is_full = true;
            return Err(StoreError::Busy);
        }
        if nr_sectors > 0 && self.wanting.iter().any(|wanting| wanting.party == party) {
            return Err(StoreError::Busy);
        }
        let slot = self.make_room()?;
        let changed = changes(&request);
        let device = self.device.as_mut().filter(|_| nr_sectors > 0 && self.wanting.is_empty());
        let buffer = device.and_then(|device| device.reserve(nr_sectors));
        let reserved = if nr_sectors > 0 && buffer.is_none() {
            self.wanting.push_back(Wanting { operation: slot, party, nr_sectors });
            State::Wanting(request)
        } else {
            State::Reserved(request.with_buffer(buffer).ok_or(GONE)?)
        };
        Ok(self.open(slot, changed, None, reserved))
    }

    fn lend(&mut self, request: Request<u32>, lent: Lent<'_>) -> Result<Option<Token>, StoreError> {
        let (Request::Read { buffer: nr_sectors, .. } | Request::Write { buffer: nr_sectors, .. }) =
            request
        else {
            return Ok(None);
        };
        // The usual way is open to it, on which it waits for its turn.
        if self.is_leaving || self.nr_open >= MAX_OPERATIONS || !self.wanting.is_empty() {
            return Ok(None);
        }
        let Ok(slot) = self.make_room() else { return Ok(None) };
        let device = self.device.as_mut();
        let buffer = device.and_then(|device| device.lend(lent.frames, nr_sectors));
        let changed = changes(&request);
        let Some(request) = request.with_buffer(buffer) else { return Ok(None) };
        let lease = Some(lent.lease.clone());
        let token = self.open(slot, changed, lease, State::Reserved(request));
        self.submit(token).map(Some)
    }

    fn submit(&mut self, token: Token) -> Result<Token, StoreError> {
        let index = self.find_token(&token).ok_or(StoreError::Stale)?;
        let state = &mut self.operations[index].state;
        match mem::replace(state, State::UnderWay) {
            State::Reserved(request) => *state = State::Waiting(request),
            read @ State::Wanting(Request::Read { .. }) => {
                *state = read;
                return Ok(token);
            }
            other => {
                *state = other;
                return self.end(token).and(Err(StoreError::Stale));
            }
        }
        // There is room for as many as there are operations.
        self.waiting.push_back(token.slot());
        self.submit_waiting();
        match self.operations[index].state {
            State::Ready { .. } => self.end(token).and(Err(StoreError::Stale)),
            _ => Ok(token),
        }
    }

    fn is_ready(&self, token: &Token) -> bool {
        self.find_token(token).is_none_or(|index| {
            let state = &self.operations[index].state;
            !matches!(state, State::Wanting(_) | State::Waiting(_) | State::UnderWay)
        })
    }

    fn frames(&self, token: &Token, each: &mut dyn FnMut(Gfn)) -> Result<(), StoreError> {
        let index = self.find_token(token).ok_or(StoreError::Stale)?;
        let buffer = match &self.operations[index].state {
            State::Reserved(Request::Write { buffer, .. }) => buffer,
            State::Ready { result, buffer } => {
                result.map_err(StoreError::Device)?;
                buffer.as_ref().ok_or(GONE)?
            }
            _ => return Err(StoreError::Stale),
        };
        self.device.as_ref().ok_or(GONE)?.frames(buffer, each);
        Ok(())
    }

    fn end(&mut self, token: Token) -> Result<(), StoreError> {
        let index = self.find_token(&token).ok_or(StoreError::Stale)?;
        let state = &mut self.operations[index].state;
        let (buffer, result) = match mem::replace(state, State::Abandoned) {
            State::Ready { result, buffer } => (buffer, result.map_err(StoreError::Device)),
            State::Reserved(request) => (request.into_buffer(), Err(StoreError::Stale)),
            State::Waiting(request) => {
                self.waiting.retain(|&waiting| waiting != token.slot());
                (request.into_buffer(), Err(StoreError::Stale))
            }
            // Its turn comes nevertheless.
            State::Wanting(_) => {
                *state = State::Unwanted;
                return Err(StoreError::Stale);
            }
            // It goes on, and is closed when it is over.
            State::Free { .. } | State::UnderWay | State::Abandoned | State::Unwanted => {
                return Err(StoreError::Stale);
            }
        };
        self.give_back(buffer);
        self.close(index);
        result
    }

    fn is_settled(&self, sectors: Range<u64>) -> bool {
        self.operations.iter().all(|Operation { changes, state, .. }| {
            let overlaps = changes.start < sectors.end && sectors.start < changes.end;
            !overlaps || !matches!(state, State::Abandoned)
        })
    }
}

/// The device may still access what it was lent, and nobody will know when it does not: the lease is
/// never over.
fn lose(lease: &mut Option<Lease>) {
    mem::forget(lease.take());
}

/// The sectors that a request changes.
fn changes(request: &Request<u32>) -> Range<u64> {
    let (first, nr) = match *request {
        Request::Write { sector, buffer } => (sector, buffer.into()),
        Request::Discard { sector, nr_sectors } | Request::SecureDiscard { sector, nr_sectors } => {
            (sector, nr_sectors)
        }
        Request::Read { .. } | Request::Flush => (0, 0),
    };
    first..first.saturating_add(nr)
}

const GONE: StoreError = StoreError::Device(Failure::Gone);

fn as_u32(index: usize) -> u32 {
    // An index of an operation, of which there are fewer.
    u32::try_from(index).unwrap_or(u32::MAX)
}

const fn tag(slot: u32, generation: u32) -> Tag {
    Tag((generation as u64) << 32 | slot as u64)
}
