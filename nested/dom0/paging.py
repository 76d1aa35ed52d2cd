"""A domain's paging pool: the memory that Xen makes its page tables from, of what maps grants too."""

import errno
import struct

from .domctl import domctl

# domctl.h.
_SHADOW_OP, _SET_ALLOCATION = 10, 31


def take_free_pages(domid: int) -> None:
    """Gives Xen back what a domain's paging pool has free, so that it gets no page table any more.

    `shadow_memory=` cannot be so small: Xen fills a pool of 1 MiB before it looks at that.
    """
    try:
        # struct xen_domctl_shadow_op: op, mode, mb.
        domctl(_SHADOW_OP, domid, struct.pack("<III", _SET_ALLOCATION, 0, 0))
    except OSError as error:
        # It could not go down to nothing, since some are in use: all that are free went.
        if error.errno != errno.ENOMEM:
            raise
