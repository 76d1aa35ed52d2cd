//! The seam to our own page frames.

use xen_abi::{Gfn, PAGE_SHIFT, PAGE_SIZE};

/// A byte of our own frames, by its guest physical address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameAddr(u64);

impl FrameAddr {
    /// The byte at a guest physical address.
    #[must_use]
    pub const fn at(paddr: u64) -> Self {
        Self(paddr)
    }

    /// The byte `offset` bytes after the first of a frame.
    #[must_use]
    pub const fn new(gfn: Gfn, offset: u16) -> Self {
        Self((gfn.0 << PAGE_SHIFT) + offset as u64)
    }

    /// The first byte of a frame.
    #[must_use]
    pub const fn start_of(gfn: Gfn) -> Self {
        Self::new(gfn, 0)
    }

    /// Its guest physical address.
    #[must_use]
    pub const fn paddr(self) -> u64 {
        self.0
    }

    /// The frame.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// Byte within the frame, 0 to 4095.
    #[must_use]
    pub const fn offset(self) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "a remainder by the page size")]
        let offset = self.0 as u16 & (PAGE_SIZE as u16 - 1);
        offset
    }

    /// The byte `len_bytes` after this one, in a run of frames.
    #[must_use]
    pub const fn after(self, len_bytes: usize) -> Self {
        Self(self.0.saturating_add(len_bytes as u64))
    }
}

/// Our own page frames: those the pool was made of, and the boot modules'.
///
/// No peer can write them. A range may run over the end of a frame into the next. Frames and
/// ranges come from our own tables alone; one outside the memory is a bug of the caller and panics.
pub trait FrameMemory {
    /// Copies `into.len()` bytes at `at` out of the frames.
    fn read(&self, at: FrameAddr, into: &mut [u8]);

    /// Copies `from` into the frames at `at`.
    fn write(&mut self, at: FrameAddr, from: &[u8]);

    /// Writes zeroes over `len_bytes` bytes at `at`.
    fn zero(&mut self, at: FrameAddr, len_bytes: usize);

    /// Copies `len_bytes` bytes between ranges that do not overlap.
    fn copy(&mut self, from: FrameAddr, to: FrameAddr, len_bytes: usize);

    /// Loads the 4-aligned word at `at`, of this machine's byte order.
    fn load_u32(&self, at: FrameAddr) -> u32;

    /// Stores the 4-aligned word at `at`, in one store.
    fn store_u32(&mut self, at: FrameAddr, value: u32);

    /// Stores the 4-aligned word at `at`, and gives the one that was there.
    #[inline]
    fn replace_u32(&mut self, at: FrameAddr, value: u32) -> u32 {
        let old = self.load_u32(at);
        self.store_u32(at, value);
        old
    }
}
