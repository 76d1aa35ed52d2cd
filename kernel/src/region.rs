//! Memory that somebody else may write at any moment.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};

use xen_abi::{Gfn, PAGE_SHIFT, PAGE_SIZE, SharedMemory};

use crate::copy;

/// Pages shared with a peer. Reached by copies in assembly and by atomics only; each byte is
/// fetched or stored once.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: a region is an address; what it does there is sound from anywhere.
unsafe impl Send for Region {}

impl Region {
    /// `nr_pages` pages from `first` on; `None` where they pass the end of addresses, or at null.
    ///
    /// # Safety
    /// As long as the region is used, the pages are mapped at their guest physical addresses, and
    /// no Rust object lies in them.
    pub(crate) unsafe fn new(first: Gfn, nr_pages: usize) -> Option<Self> {
        let base = usize::try_from(first.0).ok()?.checked_mul(PAGE_SIZE)?;
        let len_bytes = nr_pages.checked_mul(PAGE_SIZE)?;
        base.checked_add(len_bytes)?;
        let base = NonNull::new(ptr::with_exposed_provenance_mut(base))?;
        Some(Self { base, len_bytes })
    }

    /// The first page.
    pub(crate) fn first(&self) -> Gfn {
        Gfn((self.base.as_ptr().addr() >> PAGE_SHIFT) as u64)
    }

    /// Ends its use: the first page and their number.
    pub(crate) fn into_pages(self) -> (Gfn, usize) {
        (self.first(), self.len_bytes >> PAGE_SHIFT)
    }

    /// The address of `len` bytes at `offset`, all of them in the region.
    pub(crate) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len_bytes);
        if !inside {
            outside(offset, len, self.len_bytes);
        }
        self.base.as_ptr().wrapping_add(offset)
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        let at = self.at(offset, size_of::<u32>());
        assert!(offset.is_multiple_of(align_of::<u32>()), "an index at {offset}");
        // SAFETY: in the region by `at`, and aligned, since the region begins on a page.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }
}

impl SharedMemory for Region {
    fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    fn load_u32(&self, offset: usize) -> u32 {
        self.index(offset).load(Ordering::Acquire)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        self.index(offset).store(value, Ordering::Release);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        // SAFETY: `at` has checked the source, where no Rust object lies, so `into` is elsewhere.
        // The copy is made by instructions that the compiler does not see into.
        unsafe { copy::words(self.at(offset, into.len()), into.as_mut_ptr(), into.len()) };
    }

    fn write(&self, offset: usize, from: &[u8]) {
        // SAFETY: as in `read`.
        unsafe { copy::words(from.as_ptr(), self.at(offset, from.len()), from.len()) };
    }
}

/// A caller's bug. Not inlined, for what it says takes more instructions than what is checked.
#[cold]
#[inline(never)]
fn outside(offset: usize, len: usize, len_bytes: usize) -> ! {
    panic!("{len} bytes at {offset} of a region of {len_bytes}")
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::Region;
    use xen_abi::{Gfn, PAGE_SIZE, SharedMemory};

    #[repr(C, align(4096))]
    struct Pages([u8; 2 * PAGE_SIZE]);

    fn region(pages: &mut Pages) -> Region {
        let base = (&raw mut pages.0).expose_provenance();
        // SAFETY: the test's own pages, which it touches through the region alone meanwhile.
        unsafe { Region::new(Gfn((base / PAGE_SIZE) as u64), 2) }.unwrap()
    }

    #[test]
    fn every_offset_and_length_is_copied_exactly() {
        let mut pages = Pages([0; 2 * PAGE_SIZE]);
        let region = region(&mut pages);
        for offset in 4090..4100 {
            for len in 0..40 {
                region.write(0, &[0xee; 2 * PAGE_SIZE]);
                let bytes: Vec<u8> = (1..=len).collect();
                region.write(offset, &bytes);
                let mut back = [0; 2 * PAGE_SIZE];
                region.read(0, &mut back);
                let end = offset + bytes.len();
                assert_eq!(back[offset..end], bytes);
                assert!(back[..offset].iter().chain(&back[end..]).all(|&byte| byte == 0xee));
                let mut some = vec![0; bytes.len()];
                region.read(offset, &mut some);
                assert_eq!(some, bytes);
            }
        }
    }

    #[test]
    fn an_index_is_little_endian_at_its_offset() {
        let mut pages = Pages([0; 2 * PAGE_SIZE]);
        let region = region(&mut pages);
        region.store_u32(4096, 0x0403_0201);
        let mut back = [0; 6];
        region.read(4095, &mut back);
        assert_eq!(back, [0, 1, 2, 3, 4, 0]);
        assert_eq!(region.load_u32(4096), 0x0403_0201);
    }

    #[test]
    #[should_panic(expected = "2 bytes at 8191 of a region of 8192")]
    fn past_the_end_is_a_bug() {
        region(&mut Pages([0; 2 * PAGE_SIZE])).read(8191, &mut [0; 2]);
    }

    #[test]
    #[should_panic(expected = "an index at 2")]
    fn an_unaligned_index_is_a_bug() {
        region(&mut Pages([0; 2 * PAGE_SIZE])).load_u32(2);
    }
}
