//! How the domain's memory is divided.

use alloc::vec::Vec;
use core::ptr;

use store::{FrameAddr, ImageFile};
use xen_abi::{Gfn, PAGE_SHIFT, PAGE_SIZE};
use xen_pvh_boot::{FreeFrames, MemoryKind, Module, StartInfo, TooFragmented};

use crate::frames::Frames;
use crate::heap;

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// Left alone at the bottom of memory, where a PC keeps tables and a null pointer leads.
const LOW_BYTES: u64 = 64 << 10;

/// The heap's share of memory, and what it is at least and at most, in frames.
const HEAP_SHARE: u64 = 32;
const MIN_HEAP_FRAMES: u64 = (128 << 10) >> PAGE_SHIFT;
const MAX_HEAP_FRAMES: u64 = (16 << 20) >> PAGE_SHIFT;

/// How many frames the window for shared pages has at most.
const MAX_WINDOW_FRAMES: u64 = (4 << 30) >> PAGE_SHIFT;

/// The window begins above what the first 4 GiB hold besides RAM: special pages, ACPI, devices.
const MIN_WINDOW: u64 = 4 << 30;
/// It begins on a page table's bounds.
const WINDOW_ALIGN: u64 = 2 << 20;

/// The domain's memory, divided.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Runs of frames for the page pool: first frame and number.
    pub(crate) free_frames: FreeFrames,
    /// The same with the boot modules' frames.
    pub(crate) all_frames: &'static [(Gfn, u64)],
    /// The boot modules.
    pub(crate) modules: Vec<ImageFile>,
    /// Frames without memory of their own, for shared pages: first frame and number.
    pub(crate) window: (Gfn, u64),
    /// Size of the heap in bytes.
    pub(crate) heap_bytes: u64,
    /// All RAM in bytes.
    pub(crate) ram_bytes: u64,
}

/// Why there is no dividing it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error(transparent)]
    TooFragmented(#[from] TooFragmented),
    #[error("no {bytes} bytes of memory side by side for the heap")]
    NoRoomForHeap { bytes: u64 },
    #[error("memory goes up to {ram_end:#x}, what is mapped ends at {mapped_end:#x}")]
    NoRoomForWindow { ram_end: u64, mapped_end: u64 },
}

unsafe extern "C" {
    // The linker's symbols around the image.
    static image_start: u8;
    static image_end: u8;
}

/// Divides what the memory map has below `mapped_end`, and gives the heap its part. `special` are
/// frames that are shared with other domains.
///
/// # Safety
/// Called once; from then on nothing else uses memory that is neither the image nor a module nor
/// `special`. All below `mapped_end` is identity-mapped.
pub(crate) unsafe fn divide(
    start_info: &StartInfo,
    mapped_end: u64,
    special: [Gfn; 2],
) -> Result<Memory, MemoryError> {
    let map = start_info.memory_map();
    let mut free = FreeFrames::new(map, mapped_end)?;
    let ram_bytes = free.nr_frames() << PAGE_SHIFT;
    free.reserve(0, LOW_BYTES)?;
    let image = (&raw const image_start).addr() as u64..(&raw const image_end).addr() as u64;
    free.reserve(image.start, image.end - image.start)?;
    for module in start_info.modules() {
        free.reserve(module.paddr, module.size_bytes)?;
    }
    for gfn in special {
        free.reserve(gfn.0 << PAGE_SHIFT, 1)?;
    }

    let heap_frames = (free.nr_frames() / HEAP_SHARE).clamp(MIN_HEAP_FRAMES, MAX_HEAP_FRAMES);
    let heap_bytes = heap_frames << PAGE_SHIFT;
    let no_room = MemoryError::NoRoomForHeap { bytes: heap_bytes };
    let heap_start = free.take(heap_frames).ok_or(no_room)?;
    let (start, size) = (heap_start.0 << PAGE_SHIFT, heap_bytes);
    let (Ok(start), Ok(size)) = (usize::try_from(start), usize::try_from(size)) else {
        return Err(no_room);
    };
    // SAFETY: free RAM, just taken for this, mapped since it is below `mapped_end`.
    unsafe { heap::init(ptr::with_exposed_provenance_mut(start), size) };

    let ram_end = map
        .iter()
        .filter(|range| range.kind == MemoryKind::RAM)
        .map(|range| range.paddr + range.size_bytes)
        .fold(MIN_WINDOW, u64::max);
    let window_start = ram_end
        .checked_next_multiple_of(WINDOW_ALIGN)
        .filter(|&start| start < mapped_end)
        .ok_or(MemoryError::NoRoomForWindow { ram_end, mapped_end })?;
    let window_frames = ((mapped_end - window_start) >> PAGE_SHIFT).min(MAX_WINDOW_FRAMES);

    let modules: Vec<ImageFile> =
        start_info.modules().iter().map(|module| file(module, mapped_end)).collect();
    let mut all_frames = Vec::from(free.as_slice());
    // Where frames are looked up first.
    if let Some(largest) = (0..all_frames.len()).max_by_key(|&run| all_frames[run].1) {
        all_frames.swap(0, largest);
    }
    all_frames.extend(modules.iter().map(|file| {
        let len_bytes = u64::from(file.at.offset()) + file.len_bytes;
        (file.at.gfn(), len_bytes.div_ceil(PAGE_BYTES))
    }));
    let all_frames = all_frames.leak();
    Ok(Memory {
        free_frames: free,
        all_frames,
        modules,
        window: (Gfn(window_start >> PAGE_SHIFT), window_frames),
        heap_bytes,
        ram_bytes,
    })
}

/// Where a boot module lies. One that is out of reach is as good as empty.
fn file(module: &Module, mapped_end: u64) -> ImageFile {
    let in_reach = module.paddr + module.size_bytes <= mapped_end;
    ImageFile {
        at: FrameAddr::at(module.paddr),
        len_bytes: if in_reach { module.size_bytes } else { 0 },
    }
}

impl Memory {
    /// A handle to the pool's and the modules' frames.
    pub(crate) fn frames(&self) -> Frames {
        // SAFETY: RAM that `divide` gave to nothing else and that lies below `mapped_end`.
        unsafe { Frames::new(self.all_frames) }
    }
}
