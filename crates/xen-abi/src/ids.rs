//! The numbers Xen hands out, one type each, so that none is taken for another.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

id! {
    /// A domain's number (`domid_t`, `xen.h`). 0 is dom0; numbers are not used twice in a host's
    /// uptime until they wrap.
    #[doc(alias = "domid_t")]
    DomId(u16)
}

impl DomId {
    /// The calling domain itself (`DOMID_SELF`, `xen.h`).
    pub const SELF: Self = Self(0x7ff0);

    /// The first number that names no ordinary domain (`DOMID_FIRST_RESERVED`, `xen.h`).
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
}

id! {
    /// An entry of a peer's grant table (`grant_ref_t`, `grant_table.h`).
    #[doc(alias = "grant_ref_t")]
    GrantRef(u32)
}

id! {
    /// What Xen calls a grant that we have mapped (`grant_handle_t`, `grant_table.h`).
    #[doc(alias = "grant_handle_t")]
    GrantHandle(u32)
}

id! {
    /// A guest frame number of our own address space, in units of [`PAGE_SIZE`](crate::PAGE_SIZE).
    #[doc(alias = "xen_pfn_t")]
    Gfn(u64)
}

impl Gfn {
    /// The frame `count` after this one; `None` past the end of the number space.
    #[must_use]
    pub fn checked_add(self, count: u64) -> Option<Self> {
        self.0.checked_add(count).map(Self)
    }
}

id! {
    /// An event channel's port in the domain that names it (`evtchn_port_t`, `event_channel.h`).
    #[doc(alias = "evtchn_port_t")]
    EvtchnPort(u32)
}
