//! Boots a bare Rust image by PVH, Xen's direct boot protocol (`docs/misc/pvh.pandoc`).
//!
//! For the bare target the crate holds the ELF note that Xen looks for, the way from 32-bit
//! protected mode to long mode, the stack and the page tables; [`entry!`] names the function that
//! goes on from there. Readers for what the loader left in memory are pure and run anywhere:
//! [`StartInfo`] is the loader's record, [`FreeFrames`] what its memory map leaves to us.
//!
//! The image's linker script must `KEEP` the section `.note.xen`, have a `PT_NOTE` header for it,
//! name `xen_pvh_entry` as its `ENTRY`, and link below 1 GiB.

#![no_std]

#[cfg(target_os = "none")]
mod entry;
mod frames;
mod memory;
mod start_info;

pub use frames::{FreeFrames, TooFragmented};
pub use memory::{IdentityMap, PhysicalMemory, Unreadable};
pub use start_info::{MemoryKind, MemoryRange, Module, StartInfo, StartInfoError};

/// What the entry code hands to the function that [`entry!`] names.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    /// Where the loader left its `hvm_start_info`: a guest physical address.
    pub start_info_paddr: u64,
    /// Guest physical memory as the entry code mapped it.
    pub memory: IdentityMap,
}

/// Names the function that the image goes on with, in long mode on its own stack, with interrupts
/// off: a `fn(Boot) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// Called once, by the entry code.
        #[unsafe(no_mangle)]
        extern "C" fn xen_pvh_main(start_info_paddr: u64, mapped_bytes: u64) -> ! {
            let main: fn($crate::Boot) -> ! = $main;
            // SAFETY: the entry code calls with the end of what it mapped, addresses unchanged.
            let memory = unsafe { $crate::IdentityMap::new(mapped_bytes) };
            main($crate::Boot { start_info_paddr, memory })
        }
    };
}
