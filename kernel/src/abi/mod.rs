//! The part of Xen's ABI that only the kernel speaks.

mod event;
mod grant;
mod hvm;
mod multicall;
mod physdev;
mod sched;
mod shared_info;

pub(crate) use event::{AllocUnbound, BindInterdomain, BindPirq, Close, Send};
pub(crate) use grant::QuerySize;
pub(crate) use hvm::{AddToPhysmap, HvmParam, HvmParamOp};
pub(crate) use multicall::MulticallEntry;
pub(crate) use physdev::GetFreePirq;
pub(crate) use sched::{Poll, Shutdown, ShutdownCode};
pub(crate) use shared_info::{SharedInfo, VcpuTimeInfo};
