//! Grant operations (`grant_table.h`).

use core::fmt;
use core::mem::{offset_of, size_of};

use crate::{DomId, Gfn, GrantHandle, GrantRef};

/// The outcome of one grant operation (`enum grant_status`, `grant_table.h`): 0, or a negative
/// code.
#[doc(alias = "grant_status")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct GntStatus(pub i16);

impl GntStatus {
    /// Done.
    pub const OKAY: Self = Self(0);
    /// Undefined error.
    pub const GENERAL_ERROR: Self = Self(-1);
    /// No such domain.
    pub const BAD_DOMAIN: Self = Self(-2);
    /// No such grant, or none that allows this.
    pub const BAD_GNTREF: Self = Self(-3);
    /// No such mapping.
    pub const BAD_HANDLE: Self = Self(-4);
    /// The grant does not allow this access.
    pub const PERMISSION_DENIED: Self = Self(-8);
    /// The frame cannot take part.
    pub const BAD_PAGE: Self = Self(-9);
    /// A copy would cross a page boundary.
    pub const BAD_COPY_ARG: Self = Self(-10);
    /// Not done; the same call may succeed later.
    pub const EAGAIN: Self = Self(-12);
    /// Out of handles or of page tables.
    pub const NO_SPACE: Self = Self(-13);

    /// Whether the operation was done.
    #[must_use]
    pub const fn is_okay(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for GntStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::OKAY => "okay",
            Self::GENERAL_ERROR => "general error",
            Self::BAD_DOMAIN => "no such domain",
            Self::BAD_GNTREF => "no such grant",
            Self::BAD_HANDLE => "no such handle",
            Self::PERMISSION_DENIED => "permission denied",
            Self::BAD_PAGE => "bad page",
            Self::BAD_COPY_ARG => "copy crosses a page",
            Self::EAGAIN => "try again",
            Self::NO_SPACE => "out of space",
            Self(code) => return write!(f, "GNTST {code}"),
        };
        f.write_str(name)
    }
}

impl fmt::Debug for GntStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GntStatus({self})")
    }
}

bitflags::bitflags! {
    /// Which ends of a [`GnttabCopy`] are grants (`GNTCOPY_*`, `grant_table.h`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[repr(transparent)]
    pub struct CopyFlags: u16 {
        /// The source is a grant reference.
        const SOURCE_GREF = 1 << 0;
        /// The destination is a grant reference.
        const DEST_GREF = 1 << 1;
    }
}

bitflags::bitflags! {
    /// How a grant is mapped (`GNTMAP_*`, `grant_table.h`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[repr(transparent)]
    pub struct MapFlags: u32 {
        /// For access by the CPU.
        const HOST_MAP = 1 << 1;
        /// For reading only.
        const READONLY = 1 << 2;
    }
}

/// One end of a [`GnttabCopy`] (`struct gnttab_copy_ptr`, `grant_table.h`).
#[doc(alias = "gnttab_copy_ptr")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CopyPtr {
    /// A union in the header: a grant reference in its low half, or a frame number.
    u: u64,
    /// Whose grant or frame it is.
    pub domid: DomId,
    /// First byte within the page, 0 to 4095.
    pub offset: u16,
    pad: u32,
}

const _: () = assert!(size_of::<CopyPtr>() == 16);
const _: () = assert!(offset_of!(CopyPtr, domid) == 8);
const _: () = assert!(offset_of!(CopyPtr, offset) == 10);

impl CopyPtr {
    /// A place within a page that `domid` granted us.
    #[must_use]
    pub const fn grant(domid: DomId, gref: GrantRef, offset: u16) -> Self {
        Self { u: gref.0 as u64, domid, offset, pad: 0 }
    }

    /// A place within a frame of our own.
    #[must_use]
    pub const fn frame(gfn: Gfn, offset: u16) -> Self {
        Self { u: gfn.0, domid: DomId::SELF, offset, pad: 0 }
    }

    /// The grant reference, where the copy's flags say that this end is one.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the union's low half is the reference")]
    pub const fn gref(&self) -> GrantRef {
        GrantRef(self.u as u32)
    }

    /// The frame number, where the copy's flags say that this end is no grant.
    #[must_use]
    pub const fn gfn(&self) -> Gfn {
        Gfn(self.u)
    }
}

/// A copy of up to a page between a grant and a frame of ours (`struct gnttab_copy`,
/// `grant_table.h`). Neither end may cross a page boundary.
#[doc(alias = "gnttab_copy")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct GnttabCopy {
    /// Where the bytes come from.
    pub source: CopyPtr,
    /// Where the bytes go.
    pub dest: CopyPtr,
    /// How many bytes, 0 to 4096.
    pub len_bytes: u16,
    /// Which ends are grants.
    pub flags: CopyFlags,
    /// Xen's answer.
    pub status: GntStatus,
    pad: u16,
}

const _: () = assert!(size_of::<GnttabCopy>() == 40);
const _: () = assert!(offset_of!(GnttabCopy, dest) == 16);
const _: () = assert!(offset_of!(GnttabCopy, len_bytes) == 32);
const _: () = assert!(offset_of!(GnttabCopy, status) == 36);

impl GnttabCopy {
    /// A copy out of a page that a peer granted us, into a frame of ours.
    #[must_use]
    pub const fn from_grant(source: CopyPtr, dest: CopyPtr, len_bytes: u16) -> Self {
        Self::new(source, dest, len_bytes, CopyFlags::SOURCE_GREF)
    }

    /// A copy out of a frame of ours, into a page that a peer granted us.
    #[must_use]
    pub const fn to_grant(source: CopyPtr, dest: CopyPtr, len_bytes: u16) -> Self {
        Self::new(source, dest, len_bytes, CopyFlags::DEST_GREF)
    }

    // An operation that the hypervisor never reached must not read as done.
    const fn new(source: CopyPtr, dest: CopyPtr, len_bytes: u16, flags: CopyFlags) -> Self {
        Self { source, dest, len_bytes, flags, status: GntStatus::GENERAL_ERROR, pad: 0 }
    }
}

/// Maps one grant at a frame of ours (`struct gnttab_map_grant_ref`, `grant_table.h`).
#[doc(alias = "gnttab_map_grant_ref")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct GnttabMapGrantRef {
    /// Guest physical address to map at; page-aligned.
    pub host_addr: u64,
    /// How to map it.
    pub flags: MapFlags,
    /// Which grant.
    pub gref: GrantRef,
    /// Whose grant.
    pub domid: DomId,
    /// Xen's answer.
    pub status: GntStatus,
    /// What unmaps it again; valid where `status` is okay.
    pub handle: GrantHandle,
    /// Address for devices; only with `GNTMAP_device_map`, which is not used.
    pub dev_bus_addr: u64,
}

const _: () = assert!(size_of::<GnttabMapGrantRef>() == 32);
const _: () = assert!(offset_of!(GnttabMapGrantRef, domid) == 16);
const _: () = assert!(offset_of!(GnttabMapGrantRef, status) == 18);
const _: () = assert!(offset_of!(GnttabMapGrantRef, handle) == 20);

/// Undoes one mapping (`struct gnttab_unmap_grant_ref`, `grant_table.h`).
#[doc(alias = "gnttab_unmap_grant_ref")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct GnttabUnmapGrantRef {
    /// Guest physical address it was mapped at.
    pub host_addr: u64,
    /// Address for devices; 0.
    pub dev_bus_addr: u64,
    /// What the map call answered.
    pub handle: GrantHandle,
    /// Xen's answer.
    pub status: GntStatus,
    /// Padding of the header's struct.
    pub pad: u16,
}

const _: () = assert!(size_of::<GnttabUnmapGrantRef>() == 24);
const _: () = assert!(offset_of!(GnttabUnmapGrantRef, handle) == 16);
const _: () = assert!(offset_of!(GnttabUnmapGrantRef, status) == 20);
