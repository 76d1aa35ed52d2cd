"""Those who make trouble beside the guests: a hostile frontend, and an operator who never rests."""

import os
import signal
import time
from pathlib import Path

from ..dom0.domain import PATIENCE
from ..dom0.xen import Running
from ..frontend.hostile import clean_up
from .actor import Actor, Stage

HOSTILE_SECONDS = 4
NR_DISKS = 4


class Attacker(Actor):
    """Starts a hostile frontend, and lets it end or kills it in the midst of it."""

    def turn(self) -> None:
        granary, seed = self.stage.granary.domid, self.random.getrandbits(32)
        self.does("hostile frontend", f"with seed {seed}")
        hostile = Running(
            *("python3", "-m", "nested.frontend.hostile", "--granary", str(granary)),
            *("--seed", str(seed), "--seconds", str(HOSTILE_SECONDS)),
        )
        if self.random.random() < 0.3:
            time.sleep(self.random.uniform(0, HOSTILE_SECONDS))
            self.does("killed")
            hostile.kill()
            hostile.wait(PATIENCE)
            clean_up(granary)
        else:
            hostile.wait(PATIENCE).expect(0)
        self.pause(20)


class Operator(Actor):
    """Makes, copies, resizes and removes disks, those of the guests among what is copied, and looks at statistics."""

    def __init__(self, name: str, stage: Stage, seed: str, others: list[str]):
        super().__init__(name, stage, seed)
        self._others = others
        # What each of its disks is.
        self._disks: dict[str, str] = {}
        self._nr_made = 0

    def leave(self) -> None:
        """Removes its disks."""
        for disk in self._disks:
            self.stage.control("remove", disk)

    def turn(self) -> None:
        acts = [self._look, self._make, self._make, self._empty, self._resize, self._remove]
        self.random.choice(acts)()
        self.pause(3)

    def _look(self) -> None:
        self.stage.control(self.random.choice(["list", "stats"]))

    def _make(self) -> None:
        if len(self._disks) == NR_DISKS:
            return self._remove()
        self._nr_made += 1
        name = f"{self.name}.{self._nr_made}"
        kind = self.random.choice(["ram,size=32M", "null,size=1T", "gold,cow", "clone", "snapshot"])
        if kind in ("clone", "snapshot"):
            self.stage.control(kind, self.random.choice(self._others), name)
        else:
            self.stage.control("create", name, kind)
        self._disks[name] = kind

    def _empty(self) -> None:
        self._change({"snapshot"}, "discard-all")

    def _resize(self) -> None:
        # What lies over an image cannot become smaller than that.
        self._change({"snapshot", "gold,cow"}, "resize", f"{self.random.randint(1, 64)}M")

    def _change(self, not_of: set[str], verb: str, *size: str) -> None:
        """Does it to one of its disks, but of no such kind."""
        if disks := [name for name, kind in self._disks.items() if kind not in not_of]:
            self.stage.control(verb, self.random.choice(disks), *size)

    def _remove(self) -> None:
        if self._disks:
            name = self.random.choice(list(self._disks))
            self.stage.control("remove", name)
            del self._disks[name]


class Daemons(Actor):
    """Holds up one of dom0's daemons for a moment, as a busy dom0 would."""

    def turn(self) -> None:
        self.pause(60)
        if self.stage.over.is_set():
            return
        daemon = self.random.choice(["xenstored", "xenconsoled"])
        self.does(f"{daemon} held up")
        pid = int(Path(f"/run/{daemon}.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self.random.uniform(0.1, 2))
        finally:
            os.kill(pid, signal.SIGCONT)
