//! The seam to our own page frames.

use xen_abi::{Gfn, PAGE_SIZE};

/// A byte within a frame of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameAddr {
    /// The frame.
    pub gfn: Gfn,
    /// Byte within the frame, 0 to 4095.
    pub offset: u16,
}

impl FrameAddr {
    /// The first byte of a frame.
    #[must_use]
    pub const fn start_of(gfn: Gfn) -> Self {
        Self { gfn, offset: 0 }
    }

    /// The byte `len_bytes` after this one, in a run of frames.
    #[must_use]
    pub fn after(self, len_bytes: usize) -> Self {
        let offset = usize::from(self.offset) + len_bytes;
        let frames = u64::try_from(offset / PAGE_SIZE).unwrap_or(u64::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "a remainder by the page size")]
        let rest = (offset % PAGE_SIZE) as u16;
        Self { gfn: Gfn(self.gfn.0.saturating_add(frames)), offset: rest }
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
}
