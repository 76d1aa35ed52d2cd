//! Serves rings of requests for callgrind to count: `scripts/bench-host`.
//!
//! It is built for the bare target with the image's profile, out of the image's own memory
//! accessors, so that what runs is the code of the image; that the result is a program of Linux's
//! takes two system calls. Xen is played by [`guest::Guest`], whose hypercalls are functions of
//! their own, so that they can be left out of the count.

#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

#[cfg(target_os = "none")]
#[path = "../../src/copy.rs"]
#[allow(dead_code)]
mod copy;
#[cfg(target_os = "none")]
#[path = "../../src/frames.rs"]
#[allow(dead_code)]
mod frames;
#[cfg(target_os = "none")]
#[path = "../../src/heap.rs"]
#[allow(dead_code)]
mod heap;
#[cfg(target_os = "none")]
#[path = "../../src/region.rs"]
#[allow(dead_code)]
mod region;

#[cfg(target_os = "none")]
mod cases;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod lab;
#[cfg(target_os = "none")]
mod linux;

/// On the host there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}
