//! A hypervisor in a process, for tests of the very domain that runs on Xen.
//!
//! [`Machine`] is the host: grant tables, event channels, a clock and xenstored, each with Xen's
//! own checks and answers, and with failures on demand. [`SimPlatform`] is the driver domain's view
//! of it and implements the same seams as the kernel. The toolstack ([`toolstack`]) and the
//! frontends do what libxl and guests do. All choices follow from one seed.

#![forbid(unsafe_code)]

mod events;
mod faults;
pub mod frontend;
mod grants;
mod hostile;
mod iommu;
mod lab;
mod machine;
mod memory;
mod own_disk;
mod own_grants;
mod platform;
mod rng;
mod seeds;
pub mod toolstack;
pub mod xenstored;
mod xs;

pub use events::{EventChannels, Storm};
pub use faults::Fault;
pub use frontend::{Expect, Frontend, FrontendConfig, GrantUse, Load, Model, Opening};
pub use grants::{GrantAccess, GrantTables, StillInUse};
pub use hostile::Hostile;
pub use iommu::Iommu;
pub use lab::{Lab, LabBuilder, OperationId};
pub use machine::{Counters, Machine};
pub use memory::{Access, OwnFrames, Page, Region, STALE_BYTE};
pub use own_disk::{Gone, OwnBuffer, OwnDevice, OwnDisk, OwnPages, Pace};
pub use own_grants::OwnGrants;
pub use platform::{SimMapping, SimPlatform};
pub use rng::Rng;
pub use seeds::seeds;
pub use xenstored::Xenstored;
pub use xs::Xs;
