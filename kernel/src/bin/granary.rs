//! The image for a PVH domain: no firmware, no device, nothing but Xen.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
xen_pvh_boot::entry!(kernel::pvh);

/// On the host there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}
