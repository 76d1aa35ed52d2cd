//! Our own page frames, by copies.

use core::ptr;

use store::{FrameAddr, FrameMemory};
use xen_abi::{Gfn, PAGE_SHIFT};

use crate::copy;
use crate::region::Region;

/// The frames of the page pool and of the boot modules: a handle.
#[derive(Debug)]
pub(crate) struct Frames {
    /// The run that nearly all that is asked for is in: its first byte and their number.
    start: u64,
    len_bytes: u64,
    others: &'static [Run],
}

/// The first frame of a run and their number.
type Run = (Gfn, u64);

impl Frames {
    /// # Safety
    /// The frames are RAM, mapped at their guest physical addresses for good, and no Rust object
    /// lies in them.
    pub(crate) const unsafe fn new(runs: &'static [Run]) -> Self {
        match runs {
            &[(first, nr), ref others @ ..] => {
                Self { start: first.0 << PAGE_SHIFT, len_bytes: nr << PAGE_SHIFT, others }
            }
            [] => Self { start: 0, len_bytes: 0, others: &[] },
        }
    }

    /// Whether one run has `nr_frames` frames from `gfn` on, and `gfn` in any case.
    pub(crate) fn contain(&self, gfn: Gfn, nr_frames: u64) -> bool {
        self.contain_bytes(FrameAddr::start_of(gfn), nr_frames << PAGE_SHIFT)
    }

    /// Whether one run has `len` bytes from `at` on, and `at` in any case.
    #[inline]
    fn contain_bytes(&self, at: FrameAddr, len: u64) -> bool {
        contains(self.start, self.len_bytes, at, len) || self.others_contain(at, len)
    }

    #[inline(never)]
    fn others_contain(&self, at: FrameAddr, len: u64) -> bool {
        self.others
            .iter()
            .any(|&(first, nr)| contains(first.0 << PAGE_SHIFT, nr << PAGE_SHIFT, at, len))
    }

    /// Copies out of pages that a peer shares, each byte fetched once.
    #[inline]
    pub(crate) fn copy_in(&mut self, from: &Region, offset: usize, to: FrameAddr, len: usize) {
        if contains(self.start, self.len_bytes, to, len as u64) {
            // SAFETY: both ranges are checked; no Rust object lies in either, and the copy is made by
            // instructions that the compiler does not see into.
            unsafe { copy::copy(from.at(offset, len), address(to), len) };
        } else {
            self.copy_into_others(from, offset, to, len);
        }
    }

    /// Copies into pages that a peer shares.
    #[inline]
    pub(crate) fn copy_out(&self, from: FrameAddr, to: &Region, offset: usize, len: usize) {
        if contains(self.start, self.len_bytes, from, len as u64) {
            // SAFETY: as in `copy_in`.
            unsafe { copy::copy(address(from), to.at(offset, len), len) };
        } else {
            self.copy_out_of_others(from, to, offset, len);
        }
    }

    /// As [`Self::copy_in`]. Apart, since what calls nothing but the copy at its end saves no register.
    #[inline(never)]
    fn copy_into_others(&mut self, from: &Region, offset: usize, to: FrameAddr, len: usize) {
        // SAFETY: both `at`s have checked their range; as in `copy_in`.
        unsafe { copy::copy(from.at(offset, len), self.at(to, len), len) };
    }

    /// As [`Self::copy_out`].
    #[inline(never)]
    fn copy_out_of_others(&self, from: FrameAddr, to: &Region, offset: usize, len: usize) {
        // SAFETY: as in `copy_into_others`.
        unsafe { copy::copy(self.at(from, len), to.at(offset, len), len) };
    }

    /// The address of `len` bytes at `at`, all of them in one run.
    #[inline]
    fn at(&self, at: FrameAddr, len: usize) -> *mut u8 {
        if !self.contain_bytes(at, len as u64) {
            outside(at, len);
        }
        address(at)
    }

    /// The address of the word at `at`.
    #[inline]
    fn word(&self, at: FrameAddr) -> *mut u32 {
        // One that is aligned ends in the frame that it begins in.
        if !at.paddr().is_multiple_of(4) || !self.contain_bytes(at, 1) {
            outside(at, size_of::<u32>());
        }
        address(at).cast()
    }
}

#[inline]
fn contains(start: u64, len_bytes: u64, at: FrameAddr, len: u64) -> bool {
    let before = at.paddr().wrapping_sub(start);
    before < len_bytes && len <= len_bytes - before
}

/// The address of a byte of the frames.
fn address(at: FrameAddr) -> *mut u8 {
    ptr::with_exposed_provenance_mut(usize::try_from(at.paddr()).unwrap_or(0))
}

/// A caller's bug. Not inlined, for what it says takes more instructions than what is checked.
#[cold]
#[inline(never)]
fn outside(at: FrameAddr, len: usize) -> ! {
    panic!("{len} bytes at byte {} of frame {} are not the pool's", at.offset(), at.gfn())
}

impl FrameMemory for Frames {
    fn read(&self, at: FrameAddr, into: &mut [u8]) {
        // SAFETY: `at` has checked the source; the frames hold no Rust object, so `into` is
        // elsewhere.
        unsafe { copy::words(self.at(at, into.len()), into.as_mut_ptr(), into.len()) };
    }

    fn write(&mut self, at: FrameAddr, from: &[u8]) {
        // SAFETY: `at` has checked the destination; the frames hold no Rust object, so `from` is
        // elsewhere.
        unsafe { copy::words(from.as_ptr(), self.at(at, from.len()), from.len()) };
    }

    fn zero(&mut self, at: FrameAddr, len_bytes: usize) {
        // SAFETY: `at` has checked the range.
        unsafe { copy::zero(self.at(at, len_bytes), len_bytes) };
    }

    fn copy(&mut self, from: FrameAddr, to: FrameAddr, len_bytes: usize) {
        let (from, to) = (self.at(from, len_bytes), self.at(to, len_bytes));
        // SAFETY: `at` has checked both ranges. Whether they overlap decides what is copied, not
        // where.
        unsafe { copy::copy(from, to, len_bytes) };
    }

    #[inline]
    fn load_u32(&self, at: FrameAddr) -> u32 {
        let word = self.word(at);
        // SAFETY: `word` has checked place and alignment.
        unsafe { word.read() }
    }

    #[inline]
    fn store_u32(&mut self, at: FrameAddr, value: u32) {
        let word = self.word(at);
        // SAFETY: `word` has checked place and alignment. Volatile: one store.
        unsafe { word.write_volatile(value) };
    }

    #[inline]
    fn replace_u32(&mut self, at: FrameAddr, value: u32) -> u32 {
        let word = self.word(at);
        // SAFETY: as in `load_u32` and `store_u32`.
        unsafe {
            let old = word.read();
            word.write_volatile(value);
            old
        }
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use super::Frames;
    use store::{FrameAddr, FrameMemory};
    use xen_abi::{Gfn, PAGE_SIZE};

    #[repr(C, align(4096))]
    struct Pages([u8; 3 * PAGE_SIZE]);

    /// Two runs: one frame, and the frame after the next.
    fn frames() -> (Frames, Gfn) {
        let pages = Box::leak(Box::new(Pages([0; 3 * PAGE_SIZE])));
        let first = Gfn(((&raw mut pages.0).expose_provenance() / PAGE_SIZE) as u64);
        let runs = Box::leak(Box::new([(first, 1), (Gfn(first.0 + 2), 1)]));
        // SAFETY: leaked, and reached through the handle alone.
        (unsafe { Frames::new(runs) }, first)
    }

    fn addr(gfn: Gfn, offset: u16) -> FrameAddr {
        FrameAddr::new(gfn, offset)
    }

    #[test]
    fn bytes_come_back_from_where_they_went() {
        let (mut frames, first) = frames();
        frames.write(addr(first, 4000), &[7; 96]);
        frames.copy(addr(first, 3990), addr(Gfn(first.0 + 2), 1), 106);
        let mut back = [1; 108];
        frames.read(addr(Gfn(first.0 + 2), 0), &mut back);
        assert_eq!(back[..11], [0; 11]);
        assert_eq!(back[11..107], [7; 96]);
        assert_eq!(back[107], 0);
        frames.zero(addr(first, 4001), 94);
        frames.read(addr(first, 3988), &mut back);
        assert_eq!(back[12..14], [7, 0]);
        assert_eq!(back[106..], [0, 7]);
        frames.store_u32(addr(first, 4092), 0x0101_0102);
        assert_eq!(frames.load_u32(addr(first, 4092)), 0x0101_0102);
        assert_eq!(frames.replace_u32(addr(first, 4092), 3), 0x0101_0102);
        assert_eq!(frames.load_u32(addr(first, 4092)), 3);
    }

    #[test]
    fn only_frames_of_a_run_are_contained() {
        let (frames, first) = frames();
        let contained = (0..4).map(|index| frames.contain(Gfn(first.0 + index), 1));
        assert!(contained.eq([true, false, true, false]));
        assert!(!frames.contain(Gfn(first.0 - 1), 1));
        assert!(!frames.contain(first, 2));
    }

    #[test]
    #[should_panic(expected = "are not the pool's")]
    fn a_range_that_leaves_its_run_is_a_bug() {
        let (frames, first) = frames();
        frames.read(addr(first, 4095), &mut [0; 2]);
    }

    #[test]
    #[should_panic(expected = "are not the pool's")]
    fn a_frame_that_is_not_ours_is_a_bug() {
        let (frames, first) = frames();
        frames.read(addr(Gfn(first.0 + 1), 0), &mut [0; 1]);
    }

    #[test]
    #[should_panic(expected = "4 bytes at byte 2 of")]
    fn an_unaligned_word_is_a_bug() {
        let (frames, first) = frames();
        frames.load_u32(addr(first, 2));
    }
}
