"""A domain's paging pool: the memory that Xen makes its page tables from, of what maps grants too."""

import errno
import fcntl
import struct
from array import array
from pathlib import Path

_PRIVCMD = Path("/dev/xen/privcmd")

# _IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall)) of Linux's xen/privcmd.h.
_IOCTL_HYPERCALL = 0x305000

# xen.h and domctl.h.
_DOMCTL, _SHADOW_OP, _SET_ALLOCATION = 36, 10, 31

# XEN_DOMCTL_INTERFACE_VERSION from Xen 4.17 on. Xen answers EACCES to all but its own.
_VERSIONS = range(0x15, 0x20)
_DOMCTL_BYTES = 256


def take_free_pages(domid: int) -> None:
    """Gives Xen back what a domain's paging pool has free, so that it gets no page table any more.

    `shadow_memory=` cannot be so small: Xen fills a pool of 1 MiB before it looks at that.
    """
    with _PRIVCMD.open("rb") as privcmd:
        for version in _VERSIONS:
            # struct xen_domctl: cmd, interface_version, domain; struct xen_domctl_shadow_op: op, mode, mb.
            domctl = array("B", struct.pack("<IIH6xIII", _SHADOW_OP, version, domid, _SET_ALLOCATION, 0, 0).ljust(_DOMCTL_BYTES, b"\0"))
            try:
                fcntl.ioctl(privcmd, _IOCTL_HYPERCALL, struct.pack("<6Q", _DOMCTL, domctl.buffer_info()[0], 0, 0, 0, 0))
            except OSError as error:
                if error.errno == errno.EACCES:
                    continue
                # It could not go down to nothing, since some are in use: all that are free went.
                if error.errno != errno.ENOMEM:
                    raise
            return
    raise RuntimeError("Xen knows none of the domctl interface's versions")
