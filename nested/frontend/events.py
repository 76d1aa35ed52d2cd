"""Event channels of this process: /dev/xen/evtchn (Linux' xen/evtchn.h)."""

import fcntl
import os
import select
import struct

# _IOC(_IOC_NONE, 'E', number, size)
_BIND_UNBOUND_PORT = 4 << 16 | ord("E") << 8 | 2
_NOTIFY = 4 << 16 | ord("E") << 8 | 4
_PORT = struct.Struct("=I")


class Port:
    """A port that one other domain may bind."""

    def __init__(self, domid: int):
        self._file = os.open("/dev/xen/evtchn", os.O_RDWR | os.O_CLOEXEC)
        # Given bytes that it cannot change, fcntl.ioctl returns them and not the result.
        self.number: int = fcntl.ioctl(self._file, _BIND_UNBOUND_PORT, bytearray(_PORT.pack(domid)))

    def fileno(self) -> int:
        return self._file

    def notify(self) -> None:
        fcntl.ioctl(self._file, _NOTIFY, _PORT.pack(self.number))

    def wait(self, seconds: float) -> bool:
        """Whether there was an event within that time, since the last one that this told of."""
        if not select.select([self._file], [], [], seconds)[0]:
            return False
        # What is read is masked until it is written back.
        os.write(self._file, os.read(self._file, _PORT.size))
        return True

    def close(self) -> None:
        os.close(self._file)
