"""One of those who act at random, and what they have in common."""

import random
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field

from ..dom0.domain import PATIENCE, Granary
from ..dom0.lab import Lab
from ..dom0.xen import eventually

# granaryctl's exit code, and what it says of a disk that is not free yet.
REFUSED = 1
BUSY = ["is in use", "still giving its pages back"]


@dataclass
class Stage:
    """What the actors of one round share."""

    lab: Lab
    granary: Granary
    over: threading.Event = field(default_factory=threading.Event)
    """Set when nothing new is to be begun."""
    failures: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    """How often each thing was done, over all rounds."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def control(self, *words: str) -> None:
        """A command of granaryctl, which must be obeyed once its disk is free: a vbd of it may be on its way out, pages on their way back."""

        def obeyed() -> bool:
            outcome = self.granary.control(*words)
            if outcome.rc == REFUSED and any(busy in outcome.output for busy in BUSY):
                return False
            outcome.expect(0)
            return True

        eventually(f"granaryctl {' '.join(words)} is obeyed", obeyed, PATIENCE)
        self.count("granaryctl commands")

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.done[what] += number

    def note(self, text: str) -> None:
        with self._lock:
            self.lab.note(text)

    def fail(self, text: str) -> None:
        with self._lock:
            self.failures.append(text)
        self.over.set()


class Actor(ABC):
    """Does one thing after another until the round is over. The first failure ends the round for all."""

    name: str

    def __init__(self, name: str, stage: Stage, seed: str):
        self.name = name
        self.stage = stage
        self.random = random.Random(f"{seed} {name}")
        self.doing: list[str] = []
        """What it has done in the turn it is in, for the one who reads of a failure."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def turn(self) -> None:
        """One thing, whole: nothing of it is left when it returns, but what the next one needs."""

    def start(self) -> None:
        self._thread.start()

    def join(self, limit: float) -> None:
        """Waits for its last turn. `limit` is a hang guard in seconds."""
        self._thread.join(limit)
        if self._thread.is_alive():
            self.stage.fail(f"{self.name} is stuck in: {', '.join(self.doing)}")

    def does(self, what: str, detail: str = "") -> None:
        """Notes what it does now, and counts it."""
        self.doing.append(f"{what} {detail}".rstrip())
        self.stage.count(what)

    def pause(self, most: float) -> None:
        """Waits for up to `most` seconds, or until the round is over."""
        self.stage.over.wait(self.random.uniform(0, most))

    def _run(self) -> None:
        while not self.stage.over.is_set():
            self.doing = []
            start = time.monotonic()
            try:
                self.turn()
            except Exception:
                self.stage.fail(f"{self.name}, after {', '.join(self.doing)}: {traceback.format_exc()}")
                return
            if self.doing:
                self.stage.note(f"{self.name}, {time.monotonic() - start:.0f} s: {', '.join(self.doing)}")
