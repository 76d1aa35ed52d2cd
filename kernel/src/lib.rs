//! What Granary's images are made of: the driver domain on Xen's own hypercalls.
//!
//! There are two images, for two kinds of domain; [`pvh`] and [`hvm`] are where they begin.
//!
//! Everything here is either a thin, typed way to Xen (`hypercall`, `abi`), or makes of it what the
//! driver domain stands on ([`domain::Platform`], in `platform`). What is pure (`ports`, `window`,
//! `console_ring`, …) is tested on the host by `cargo test -p granary`; the rest is only built for
//! the bare target.

#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

// Pure, or sound on any memory.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod configuration;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod console_ring;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod copy;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod frames;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod grant_entries;
#[cfg_attr(not(target_os = "none"), allow(dead_code, unused_imports))]
mod pci;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod ports;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod region;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod scattered;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod time;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod window;

#[cfg(target_os = "none")]
mod abi;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod end;
#[cfg(target_os = "none")]
mod events;
#[cfg(target_os = "none")]
mod grants;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
mod hvm;
#[cfg(target_os = "none")]
mod hypercall;
#[cfg(target_os = "none")]
mod hypervisor;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod own_grants;
#[cfg(target_os = "none")]
mod platform;
#[cfg(target_os = "none")]
mod selftest;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod traps;

/// Where the image for PVH domains begins.
#[cfg(target_os = "none")]
pub fn pvh(boot: xen_pvh_boot::Boot) -> ! {
    start::main::<machine::Pvh>(boot)
}

/// Where the image for HVM domains begins.
#[cfg(target_os = "none")]
pub fn hvm(boot: xen_pvh_boot::Boot) -> ! {
    start::main::<hvm::Hvm>(boot)
}
