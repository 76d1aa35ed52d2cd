//! The image for an HVM domain, which can have PCI devices passed through to it.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
xen_pvh_boot::entry!(kernel::hvm);

/// On the host there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}
