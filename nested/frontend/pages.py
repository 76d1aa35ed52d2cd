"""Pages of this process that another domain may use: /dev/xen/gntalloc (Linux' xen/gntalloc.h)."""

import fcntl
import mmap
import os
import struct
from enum import IntEnum
from pathlib import Path

PAGE_BYTES = 4096
# As many pages as a process here ever shares; the module's own limit is for all processes.
LIMIT_PAGES = 16384
_LIMIT = Path("/sys/module/xen_gntalloc/parameters/limit")

# _IOC(_IOC_NONE, 'G', number, size)
_ALLOC_GREF = 24 << 16 | ord("G") << 8 | 5
_DEALLOC_GREF = 16 << 16 | ord("G") << 8 | 6
# domid, flags, count, then where to map it, then the grefs
_ALLOC = struct.Struct("=HHIQ")
_DEALLOC = struct.Struct("=QI4x")


class Access(IntEnum):
    """What the other domain may do with a page (GNTALLOC_FLAG_WRITABLE)."""

    READ = 0
    WRITE = 1


class Pages:
    """Some pages that a domain has been granted, zeroed."""

    def __init__(self, domid: int, count: int, access: Access = Access.WRITE):
        _raise_limit()
        self._file = os.open("/dev/xen/gntalloc", os.O_RDWR | os.O_CLOEXEC)
        argument = bytearray(_ALLOC.pack(domid, access, count, 0) + bytes(4 * count))
        fcntl.ioctl(self._file, _ALLOC_GREF, argument)
        self._index = _ALLOC.unpack_from(argument)[3]
        self.count = count
        self.grefs: tuple[int, ...] = struct.unpack_from(f"={count}I", argument, _ALLOC.size)
        self.memory = mmap.mmap(self._file, count * PAGE_BYTES, offset=self._index)

    def page(self, number: int) -> slice:
        """Where a page lies in `memory`."""
        return slice(number * PAGE_BYTES, (number + 1) * PAGE_BYTES)

    def withdraw(self) -> None:
        """Ends the grants; where one is in use, Linux does so as soon as it is not."""
        self.memory.close()
        fcntl.ioctl(self._file, _DEALLOC_GREF, _DEALLOC.pack(self._index, self.count))
        os.close(self._file)


def _raise_limit() -> None:
    if int(_LIMIT.read_text()) < LIMIT_PAGES:
        _LIMIT.write_text(str(LIMIT_PAGES))
