"""Those who make trouble beside the guests: a hostile frontend, and an operator who never rests."""

import os
import signal
import time
from pathlib import Path

from ..dom0.domain import PATIENCE
from ..dom0.xen import Running
from ..frontend.hostile import clean_up
from .actor import Actor, Stage

HOSTILE_SECONDS = 10
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
        self.pause(5)


class Operator(Actor):
    """Makes, copies, resizes and removes disks, those of the guests among what is copied, and looks at statistics."""

    def __init__(self, name: str, stage: Stage, seed: str, others: list[str]):
        super().__init__(name, stage, seed)
        self._others = others
        self._writable: list[str] = []
        self._snapshots: list[str] = []
        self._nr_made = 0

    def leave(self) -> None:
        """Removes its disks."""
        for disk in self._writable + self._snapshots:
            self.stage.control("remove", disk)

    def turn(self) -> None:
        own = self._writable + self._snapshots
        acts = [self._look] + [self._make] * 2 * (len(own) < NR_DISKS) + [self._change] * 2 * bool(self._writable)
        self.random.choice(acts + [self._remove] * bool(own))()
        self.pause(3)

    def _look(self) -> None:
        self.stage.control(self.random.choice(["list", "stats"]))

    def _make(self) -> None:
        self._nr_made += 1
        name = f"{self.name}.{self._nr_made}"
        verb = self.random.choice(["create", "clone", "snapshot"])
        if verb == "create":
            self.stage.control(verb, name, self.random.choice(["ram,size=32M", "gold,cow", "null,size=1T"]))
        else:
            self.stage.control(verb, self.random.choice(self._others), name)
        (self._snapshots if verb == "snapshot" else self._writable).append(name)

    def _change(self) -> None:
        name = self.random.choice(self._writable)
        if self.random.random() < 0.5:
            self.stage.control("discard-all", name)
        else:
            self.stage.control("resize", name, f"{self.random.randint(1, 64)}M")

    def _remove(self) -> None:
        disks = self.random.choice([disks for disks in (self._writable, self._snapshots) if disks])
        self.stage.control("remove", disks.pop(self.random.randrange(len(disks))))


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
