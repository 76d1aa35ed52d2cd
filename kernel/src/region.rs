//! Memory that somebody else may write at any moment.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};

use xen_abi::{Gfn, PAGE_SHIFT, PAGE_SIZE, SharedMemory};

const WORD: usize = size_of::<u64>();

/// Pages shared with a peer. Reached by volatile copies and atomics only; each byte is fetched or
/// stored once.
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

    /// Ends its use: the first page and their number.
    pub(crate) fn into_pages(self) -> (Gfn, usize) {
        let first = Gfn((self.base.as_ptr().addr() >> PAGE_SHIFT) as u64);
        (first, self.len_bytes >> PAGE_SHIFT)
    }

    /// The address of `len` bytes at `offset`, all of them in the region.
    pub(crate) fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len_bytes);
        assert!(inside, "{len} bytes at {offset} of a region of {}", self.len_bytes);
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
        let source = self.at(offset, into.len());
        let (head, words) = split(source, into.len());
        let (first, rest) = into.split_at_mut(head);
        let (middle, last) = rest.split_at_mut(words * WORD);
        // SAFETY: `at` has checked the whole range; the words are aligned by `split`.
        unsafe {
            read_bytes(source, first);
            let source = source.add(head);
            for (index, word) in middle.chunks_exact_mut(WORD).enumerate() {
                let value = source.cast::<u64>().add(index).read_volatile();
                word.copy_from_slice(&value.to_ne_bytes());
            }
            read_bytes(source.add(words * WORD), last);
        }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        let dest = self.at(offset, from.len());
        let (head, words) = split(dest, from.len());
        let (first, rest) = from.split_at(head);
        let (middle, last) = rest.split_at(words * WORD);
        // SAFETY: `at` has checked the whole range; the words are aligned by `split`.
        unsafe {
            write_bytes(dest, first);
            let dest = dest.add(head);
            for (index, word) in middle.chunks_exact(WORD).enumerate() {
                let mut value = [0; WORD];
                value.copy_from_slice(word);
                dest.cast::<u64>().add(index).write_volatile(u64::from_ne_bytes(value));
            }
            write_bytes(dest.add(words * WORD), last);
        }
    }
}

/// How many bytes come before the first aligned word, and how many words follow.
fn split(start: *const u8, len: usize) -> (usize, usize) {
    let head = start.addr().wrapping_neg() % WORD;
    if head >= len { (len, 0) } else { (head, (len - head) / WORD) }
}

/// # Safety
/// `into.len()` bytes at `source` are mapped.
unsafe fn read_bytes(source: *const u8, into: &mut [u8]) {
    for (index, byte) in into.iter_mut().enumerate() {
        // SAFETY: the caller's contract.
        *byte = unsafe { source.add(index).read_volatile() };
    }
}

/// # Safety
/// `from.len()` bytes at `dest` are mapped.
unsafe fn write_bytes(dest: *mut u8, from: &[u8]) {
    for (index, byte) in from.iter().enumerate() {
        // SAFETY: the caller's contract.
        unsafe { dest.add(index).write_volatile(*byte) };
    }
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
