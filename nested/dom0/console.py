"""A domain's console: read from xenconsoled's log, which misses nothing, written to its pty."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from . import names
from .xen import Mismatch, Stuck, xenstore

POLL_SECONDS = 0.02
ALIVE_SECONDS = 3


class Console:
    """The console of one life of a domain. Make it before the domain: the log outlives domains."""

    def __init__(self, name: str):
        self.path: Path = names.CONSOLE_LOGS / f"guest-{name}.log"
        self._offset = self.path.stat().st_size if self.path.exists() else 0
        self._tail = b""
        self.lines: list[str] = []
        self.alive: Callable[[], bool] = lambda: True
        """Tells a domain that is silent from one that has ended."""

    def poll(self) -> None:
        """Takes in the complete lines that arrived since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as log:
            log.seek(self._offset)
            new = log.read()
        self._offset += len(new)
        *complete, self._tail = (self._tail + new).split(b"\n")
        self.lines += [line.decode(errors="replace").rstrip("\r") for line in complete]

    def go_on_in(self, other: "Console") -> None:
        """What the domain says from now on is in another's log, from where that one stands."""
        self.poll()
        if other.path != self.path:
            self.path, self._offset, self._tail = other.path, other._offset, b""

    def wait(self, pattern: str, limit: float = 60, since: int = 0) -> re.Match[str]:
        """The first line from number `since` on that matches. `limit` is a hang guard in seconds."""
        compiled = re.compile(pattern)
        deadline = time.monotonic() + limit
        check_alive = time.monotonic() + ALIVE_SECONDS
        while True:
            self.poll()
            for line in self.lines[since:]:
                if found := compiled.search(line):
                    return found
            since = len(self.lines)
            if time.monotonic() > check_alive:
                if not self.alive():
                    raise Mismatch(f"{self.path.name}: the domain ended, and has not said /{pattern}/")
                check_alive = time.monotonic() + ALIVE_SECONDS
            if time.monotonic() > deadline:
                raise Stuck(f"{self.path.name}: no line like /{pattern}/ within {limit:.0f} s")
            time.sleep(POLL_SECONDS)

    def mark(self) -> int:
        """The number of the next line, for `wait(since=…)`."""
        self.poll()
        return len(self.lines)

    def matching(self, pattern: str, since: int = 0) -> list[str]:
        """The lines that match so far."""
        self.poll()
        return [line for line in self.lines[since:] if re.search(pattern, line)]


def write(domid: int, text: str) -> None:
    """Types into a domain's console."""
    pty = xenstore.read(f"/local/domain/{domid}/console/tty")
    if not pty:
        raise Stuck(f"domain {domid} has no console")
    fd = os.open(pty, os.O_WRONLY | os.O_NOCTTY)
    try:
        data = text.encode()
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
