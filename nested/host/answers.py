"""What a scenario may ask of the host half: to look at the machine's disks from outside, or to hold them up."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from ..dom0.names import NVME_MIB
from ..writelog import durability, ext4
from ..writelog.log import BadLog
from .monitor import Monitor
from .nvme import FIRST_NODE, Controller


class Answers:
    """Answers for one boot."""

    def __init__(self, nvme: Controller | None, monitor: Path):
        self._nvme = nvme
        self._monitor = monitor
        self._known: dict[str, Callable[..., dict]] = {
            "files": self._files,
            "promises": self._promises,
            "hold flushes": self._hold_flushes,
            "let flushes go": self._let_flushes_go,
        }

    def to(self, question: dict) -> dict:
        """The answer to an event "ask". What is wrong with what was looked at stands in its `wrong`."""
        fields = {name: value for name, value in question.items() if name not in ("event", "what")}
        known = self._known.get(question["what"])
        if not known or not self._nvme:
            return {"wrong": f"this machine cannot be asked for {question['what']!r}"}
        try:
            return known(self._nvme, **fields)
        except (ext4.Broken, durability.NotDurable, BadLog) as wrong:
            return {"wrong": str(wrong)}

    @staticmethod
    def _files(nvme: Controller, namespace: int, sums: dict[str, str]) -> dict:
        """Whether a namespace's image is an ext4 file system with these files."""
        image = {1: nvme.first, 2: nvme.second}[namespace]
        ext4.check(image)
        for name, md5 in sums.items():
            if (found := ext4.md5(image, name)) != md5:
                raise ext4.Broken(f"{name} has the checksum {found}, not {md5}")
        return {}

    @staticmethod
    def _promises(nvme: Controller, series: str, at_bytes: int) -> dict:
        """Whether what the guest was promised was in the first namespace."""
        before = nvme.folder / "before.img"
        with before.open("wb") as file:
            file.truncate(NVME_MIB[0] << 20)
        kept = durability.check(nvme.log, before, series, at_bytes)
        return {"promises": kept.nr_promises, "entries": kept.nr_entries}

    def _hold_flushes(self, _nvme: Controller) -> dict:
        """The next flush of the first namespace begins and does not end."""
        return self._qemu_io("break flush_to_disk held")

    def _let_flushes_go(self, _nvme: Controller) -> dict:
        # Also where none came: QEMU's own at its end would be held, and it with it.
        return self._qemu_io("remove_break held")

    def _qemu_io(self, command: str) -> dict:
        with contextlib.closing(Monitor(self._monitor)) as monitor:
            monitor.qemu_io(FIRST_NODE, command)
        return {}
