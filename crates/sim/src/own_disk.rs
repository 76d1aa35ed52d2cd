//! A disk of a device that is the driver domain's own.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use store::{
    Access, BlockSize, Completion, Device, Failure, Flushing, FrameAddr, FrameMemory, Geometry,
    Refusal, Refused, Request, SECTOR_SIZE, Tag,
};
use xen_abi::{Gfn, PAGE_SIZE};

use crate::OwnFrames;

/// Buffers are no longer than this.
const MAX_SECTORS: u32 = 256;

/// What a test has of it: its bytes, and whether it carries anything out.
#[derive(Clone, Debug)]
pub struct OwnDisk(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    fails: bool,
    is_gone: bool,
}

impl OwnDisk {
    /// One of so many sectors, all zeroes.
    #[must_use]
    pub fn new(nr_sectors: usize) -> Self {
        Self(Rc::new(RefCell::new(State {
            bytes: vec![0; nr_sectors * SECTOR_SIZE],
            fails: false,
            is_gone: false,
        })))
    }

    /// From now on every request fails, or none.
    pub fn set_fails(&self, fails: bool) {
        self.0.borrow_mut().fails = fails;
    }

    /// From now on it is gone.
    pub fn go(&self) {
        self.0.borrow_mut().is_gone = true;
    }

    /// What is on it.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.0.borrow().bytes.clone()
    }

    /// As the domain has it.
    #[must_use]
    pub fn device(&self, memory: &OwnFrames, pages: &OwnPages) -> OwnDevice {
        let (disk, pages) = (self.clone(), pages.clone());
        OwnDevice { disk, memory: memory.clone(), pages, over: VecDeque::new() }
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

/// A device that carries out what is submitted when it is asked what is over.
#[derive(Debug)]
pub struct OwnDevice {
    disk: OwnDisk,
    memory: OwnFrames,
    pages: OwnPages,
    over: VecDeque<(Tag, Request<OwnBuffer>)>,
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
            if is_read {
                self.memory.write(FrameAddr::start_of(frame), bytes);
            } else {
                self.memory.read(FrameAddr::start_of(frame), bytes);
            }
        }
        Ok(())
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
        if self.disk.0.borrow().is_gone { 0 } else { MAX_SECTORS.into() }
    }

    fn reserve(&mut self, nr_sectors: u32) -> Option<OwnBuffer> {
        let mut pages = self.pages.0.borrow_mut();
        let has_turn =
            |first: &OwnDisk| Rc::ptr_eq(&first.0, &self.disk.0) || first.0.borrow().is_gone;
        if !pages.refused.as_ref().is_none_or(has_turn) {
            return None;
        }
        let left = pages.free.len().checked_sub(nr_sectors.div_ceil(8) as usize);
        pages.refused = left.is_none().then(|| self.disk.clone());
        Some(OwnBuffer { frames: pages.free.split_off(left?), nr_sectors })
    }

    fn give_back(&mut self, buffer: OwnBuffer) {
        self.pages.0.borrow_mut().free.extend(buffer.frames);
    }

    fn frames(&self, buffer: &OwnBuffer, each: &mut dyn FnMut(Gfn)) {
        buffer.frames.iter().copied().for_each(each);
    }

    fn submit(&mut self, tag: Tag, request: Request<OwnBuffer>) -> Result<(), Refused<OwnBuffer>> {
        if self.disk.0.borrow().is_gone {
            return Err(Refused { reason: Failure::Gone.into(), request });
        }
        if self.over.len() >= 32 {
            return Err(Refused { reason: Refusal::Full { max: 32 }, request });
        }
        self.over.push_back((tag, request));
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion<OwnBuffer>> {
        let (tag, request) = self.over.pop_front()?;
        let result = self.carry_out(&request);
        Some(Completion { tag, result, buffer: request.into_buffer() })
    }
}
