//! PCI devices, as their configuration space tells of them (PCI Local Bus Specification 3.0). Pure:
//! the way to that space is a seam.

mod bar;
mod config;
#[cfg(test)]
mod fake;
mod msix;

pub(crate) use bar::{Bar, NoRoom, Placed, Placement};
pub(crate) use config::{Bdf, Class, ConfigSpace, Function, functions};
pub(crate) use msix::{Message, Msix};
