//! Disks on a device: what is kept there is not at hand, and comes later.

mod overlay;
mod shared;

pub use overlay::Overlay;
pub use shared::Shared;

use alloc::rc::Rc;
use core::cell::RefCell;
use core::fmt;

use xen_abi::{Gfn, PAGE_SIZE};

use crate::block_store::{
    BlockStore, Discard, ExtentSink, Flushing, Naming, OpenRead, OpenWrite, Progress, Steps,
    StoreError, Token,
};
use crate::device::{Device, Failure, Request};
use crate::geometry::{Access, DiscardLimits, Geometry, SECTOR_SHIFT, SECTOR_SIZE, SectorRange};
use crate::joined::Joined;
use crate::lent::{Direction, Lent};
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::PagePool;
use shared::{Party, SharedDevice};

/// Most sectors that a device is to discard at once, 1 GiB: a frontend may ask for the whole disk, and
/// others wait as long.
const MAX_DISCARD: u64 = 1 << 21;

/// Which part of a device a disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slice {
    /// Its first sector, at a logical block of the device.
    pub offset: u64,
    /// How many there are; `None` for all up to the device's end, wherever that comes to be.
    pub nr_sectors: Option<u64>,
}

/// A disk whose bytes are on a device: all of it, or a [`Slice`].
///
/// Requests go through buffers of the device's, and are no longer than those can be
/// ([`Device::max_sectors`]). One that finds too few pages free has its turn before those of other
/// disks that come later; until then the disk is busy for all but what needs no buffer. It flushes
/// where the device does.
pub struct DeviceDisk {
    device: Rc<RefCell<dyn SharedDevice>>,
    party: Party,
    slice: Slice,
    access: Access,
}

impl DeviceDisk {
    /// A disk on a device, which may be read-only where the device is not.
    ///
    /// # Errors
    /// [`StoreError::Device`] where the device was never connected, or as [`SectorRange::on`] of a
    /// slice that it does not have.
    pub fn new<D: Device + 'static>(
        device: &Rc<RefCell<Shared<D>>>,
        slice: Slice,
        access: Access,
    ) -> Result<Self, StoreError> {
        let device: Rc<RefCell<dyn SharedDevice>> = Rc::clone(device) as _;
        let (geometry, _) = device.borrow().said();
        if geometry.nr_sectors == 0 {
            return Err(StoreError::Device(Failure::Gone));
        }
        let Slice { offset, nr_sectors } = slice;
        let rest = || geometry.nr_sectors.saturating_sub(offset).max(geometry.logical.sectors());
        SectorRange::on(&geometry, offset, nr_sectors.unwrap_or_else(rest))?;
        let party = device.borrow_mut().join();
        Ok(Self { device, party, slice, access })
    }

    /// As [`Disk::is_settled`](crate::Disk::is_settled).
    pub(crate) fn is_settled(&self) -> bool {
        let Slice { offset, nr_sectors } = self.slice;
        let end = nr_sectors.map_or(u64::MAX, |nr| offset.saturating_add(nr));
        self.device.borrow().is_settled(offset..end)
    }

    /// Opens an operation on the device.
    fn begin(&self, request: Request<u32>) -> Result<Token, StoreError> {
        let mut device = self.device.borrow_mut();
        let token = device.reserve(self.party, request)?;
        device.submit(token)
    }

    /// Begins to read a range of the disk.
    fn read(&self, range: SectorRange) -> Result<Token, StoreError> {
        self.begin(Request::Read { sector: self.sector(range), buffer: len(range)? })
    }

    /// Where a range lies on the device.
    const fn sector(&self, range: SectorRange) -> u64 {
        // The slice was on the device once, which has less than 2^55 sectors.
        self.slice.offset.saturating_add(range.first())
    }

    /// Hands `each` the frames of an operation's buffer.
    fn frames(&self, token: Option<&Token>, each: &mut dyn FnMut(Gfn)) -> Result<(), StoreError> {
        self.device.borrow().frames(token.ok_or(StoreError::Stale)?, each)
    }

    /// Names the bytes of a range, which are in an operation's buffer.
    fn name(
        &self,
        token: Option<&Token>,
        range: SectorRange,
        sink: &mut dyn ExtentSink,
    ) -> Result<(), StoreError> {
        let mut left_bytes = usize::try_from(range.nr()).map_or(0, |nr| nr * SECTOR_SIZE);
        let mut joined = Joined::new(sink);
        self.frames(token, &mut |frame| {
            let len_bytes = left_bytes.min(PAGE_SIZE);
            joined.add(FrameAddr::start_of(frame), len_bytes);
            left_bytes -= len_bytes;
        })?;
        joined.end();
        debug_assert_eq!(left_bytes, 0, "a buffer that is too short");
        Ok(())
    }

    /// Lets go of an operation.
    fn end(&self, token: Option<Token>) {
        if let Some(token) = token {
            // How it went is of no more interest.
            let _ = self.device.borrow_mut().end(token);
        }
    }
}

impl<M: FrameMemory> BlockStore<M> for DeviceDisk {
    fn geometry(&self) -> Geometry {
        let (device, _) = self.device.borrow().said();
        let Slice { offset, nr_sectors } = self.slice;
        let access = match self.access {
            Access::ReadWrite => device.access,
            Access::ReadOnly => Access::ReadOnly,
        };
        // Where the slice begins within the device's units of discard, it has no such units itself.
        let granularity_bytes = |limits: DiscardLimits| {
            let at_unit = (offset << SECTOR_SHIFT).is_multiple_of(limits.granularity_bytes.into());
            if at_unit { limits.granularity_bytes } else { device.logical.bytes() }
        };
        Geometry {
            nr_sectors: nr_sectors.unwrap_or_else(|| device.nr_sectors.saturating_sub(offset)),
            access,
            discard: device.discard.filter(|_| access == Access::ReadWrite).map(|limits| {
                DiscardLimits { granularity_bytes: granularity_bytes(limits), ..limits }
            }),
            ..device
        }
    }

    fn flushing(&self) -> Flushing {
        self.device.borrow().said().1
    }

    fn is_ready(&self, token: &Token) -> bool {
        self.device.borrow().is_ready(token)
    }

    fn takes_pages(&self) -> bool {
        true
    }

    fn lend(
        &mut self,
        range: SectorRange,
        direction: Direction,
        lent: Lent<'_>,
    ) -> Result<Option<Token>, StoreError> {
        let (sector, buffer) = (self.sector(range), len(range)?);
        let request = match direction {
            Direction::Read => Request::Read { sector, buffer },
            Direction::Write if self.access == Access::ReadOnly => {
                return Err(StoreError::ReadOnly);
            }
            Direction::Write => Request::Write { sector, buffer },
        };
        self.device.borrow_mut().lend(request, lent)
    }

    fn begin_read(
        &mut self,
        _pool: &mut PagePool<M>,
        range: SectorRange,
        _sink: &mut impl ExtentSink,
    ) -> Result<OpenRead, StoreError> {
        // The pool does not count it: a slow device would keep what others release from them.
        Ok(OpenRead::later(self.read(range)?))
    }

    fn resume_read(
        &mut self,
        _pool: &mut PagePool<M>,
        read: &mut OpenRead,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        self.name(read.token(), range, sink)?;
        read.set_named();
        Ok(())
    }

    fn end_read(&mut self, _pool: &mut PagePool<M>, read: OpenRead) {
        self.end(read.token);
    }

    fn begin_write(
        &mut self,
        _pool: &mut PagePool<M>,
        range: SectorRange,
        sink: &mut impl ExtentSink,
    ) -> Result<OpenWrite, StoreError> {
        if self.access == Access::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        let request = Request::Write { sector: self.sector(range), buffer: len(range)? };
        let token = self.device.borrow_mut().reserve(self.party, request)?;
        if !self.device.borrow().is_ready(&token) {
            return Ok(OpenWrite::with_token(range, token, Naming::Later));
        }
        let write = OpenWrite::with_token(range, token, Naming::Done);
        match self.name(write.token(), range, sink) {
            Ok(()) => Ok(write),
            Err(error) => {
                self.end(write.token);
                Err(error)
            }
        }
    }

    fn resume_write(
        &mut self,
        _pool: &mut PagePool<M>,
        write: &mut OpenWrite,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        if write.naming() == Naming::Done {
            return Err(StoreError::Stale);
        }
        self.name(write.token(), write.range, sink)?;
        write.set_named();
        Ok(())
    }

    fn commit_write(
        &mut self,
        _pool: &mut PagePool<M>,
        write: OpenWrite,
    ) -> Result<Progress, StoreError> {
        let token = write.token.ok_or(StoreError::Stale)?;
        self.device.borrow_mut().submit(token).map(Progress::Later)
    }

    fn abort_write(&mut self, _pool: &mut PagePool<M>, write: OpenWrite) {
        self.end(write.token);
    }

    fn discard_unit_sectors(&self) -> u64 {
        MAX_DISCARD
    }

    fn discard(
        &mut self,
        _pool: &mut PagePool<M>,
        range: SectorRange,
        discard: Discard,
        _steps: &mut Steps,
    ) -> Result<Progress, StoreError> {
        if self.access == Access::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        let (sector, nr_sectors) = (self.sector(range), range.nr());
        let request = match discard {
            Discard::Plain => Request::Discard { sector, nr_sectors },
            Discard::Secure => Request::SecureDiscard { sector, nr_sectors },
        };
        self.begin(request).map(Progress::Later)
    }

    fn flush(&mut self, _pool: &mut PagePool<M>) -> Result<Progress, StoreError> {
        self.begin(Request::Flush).map(Progress::Later)
    }

    fn conclude(&mut self, _pool: &mut PagePool<M>, token: Token) -> Result<Progress, StoreError> {
        self.device.borrow_mut().end(token).map(|()| Progress::Done)
    }

    fn cancel(&mut self, _pool: &mut PagePool<M>, token: Token) {
        self.end(Some(token));
    }
}

/// How long a buffer for a range is.
fn len(range: SectorRange) -> Result<u32, StoreError> {
    let max = u32::MAX.into();
    u32::try_from(range.nr()).map_err(|_| StoreError::TooLong { nr: range.nr(), max })
}

impl fmt::Debug for DeviceDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.slice.fmt(f)
    }
}
