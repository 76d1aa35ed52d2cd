//! Frames of ours that a peer can write.

use alloc::vec::Vec;

use xen_abi::{PAGE_SIZE, SharedMemory};

use crate::region::Region;

/// Pages one behind the other by offset, wherever each of them lies.
#[derive(Debug)]
pub(crate) struct Scattered {
    pages: Vec<Region>,
}

impl Scattered {
    /// Of pages that are regions of one page each.
    pub(crate) const fn new(pages: Vec<Region>) -> Self {
        Self { pages }
    }

    fn page(&self, offset: usize) -> (&Region, usize) {
        (&self.pages[offset / PAGE_SIZE], offset % PAGE_SIZE)
    }

    /// The parts of `len` bytes from `offset` on, a page each: the page, the offset in it, and where
    /// in the whole the part lies.
    fn parts(
        &self,
        offset: usize,
        len: usize,
    ) -> impl Iterator<Item = (&Region, usize, core::ops::Range<usize>)> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let left = len.checked_sub(done).filter(|&left| left > 0)?;
            let (page, within) = self.page(offset + done);
            let part = done..done + left.min(PAGE_SIZE - within);
            done = part.end;
            Some((page, within, part))
        })
    }
}

impl SharedMemory for Scattered {
    fn len_bytes(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    fn load_u32(&self, offset: usize) -> u32 {
        let (page, within) = self.page(offset);
        page.load_u32(within)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        let (page, within) = self.page(offset);
        page.store_u32(within, value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        for (page, within, part) in self.parts(offset, into.len()) {
            page.read(within, &mut into[part]);
        }
    }

    fn write(&self, offset: usize, from: &[u8]) {
        for (page, within, part) in self.parts(offset, from.len()) {
            page.write(within, &from[part]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use super::Scattered;
    use crate::region::Region;
    use xen_abi::{Gfn, PAGE_SIZE, SharedMemory};

    #[repr(C, align(4096))]
    struct Pages([u8; 3 * PAGE_SIZE]);

    /// The third page, then the first; and the whole.
    fn scattered() -> (Scattered, Region) {
        let pages = Box::leak(Box::new(Pages([0; 3 * PAGE_SIZE])));
        let first = ((&raw mut pages.0).expose_provenance() / PAGE_SIZE) as u64;
        // SAFETY: leaked, and reached through the regions alone.
        let region = |gfn, nr_pages| unsafe { Region::new(Gfn(gfn), nr_pages) }.unwrap();
        (Scattered::new(vec![region(first + 2, 1), region(first, 1)]), region(first, 3))
    }

    #[test]
    fn what_crosses_a_page_goes_on_in_the_next() {
        let (scattered, whole) = scattered();
        assert_eq!(scattered.len_bytes(), 2 * PAGE_SIZE);
        scattered.write(4094, &[1, 2, 3, 4]);
        let mut bytes = [0; 3 * PAGE_SIZE];
        whole.read(0, &mut bytes);
        assert_eq!(
            (bytes[..3].to_vec(), bytes[3 * PAGE_SIZE - 3..].to_vec()),
            (vec![3, 4, 0], vec![0, 1, 2])
        );
        let mut back = [0; 6];
        scattered.read(4093, &mut back);
        assert_eq!(back, [0, 1, 2, 3, 4, 0]);
        scattered.write(0, &[7; 2 * PAGE_SIZE]);
        whole.read(0, &mut bytes);
        assert!(bytes.chunks(PAGE_SIZE).map(|page| page == [7; PAGE_SIZE]).eq([true, false, true]));
    }

    #[test]
    fn an_index_is_its_pages() {
        let (scattered, whole) = scattered();
        scattered.store_u32(4096 + 8, 0x0403_0201);
        scattered.store_u32(12, 5);
        assert_eq!((whole.load_u32(8), whole.load_u32(2 * PAGE_SIZE + 12)), (0x0403_0201, 5));
        assert_eq!(scattered.load_u32(4096 + 8), 0x0403_0201);
    }

    #[test]
    #[should_panic(expected = "index out of bounds")]
    fn past_the_end_is_a_bug() {
        scattered().0.read(2 * PAGE_SIZE - 1, &mut [0; 2]);
    }
}
