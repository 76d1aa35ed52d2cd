//! Event channel operations (`event_channel.h`).

use core::mem::{offset_of, size_of};

use xen_abi::{DomId, EvtchnPort};

/// Argument of `EVTCHNOP_bind_interdomain`.
#[doc(alias = "evtchn_bind_interdomain")]
#[repr(C)]
pub(crate) struct BindInterdomain {
    pub(crate) remote_dom: DomId,
    pub(crate) remote_port: EvtchnPort,
    /// Xen's answer.
    pub(crate) local_port: EvtchnPort,
}

const _: () = assert!(size_of::<BindInterdomain>() == 12);
const _: () = assert!(offset_of!(BindInterdomain, remote_port) == 4);

/// Argument of `EVTCHNOP_bind_pirq`.
#[doc(alias = "evtchn_bind_pirq")]
#[repr(C)]
pub(crate) struct BindPirq {
    pub(crate) pirq: u32,
    /// `BIND_PIRQ__*`.
    pub(crate) flags: u32,
    /// Xen's answer.
    pub(crate) port: EvtchnPort,
}

const _: () = assert!(size_of::<BindPirq>() == 12);
const _: () = assert!(offset_of!(BindPirq, port) == 8);

/// Argument of `EVTCHNOP_alloc_unbound`.
#[doc(alias = "evtchn_alloc_unbound")]
#[repr(C)]
pub(crate) struct AllocUnbound {
    /// Whose port.
    pub(crate) dom: DomId,
    /// Who may bind to it.
    pub(crate) remote_dom: DomId,
    /// Xen's answer.
    pub(crate) port: EvtchnPort,
}

const _: () = assert!(size_of::<AllocUnbound>() == 8);

/// Argument of `EVTCHNOP_close`.
#[doc(alias = "evtchn_close")]
#[repr(C)]
pub(crate) struct Close {
    pub(crate) port: EvtchnPort,
}

/// Argument of `EVTCHNOP_send`.
#[doc(alias = "evtchn_send")]
#[repr(C)]
pub(crate) struct Send {
    pub(crate) port: EvtchnPort,
}

const _: () = assert!(size_of::<Close>() == 4 && size_of::<Send>() == 4);
