//! The heap: what the protocol needs, never a disk's data.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

use linked_list_allocator::Heap;
use spin::Mutex;

#[global_allocator]
static HEAP: CountingHeap =
    CountingHeap(Mutex::new(Counted { heap: Heap::empty(), peak_bytes: 0 }));

struct CountingHeap(Mutex<Counted>);

struct Counted {
    heap: Heap,
    peak_bytes: usize,
}

/// Gives the heap its memory.
///
/// # Safety
/// Called once, with memory that is mapped and used for nothing else.
pub(crate) unsafe fn init(start: *mut u8, size_bytes: usize) {
    // SAFETY: the caller's contract.
    unsafe { HEAP.0.lock().heap.init(start, size_bytes) };
}

/// The largest number of bytes that were in use at a time.
pub(crate) fn peak_bytes() -> usize {
    HEAP.0.lock().peak_bytes
}

// SAFETY: memory comes from the allocator under it and goes back to it, both under the lock. No
// interrupt handler allocates, so the lock is never found taken.
unsafe impl GlobalAlloc for CountingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut counted = self.0.lock();
        let memory = counted.heap.allocate_first_fit(layout);
        counted.peak_bytes = counted.peak_bytes.max(counted.heap.used());
        memory.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if let Some(memory) = NonNull::new(memory) {
            // SAFETY: the caller has it from `alloc`, with this layout.
            unsafe { self.0.lock().heap.deallocate(memory, layout) };
        }
    }
}
