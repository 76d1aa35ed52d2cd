"""Whether each promise to a guest was kept: the check of a whole log."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import ext4
from .log import WriteLog
from .promises import promises
from .replay import Replay


class NotDurable(Exception):
    """A guest was told that something is durable that was not."""


@dataclass(frozen=True)
class Kept:
    """What a log proved."""

    nr_promises: int
    nr_entries: int


def check(log_file: Path, before: Path, series: str, at_bytes: int) -> Kept:
    """Replays the log up to the flush before each promise; there the file system and all files promised so far must be right.

    Looks at the promises of one series. `before` is what the device held when the log began. Raises
    NotDurable.
    """
    promised: dict[str, str] = {}
    nr_promises = 0
    with tempfile.TemporaryDirectory() as folder, log_file.open("rb") as file:
        log = WriteLog(file)
        image, cut = Path(folder) / "replayed", Path(folder) / "cut"
        _copy(before, image)
        with image.open("r+b") as replayed:
            replay = Replay(WriteLog(file), replayed)
            for each in promises(log, series, at_bytes):
                nr_promises += 1
                promised[each.name] = each.md5
                replay.up_to(each.durable)
                # The journal is replayed in a copy: the log goes on from what the device held.
                _copy(image, cut)
                _look(cut, promised, f"promise {nr_promises} (entry {each.number}, of which {each.durable} are durable)")
        return Kept(nr_promises, log.nr_entries)


def _look(image: Path, promised: dict[str, str], when: str) -> None:
    try:
        ext4.recover(image)
        ext4.check(image)
        for name, md5 in promised.items():
            found = ext4.md5(image, name)
            if found != md5:
                raise ext4.Broken(f"{name} has the checksum {found}, not {md5}")
    except ext4.Broken as broken:
        raise NotDurable(f"{when}: {broken}") from None


def _copy(source: Path, to: Path) -> None:
    """With its holes: most of a disk is one."""
    size = source.stat().st_size
    with source.open("rb") as old, to.open("wb") as new:
        for at in range(0, size, _CHUNK):
            data = old.read(_CHUNK)
            if data.strip(b"\0"):
                new.seek(at)
                new.write(data)
        new.truncate(size)


_CHUNK = 1 << 16
