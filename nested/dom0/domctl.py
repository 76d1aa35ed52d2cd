"""Domctls: what Xen does to a domain, or says of it, through the kernel's privcmd."""

import errno
import fcntl
import struct
from array import array
from pathlib import Path

_PRIVCMD = Path("/dev/xen/privcmd")

# _IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall)) of Linux's xen/privcmd.h.
_IOCTL_HYPERCALL = 0x305000

# __HYPERVISOR_domctl of xen.h.
_DOMCTL = 36

# XEN_DOMCTL_INTERFACE_VERSION from Xen 4.17 on. Xen answers EACCES to all but its own.
_VERSIONS = range(0x15, 0x20)

# struct xen_domctl before its union: cmd, interface_version, domain. The whole takes 144 bytes.
_HEADER = struct.Struct("<IIH6x")
_DOMCTL_BYTES = 256


def domctl(operation: int, domid: int, argument: bytes = b"") -> bytes:
    """Asks for an XEN_DOMCTL_* operation on a domain; what Xen left in the domctl's union.

    `argument` is the operation's member of that union, as domctl.h lays it out, or its beginning:
    what follows is zero. Raises OSError with Xen's error.
    """
    for version in _VERSIONS:
        # Xen reads and writes it where it stands, so it must be in memory: it was just written.
        buffer = array("B", (_HEADER.pack(operation, version, domid) + argument).ljust(_DOMCTL_BYTES, b"\0"))
        try:
            _hypercall(buffer)
        except OSError as error:
            if error.errno != errno.EACCES:
                raise
        else:
            return buffer.tobytes()[_HEADER.size :]
    raise RuntimeError("Xen knows none of the domctl interface's versions")


def _hypercall(buffer: array) -> None:
    with _PRIVCMD.open("rb") as privcmd:
        fcntl.ioctl(privcmd, _IOCTL_HYPERCALL, struct.pack("<6Q", _DOMCTL, buffer.buffer_info()[0], 0, 0, 0, 0))
