//! What lies below a disk's pages.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;

use xen_abi::{Gfn, PAGE_SIZE};

use crate::block_store::{Extent, ExtentSink, StoreError};
use crate::geometry::{SECTOR_SHIFT, SECTOR_SIZE, SectorRange};
use crate::image::Image;
use crate::joined::Joined;
use crate::memory::{FrameAddr, FrameMemory};
use crate::pool::PagePool;

/// What a disk begins as.
#[derive(Clone, Debug)]
pub(super) enum Base {
    Zeroes,
    Image(Rc<Image>),
    /// What is not at hand by itself: what is needed of it is fetched before.
    Fetched(Fetched),
}

/// The part of a base that was fetched.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    /// The end of the disk; what is behind it has never been anything.
    end: u64,
    /// Which bytes of the disk there are.
    bytes: Range<u64>,
    /// What they are in, from the start of the first on. Has room for as many as were ever fetched
    /// at once.
    frames: Vec<Gfn>,
}

impl Base {
    pub(super) const fn is_zeroes(&self) -> bool {
        matches!(self, Self::Zeroes)
    }

    /// Hands what it has at byte `offset` of the disk to `sink`.
    pub(super) fn name<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        offset: u64,
        len_bytes: usize,
        sink: &mut impl ExtentSink,
    ) -> Result<(), StoreError> {
        match self {
            Self::Zeroes => sink.extent(Extent::Zero { len_bytes }),
            Self::Image(image) => image.read(pool, offset, len_bytes, sink)?,
            Self::Fetched(fetched) => fetched.name(offset, len_bytes, sink)?,
        }
        Ok(())
    }

    /// Copies what it has at byte `offset` of the disk to `to`.
    #[inline(never)]
    pub(super) fn fill<M: FrameMemory>(
        &self,
        pool: &mut PagePool<M>,
        offset: u64,
        to: FrameAddr,
        len_bytes: usize,
    ) -> Result<(), StoreError> {
        let read = pool.begin_read();
        let mut done = 0;
        let result = loop {
            if done >= len_bytes {
                break Ok(());
            }
            // The pool is the base's while it names extents. Nearly always there is but one.
            let mut first = None;
            let mut sink = |extent| _ = first.get_or_insert(extent);
            if let Err(error) = self.name(pool, offset + done as u64, len_bytes - done, &mut sink) {
                break Err(error);
            }
            let to = to.after(done);
            done += match first {
                Some(Extent::Frames { at, len_bytes }) => {
                    pool.memory_mut().copy(at, to, len_bytes);
                    len_bytes
                }
                Some(Extent::Zero { len_bytes } | Extent::Discarded { len_bytes }) => {
                    pool.memory_mut().zero(to, len_bytes);
                    len_bytes
                }
                None => {
                    debug_assert!(false, "a base names fewer bytes than were asked for");
                    pool.memory_mut().zero(to, len_bytes - done);
                    len_bytes - done
                }
            };
        };
        pool.end_read(read);
        result
    }
}

impl Fetched {
    /// Nothing was fetched for a disk of `nr_sectors` sectors.
    pub(super) const fn none(nr_sectors: u64) -> Self {
        Self { end: nr_sectors << SECTOR_SHIFT, bytes: 0..0, frames: Vec::new() }
    }

    /// A range was fetched, to the frames that `frames` hands on.
    pub(super) fn set(
        &mut self,
        range: SectorRange,
        frames: impl FnOnce(&mut dyn FnMut(Gfn)) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let bytes = range.first() << SECTOR_SHIFT..range.end() << SECTOR_SHIFT;
        self.bytes = 0..0;
        self.frames.clear();
        let nr_frames = usize::try_from(range.nr())
            .map_or(usize::MAX, |nr| nr.div_ceil(PAGE_SIZE / SECTOR_SIZE));
        self.frames.try_reserve(nr_frames).map_err(|_| StoreError::NoHeap)?;
        frames(&mut |frame| self.frames.push(frame))?;
        self.bytes = bytes;
        Ok(())
    }

    fn name(
        &self,
        offset: u64,
        len_bytes: usize,
        sink: &mut dyn ExtentSink,
    ) -> Result<(), StoreError> {
        let end = offset.saturating_add(len_bytes as u64);
        let mut joined = Joined::new(sink);
        let mut at = offset;
        while at < end.min(self.end) {
            let fetched = at.checked_sub(self.bytes.start).filter(|_| at < self.bytes.end);
            let fetched = fetched.and_then(|nth| usize::try_from(nth).ok());
            let nth = fetched.ok_or(StoreError::Stale)?;
            let (frame, offset) = (self.frames[nth / PAGE_SIZE], nth % PAGE_SIZE);
            let left_bytes = end.min(self.bytes.end) - at;
            let len_bytes =
                usize::try_from(left_bytes).unwrap_or(PAGE_SIZE).min(PAGE_SIZE - offset);
            joined.add(FrameAddr::start_of(frame).after(offset), len_bytes);
            at += len_bytes as u64;
        }
        joined.end();
        if at < end {
            sink.extent(Extent::Zero { len_bytes: usize::try_from(end - at).unwrap_or(0) });
        }
        Ok(())
    }
}
