//! A heap that is full, for the crates that forbid unsafe code: they cannot bring an allocator.

#![allow(clippy::unwrap_used, reason = "a test may")]
#[path = "../../crates/store/tests/frames/mod.rs"]
mod frames;
#[path = "../../crates/blkback/tests/mapped/mod.rs"]
mod mapped;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use blkif::Operation;
use frames::{pool, read, write};
use mapped::{Lab, REFUSED_ALIGN};
use store::{BlockSize, PageDisk, StoreError};
use xen_abi::{GrantRef, PAGE_SIZE};

thread_local! {
    /// Allocations of this thread that were made, and that were refused.
    static NR_GIVEN: Cell<usize> = const { Cell::new(0) };
    static NR_REFUSED: Cell<usize> = const { Cell::new(0) };
    static FULL: Cell<bool> = const { Cell::new(false) };
}

/// The system's heap, which has nothing left where a test says so.
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: it hands on what the system's allocator gives, or nothing, which is allowed at any time.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if FULL.get() || REFUSED_ALIGN.get() == Some(layout.align()) {
            NR_REFUSED.set(NR_REFUSED.get() + 1);
            return std::ptr::null_mut();
        }
        NR_GIVEN.set(NR_GIVEN.get() + 1);
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: all memory is the system's; the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[test]
fn a_disk_takes_heap_for_its_first_write_and_then_none() {
    let mut pool = pool(66);
    let before = NR_GIVEN.get();
    let mut disk = PageDisk::new(800, BlockSize::B512, 20, &pool).unwrap();
    assert_eq!(NR_GIVEN.get(), before);

    let (free, data) = (pool.nr_free(), [7; PAGE_SIZE]);
    FULL.set(true);
    let refused = write(&mut disk, &mut pool, 0, &data);
    FULL.set(false);
    assert_eq!((refused, pool.nr_free()), (Err(StoreError::NoHeap), free));

    write(&mut disk, &mut pool, 0, &data).unwrap();
    let warm = NR_GIVEN.get();
    write(&mut disk, &mut pool, 8, &data).unwrap();
    // The list of extents that the test itself keeps.
    assert_eq!(NR_GIVEN.get() - warm, 1);
    assert_eq!(read(&mut disk, &mut pool, 8, 8), data);
}

#[test]
fn pages_that_there_is_no_memory_to_remember_are_copied() {
    // The list of those that are missing, and that of those that are mapped.
    for align in [align_of::<GrantRef>(), align_of::<u64>()] {
        let mut lab = Lab::new(8);
        let pages = lab.pages(&[1, 2, 3, 4, 5, 6]);
        lab.refused_align = Some(align);
        NR_REFUSED.set(0);
        // A read: a disk's first write needs memory itself.
        lab.serve(Operation::Read, &pages);
        assert!(NR_REFUSED.get() > 0, "nothing of alignment {align} was asked for");
        assert_eq!(lab.nr_mapped(), (0, 0));
        lab.refused_align = None;
        lab.check_disk(&pages);
        assert_eq!(lab.nr_mapped(), (6, 6));
    }
}
