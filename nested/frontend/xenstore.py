"""xenstore over one connection, with what a toolstack and a frontend need of it."""

import math
import time

from ..dom0.granaryctl import granaryctl
from ..dom0.xen import Stuck

POLL_SECONDS = 0.01

XenstoreError = granaryctl.XenstoreError


class Xenstore(granaryctl.Xenstore):
    """A connection of dom0's. Paths are absolute."""

    MKDIR, RM, SET_PERMS = 12, 13, 14

    def __init__(self):
        super().__init__(granaryctl.Deadline(math.inf))

    def text(self, path: str) -> str | None:
        """A node's value, None if there is none."""
        value = self.read(path)
        return None if value is None else value.decode(errors="replace")

    def write_bytes(self, path: str, value: bytes) -> None:
        self._call(self.WRITE, path, value)

    def mkdir(self, path: str, tx: int = 0) -> None:
        self._call(self.MKDIR, path, tx=tx)

    def remove(self, path: str, tx: int = 0) -> None:
        """Removes a node and what is below it, if it is there."""
        try:
            self._call(self.RM, path, tx=tx)
        except XenstoreError as error:
            if error.errno != "ENOENT":
                raise

    def set_perms(self, path: str, owner: int, reader: int, tx: int = 0) -> None:
        self._call(self.SET_PERMS, path, f"n{owner}\0r{reader}\0".encode(), tx)

    def list(self, path: str, tx: int = 0) -> list[str]:
        """The names below a node, none if it is not there."""
        try:
            return [name.decode() for name in self._call(self.DIRECTORY, path, tx=tx).split(b"\0") if name]
        except XenstoreError as error:
            if error.errno != "ENOENT":
                raise
            return []

    def wait(self, path: str, *values: str | None, limit: float = 60) -> str | None:
        """Waits until a node has one of these values, None for no node. `limit` is a hang guard in seconds."""
        deadline = time.monotonic() + limit
        while (found := self.text(path)) not in values:
            if time.monotonic() > deadline:
                raise Stuck(f"{path} is {found!r}, and none of {values} after {limit:.0f} s")
            time.sleep(POLL_SECONDS)
        return found
