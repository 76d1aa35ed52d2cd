//! What a disk of pages takes of the heap: nothing until it is written, and a full heap fails the
//! write alone.

#![allow(clippy::unwrap_used, reason = "a test may")]
mod frames;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use frames::{pool, read, write};
use store::{BlockSize, PageDisk, StoreError};
use xen_abi::PAGE_SIZE;

thread_local! {
    /// Allocations of this thread, and whether there is room for more.
    static NR: Cell<usize> = const { Cell::new(0) };
    static FULL: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

// SAFETY: it is the system's, or refuses, which an allocator may.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if FULL.get() {
            return std::ptr::null_mut();
        }
        NR.set(NR.get() + 1);
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

#[test]
fn a_disk_takes_heap_for_its_first_write_and_then_none() {
    let mut pool = pool(66);
    let before = NR.get();
    let mut disk = PageDisk::new(800, BlockSize::B512, 20, &pool).unwrap();
    assert_eq!(NR.get(), before);

    let (free, data) = (pool.nr_free(), [7; PAGE_SIZE]);
    FULL.set(true);
    let refused = write(&mut disk, &mut pool, 0, &data);
    FULL.set(false);
    assert_eq!((refused, pool.nr_free()), (Err(StoreError::NoHeap), free));

    write(&mut disk, &mut pool, 0, &data).unwrap();
    let warm = NR.get();
    write(&mut disk, &mut pool, 8, &data).unwrap();
    // The list of extents that the test itself keeps.
    assert_eq!(NR.get() - warm, 1);
    assert_eq!(read(&mut disk, &mut pool, 8, 8), data);
}
