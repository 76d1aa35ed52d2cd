"""How long a domain has run."""

import errno
import struct

from ..dom0.domctl import domctl
from ..dom0.xen import Mismatch

# XEN_DOMCTL_getdomaininfo of domctl.h.
_GETDOMAININFO = 5

# struct xen_domctl_getdomaininfo, the same in Xen 4.17 and 4.20: domain, flags, five counts of pages,
# shared_info's frame, cpu_time.
_INFO = struct.Struct("<H2xI6QQ")


def cpu_ns(domid: int) -> int:
    """The nanoseconds that a domain's vCPUs have run, together, since it was created.

    What the hypervisor does for it is in there: its hypercalls, its exits, and interrupts that come while it
    runs. By the lab's clock "instructions" a nanosecond is an instruction. Tracing costs the traced
    domain some: do not measure both over one span. Raises Mismatch if there is no such domain.
    """
    try:
        info = domctl(_GETDOMAININFO, domid)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise
        raise Mismatch(f"there is no domain {domid}") from None
    found, _flags, *_pages, cpu_time = _INFO.unpack_from(info)
    # Where there is no such domain, Xen 4.17 answers for the next one.
    if found != domid:
        raise Mismatch(f"there is no domain {domid}")
    return cpu_time
