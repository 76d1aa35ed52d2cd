//! A disk of a device that is the driver domain's own.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use store::{
    Access, BlockSize, Completion, Device, Failure, Flushing, FrameAddr, FrameMemory, Geometry,
    Refusal, Refused, Request, SECTOR_SIZE, Tag,
};
use xen_abi::{Gfn, PAGE_SIZE};

use crate::{Iommu, OwnFrames, Page, Rng};

/// Buffers are no longer than this.
const MAX_SECTORS: u32 = 256;

/// Pages of guests that a device has at once.
const MAX_LENT: usize = 256;

/// What a test has of it: its bytes, and whether and when it carries anything out.
#[derive(Clone, Debug)]
pub struct OwnDisk(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    fails: bool,
    pace: Pace,
    gone: Option<Gone>,
    nr_under_way: usize,
    nr_lent_under_way: usize,
    /// Requests whose data was moved in pages of guests.
    nr_lent: u64,
    rng: Rng,
}

/// How long a disk takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// All is over when the domain looks.
    AtOnce,
    /// One request, any, each time that the domain looks so often.
    Slow(u64),
    /// Nothing is ever over.
    Stalled,
}

/// How a disk is gone with what it has under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gone {
    /// It accesses no memory any more.
    CutOff,
    /// It goes on to, in the buffers it has.
    Uncontrolled,
}

impl OwnDisk {
    /// One of so many sectors, all zeroes.
    #[must_use]
    pub fn new(nr_sectors: usize) -> Self {
        Self(Rc::new(RefCell::new(State {
            bytes: vec![0; nr_sectors * SECTOR_SIZE],
            fails: false,
            pace: Pace::AtOnce,
            gone: None,
            nr_under_way: 0,
            nr_lent_under_way: 0,
            nr_lent: 0,
            rng: Rng::new(nr_sectors as u64),
        })))
    }

    /// From now on it takes so long.
    pub fn set_pace(&self, pace: Pace) {
        self.0.borrow_mut().pace = pace;
    }

    /// It is gone for good.
    pub fn set_gone(&self, gone: Gone) {
        self.0.borrow_mut().gone = Some(gone);
    }

    /// Requests that it has with pages of guests.
    #[must_use]
    pub fn nr_lent_under_way(&self) -> usize {
        self.0.borrow().nr_lent_under_way
    }

    /// Requests whose data was moved in pages of guests.
    #[must_use]
    pub fn nr_lent(&self) -> u64 {
        self.0.borrow().nr_lent
    }

    /// Whether its interrupt is to be expected.
    pub(crate) fn is_at_work(&self) -> bool {
        let state = self.0.borrow();
        state.nr_under_way > 0 && (state.pace != Pace::Stalled || state.gone.is_some())
    }

    /// From now on every request fails, or none.
    pub fn set_fails(&self, fails: bool) {
        self.0.borrow_mut().fails = fails;
    }

    /// What is on it.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.0.borrow().bytes.clone()
    }

    /// As the domain has it.
    #[must_use]
    pub fn device(&self, memory: &OwnFrames, pages: &OwnPages, iommu: Option<Iommu>) -> OwnDevice {
        OwnDevice {
            disk: self.clone(),
            memory: memory.clone(),
            iommu,
            pages: pages.clone(),
            under_way: VecDeque::new(),
            nr_lent: 0,
            uncontrolled: Vec::new(),
        }
    }
}

/// Frames that devices share, as namespaces share those of their controller.
#[derive(Clone, Debug)]
pub struct OwnPages(Rc<RefCell<Pages>>);

#[derive(Debug)]
struct Pages {
    free: Vec<Gfn>,
    /// The disk that is to have a buffer before others do.
    refused: Option<OwnDisk>,
}

impl OwnPages {
    /// These frames, a page of a buffer each.
    #[must_use]
    pub fn new(frames: impl Iterator<Item = Gfn>) -> Self {
        Self(Rc::new(RefCell::new(Pages { free: frames.collect(), refused: None })))
    }
}

/// A device that carries out what is submitted when it is asked what is over. It may access all that it has
/// whenever it is asked.
#[derive(Debug)]
pub struct OwnDevice {
    disk: OwnDisk,
    memory: OwnFrames,
    pages: OwnPages,
    /// By what it reaches guests' pages, if it does.
    iommu: Option<Iommu>,
    under_way: VecDeque<(Tag, Request<OwnBuffer>)>,
    nr_lent: usize,
    /// What it still accesses though it is gone.
    uncontrolled: Vec<OwnBuffer>,
}

/// Pages of an [`OwnDevice`].
#[derive(PartialEq, Eq, Debug)]
pub struct OwnBuffer {
    frames: Vec<Gfn>,
    nr_sectors: u32,
}

impl OwnDevice {
    fn carry_out(&mut self, request: &Request<OwnBuffer>) -> Result<(), Failure> {
        let mut state = self.disk.0.borrow_mut();
        if state.fails {
            return Err(Failure::Device);
        }
        let (sector, buffer, is_read) = match request {
            Request::Read { sector, buffer } => (sector, buffer, true),
            Request::Write { sector, buffer } => (sector, buffer, false),
            _ => return Ok(()),
        };
        let start = usize::try_from(*sector).map_err(|_| Failure::Range)? * SECTOR_SIZE;
        let bytes = state.bytes.get_mut(start..).ok_or(Failure::Range)?;
        let len_bytes = buffer.nr_sectors as usize * SECTOR_SIZE;
        let bytes = bytes.get_mut(..len_bytes).ok_or(Failure::Range)?;
        for (bytes, &frame) in bytes.chunks_mut(PAGE_SIZE).zip(&buffer.frames) {
            match (Iommu::is_foreign(frame), is_read) {
                (false, true) => self.memory.write(FrameAddr::start_of(frame), bytes),
                (false, false) => self.memory.read(FrameAddr::start_of(frame), bytes),
                (true, true) => self.foreign(frame).write(0, bytes),
                (true, false) => self.foreign(frame).read(0, bytes),
            }
        }
        state.nr_lent += u64::from(Iommu::is_foreign(buffer.frames[0]));
        Ok(())
    }

    fn foreign(&self, frame: Gfn) -> Page {
        self.iommu.as_ref().expect("it has no other frames").page(frame)
    }

    /// Accesses each page that it has of a guest.
    fn access(&self) {
        let under_way = self.under_way.iter().filter_map(|(_, request)| match request {
            Request::Read { buffer, .. } | Request::Write { buffer, .. } => Some(buffer),
            _ => None,
        });
        let frames = under_way.chain(&self.uncontrolled).flat_map(|buffer| &buffer.frames);
        for &frame in frames.filter(|frame| Iommu::is_foreign(**frame)) {
            self.foreign(frame);
        }
    }

    /// What is over next.
    fn next(&self) -> Option<usize> {
        let nr = self.under_way.len();
        let State { pace, gone, rng, .. } = &mut *self.disk.0.borrow_mut();
        match pace {
            _ if nr == 0 => None,
            _ if gone.is_some() => Some(0),
            Pace::AtOnce => Some(0),
            Pace::Slow(one_in) => rng.one_in(*one_in).then(|| rng.index(nr)),
            Pace::Stalled => None,
        }
    }
}

impl Device for OwnDevice {
    type Buffer = OwnBuffer;

    fn geometry(&self) -> Geometry {
        Geometry {
            nr_sectors: (self.disk.0.borrow().bytes.len() / SECTOR_SIZE) as u64,
            logical: BlockSize::B512,
            physical_bytes: 4096,
            access: Access::ReadWrite,
            discard: None,
        }
    }

    fn flushing(&self) -> Flushing {
        Flushing::Offered
    }

    fn max_sectors(&self) -> u64 {
        if self.disk.0.borrow().gone.is_some() { 0 } else { MAX_SECTORS.into() }
    }

    fn reserve(&mut self, nr_sectors: u32) -> Option<OwnBuffer> {
        let mut pages = self.pages.0.borrow_mut();
        let has_turn =
            |first: &OwnDisk| Rc::ptr_eq(&first.0, &self.disk.0) || first.0.borrow().gone.is_some();
        if !pages.refused.as_ref().is_none_or(has_turn) {
            return None;
        }
        let left = pages.free.len().checked_sub(nr_sectors.div_ceil(8) as usize);
        pages.refused = left.is_none().then(|| self.disk.clone());
        Some(OwnBuffer { frames: pages.free.split_off(left?), nr_sectors })
    }

    fn lend(&mut self, frames: &[Gfn], nr_sectors: u32) -> Option<OwnBuffer> {
        let nr_lent = self.nr_lent + frames.len();
        if nr_lent > MAX_LENT || self.disk.0.borrow().gone.is_some() {
            return None;
        }
        self.nr_lent = nr_lent;
        Some(OwnBuffer { frames: frames.to_vec(), nr_sectors })
    }

    fn give_back(&mut self, buffer: OwnBuffer) {
        if Iommu::is_foreign(buffer.frames[0]) {
            self.nr_lent -= buffer.frames.len();
        } else {
            self.pages.0.borrow_mut().free.extend(buffer.frames);
        }
    }

    fn frames(&self, buffer: &OwnBuffer, each: &mut dyn FnMut(Gfn)) {
        buffer.frames.iter().copied().for_each(each);
    }

    fn submit(&mut self, tag: Tag, request: Request<OwnBuffer>) -> Result<(), Refused<OwnBuffer>> {
        if self.under_way.len() >= 32 {
            return Err(Refused { reason: Refusal::Full { max: 32 }, request });
        }
        if self.disk.0.borrow().gone.is_some() {
            return Err(Refused { reason: Failure::Gone.into(), request });
        }
        let mut state = self.disk.0.borrow_mut();
        state.nr_under_way += 1;
        state.nr_lent_under_way += usize::from(is_lent(&request));
        drop(state);
        self.under_way.push_back((tag, request));
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion<OwnBuffer>> {
        let gone = self.disk.0.borrow().gone;
        if gone != Some(Gone::CutOff) {
            self.access();
        }
        let next = self.next()?;
        let (tag, request) = self.under_way.remove(next)?;
        let mut state = self.disk.0.borrow_mut();
        state.nr_under_way -= 1;
        state.nr_lent_under_way -= usize::from(is_lent(&request));
        drop(state);
        let result = if gone.is_some() { Err(Failure::Gone) } else { self.carry_out(&request) };
        let mut buffer = request.into_buffer();
        if gone == Some(Gone::Uncontrolled) {
            self.uncontrolled.extend(buffer.take());
        }
        Some(Completion { tag, result, buffer })
    }
}

/// Whether a request's pages are a guest's.
fn is_lent(request: &Request<OwnBuffer>) -> bool {
    match request {
        Request::Read { buffer, .. } | Request::Write { buffer, .. } => {
            Iommu::is_foreign(buffer.frames[0])
        }
        _ => false,
    }
}
