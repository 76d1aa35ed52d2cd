"""Xen's own tools as functions: `xl`, xenstore, and the list of domains."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass


class Mismatch(Exception):
    """Something is not as the scenario says it must be."""


class Stuck(Exception):
    """A hang guard ran out."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it took."""

    command: str
    rc: int
    output: str
    seconds: float

    def expect(self, rc: int) -> "Outcome":
        """Itself, if the command ended with this status."""
        if self.rc != rc:
            raise Mismatch(f"`{self.command}`: rc {self.rc}, not {rc}; it said: {self.output.strip()}")
        return self

    def expect_failure(self) -> "Outcome":
        if self.rc == 0:
            raise Mismatch(f"`{self.command}` succeeded, and should not")
        return self


class Running:
    """A program that runs beside the scenario."""

    def __init__(self, *command: str):
        self._text = " ".join(command)
        self._start = time.monotonic()
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        """Asks it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends it where it stands."""
        self._process.kill()

    def wait(self, limit: float = 120) -> Outcome:
        """How it ended. `limit` is a hang guard in seconds."""
        try:
            output, _ = self._process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise Stuck(f"`{self._text}` has not ended after {limit:.0f} s") from None
        except BaseException:
            self._process.kill()
            raise
        return Outcome(self._text, self._process.returncode, output, time.monotonic() - self._start)


def run(*command: str, limit: float = 120) -> Outcome:
    """Runs a program. `limit` is a hang guard in seconds."""
    return Running(*command).wait(limit)


def xl(*arguments: str, limit: float = 120) -> Outcome:
    """Runs xl, whatever comes of it; most callers add `.expect(0)`."""
    return run("xl", *arguments, limit=limit)


class _Xenstore:
    """xenstore as dom0 sees it."""

    def read(self, path: str) -> str | None:
        """A node's value, or None if there is no such node."""
        outcome = run("xenstore-read", path)
        return outcome.output.rstrip("\n") if outcome.rc == 0 else None

    def write(self, path: str, value: str) -> None:
        run("xenstore-write", path, value).expect(0)

    def remove(self, path: str) -> None:
        run("xenstore-rm", path).expect(0)

    def ls(self, path: str) -> dict[str, str]:
        """Every node below a path, by its full path; empty if there is no such node."""
        outcome = run("xenstore-ls", "-f", path)
        nodes = {}
        for line in outcome.output.splitlines() if outcome.rc == 0 else []:
            name, equals, value = line.partition(" = ")
            if equals:
                nodes[name] = value.strip('"')
        return nodes


xenstore = _Xenstore()


@dataclass(frozen=True)
class Listed:
    """One line of `xl list`."""

    name: str
    domid: int
    state: str


def domains() -> list[Listed]:
    """All domains but dom0, dying ones too."""
    found = []
    for line in xl("list").expect(0).output.splitlines():
        columns = line.split()
        if len(columns) >= 6 and columns[1].isdigit() and columns[1] != "0":
            found.append(Listed(columns[0], int(columns[1]), columns[4]))
    return found


def eventually(what: str, holds: Callable[[], object], limit: float = 30, poll: float = 0.1) -> float:
    """Waits until `holds()` is true, and returns the seconds that took."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > limit:
            raise Stuck(f"not so after {limit:.0f} s: {what}")
        time.sleep(poll)
    return time.monotonic() - start


def expect(what: str, actual: object, expected: object) -> None:
    """Raises unless `actual` is `expected`."""
    if actual != expected:
        raise Mismatch(f"{what}: {actual!r}, not {expected!r}")
