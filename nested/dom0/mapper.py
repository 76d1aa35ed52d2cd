"""Disks of dom0's device-mapper: one that fails where it is told to, one that logs what is written, one that is slow to flush."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import images
from .xen import run

_SECTOR = 512


@contextmanager
def loop(file: Path) -> Iterator[Path]:
    """A file as a block device."""
    device = run("losetup", "-f").expect(0).output.strip()
    run("losetup", device, str(file)).expect(0)
    try:
        yield Path(device)
    finally:
        run("losetup", "-d", device)


@contextmanager
def _mapped(name: str, *table: str) -> Iterator[Path]:
    """A device of this table; at the end nobody may have it open."""
    _dmsetup("create", name, _table(name, table))
    # Below /dev/mapper there are names only where there is udev.
    minor = run("dmsetup", "info", "--columns", "--noheadings", "-o", "minor", name).expect(0).output.strip()
    try:
        yield Path(f"/dev/dm-{minor}")
    except BaseException:
        # Whoever has it open may go later.
        run("dmsetup", "remove", "--deferred", name)
        raise
    _dmsetup("remove", "--retry", name)


def _dmsetup(*words: str) -> None:
    # Nobody here is udev.
    run("dmsetup", "--noudevsync", "--noudevrules", *words).expect(0)


def _table(name: str, lines: tuple[str, ...]) -> str:
    path = Path(f"/tmp/{name}.table")
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


class Faulty:
    """A disk over a file, a part of which can be made to fail."""

    def __init__(self, name: str, mib: int, below: Path, path: Path):
        self.path = path
        self._name = name
        self._sectors = _sectors(mib)
        self._below = below

    def fail(self, at_mib: int, mib: int) -> None:
        """From now on each request that touches these MiBs fails."""
        bad, end = _sectors(at_mib), _sectors(at_mib + mib)
        self._load(
            self._good(0, bad),
            f"{bad} {end - bad} error",
            self._good(end, self._sectors),
        )

    def heal(self) -> None:
        self._load(self._good(0, self._sectors))

    def _good(self, first: int, end: int) -> str:
        return f"{first} {end - first} linear {self._below} {first}" if end > first else ""

    def _load(self, *table: str) -> None:
        _dmsetup("reload", self._name, _table(self._name, tuple(filter(None, table))))
        _dmsetup("suspend", "--noflush", "--nolockfs", self._name)
        _dmsetup("resume", self._name)


@contextmanager
def faulty(name: str, mib: int) -> Iterator[Faulty]:
    """A disk of zeroes that can be made to fail."""
    file = images.empty(f"{name}.img", mib)
    with loop(file) as below, _mapped(name, f"0 {_sectors(mib)} linear {below} 0") as path:
        yield Faulty(name, mib, below, path)
    images.remove(file)


@contextmanager
def slow_to_flush(name: str, mib: int, seconds: int) -> Iterator[Path]:
    """A disk of zeroes whose flushes take that long, and nothing else of it."""
    file = images.empty(f"{name}.img", mib)
    with loop(file) as below, _mapped(name, f"0 {_sectors(mib)} delay {below} 0 0 {below} 0 0 {below} 0 {seconds * 1000}") as path:
        yield path
    images.remove(file)


@contextmanager
def logged(name: str, mib: int, log: Path) -> Iterator[Path]:
    """A disk of zeroes whose writes and flushes are logged into a file, which is whole afterwards."""
    disk = images.empty(f"{name}.img", mib)
    with log.open("wb") as file:
        file.truncate(_LOG_MIB << 20)
    with loop(disk) as below, loop(log) as logs, _mapped(name, f"0 {_sectors(mib)} log-writes {below} {logs}") as path:
        yield path
    images.remove(disk)


_LOG_MIB = 512


def _sectors(mib: int) -> int:
    return (mib << 20) // _SECTOR
