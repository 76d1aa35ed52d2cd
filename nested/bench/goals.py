"""What Granary has to reach beside Linux in the same run, and whether it does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .cases import CASES, KIB, MIB
from .results import FACTS, FIGURES, GRANARY, Results, Spread

DRIVER_DOMAIN = "Linux driver domain"
DOM0 = "Linux in dom0"
NVME = "NVMe"
UPSTREAM = "dom0's blkback"
"""What disks that are not in memory are on."""

Bound = Literal["at most", "at least"]
PERSISTENT, NOT_PERSISTENT, BOTH = [True], [False], [True, False]


@dataclass(frozen=True)
class LoadGoal:
    """A bound on a figure of every case of one size and depth, as a multiple of Linux' median."""

    figure: str
    request_bytes: int
    depths: list[int]
    grants: list[bool]
    bound: Bound
    factor: float
    reference: str = DRIVER_DOMAIN
    granary: str | None = None
    """The row of Granary's that it is about, where that is not the one over its own memory."""


@dataclass(frozen=True)
class FactGoal:
    """A bound on a fact: as a multiple of the reference's, or as it stands where there is none."""

    name: str
    bound: Bound
    factor: float
    reference: str | None = DRIVER_DOMAIN


# `dd` is the case of 1 MiB at depth 1.
GOALS: list[LoadGoal | FactGoal] = [
    LoadGoal("instructions", 4 * KIB, [32], PERSISTENT, "at most", 0.25),
    LoadGoal("instructions", 4 * KIB, [1], PERSISTENT, "at most", 0.4),
    LoadGoal("instructions", MIB, [4], PERSISTENT, "at most", 0.5),
    LoadGoal("instructions", 4 * KIB, [32], NOT_PERSISTENT, "at most", 0.3),
    LoadGoal("instructions", MIB, [1, 4], NOT_PERSISTENT, "at most", 0.4),
    LoadGoal("vm_entries", 4 * KIB, [1], BOTH, "at most", 0.4),
    LoadGoal("iops", 4 * KIB, [32], BOTH, "at least", 1.6),
    LoadGoal("iops", 4 * KIB, [32], BOTH, "at least", 1, DOM0),
    LoadGoal("iops", 4 * KIB, [1], BOTH, "at least", 1.25),
    LoadGoal("mib_per_s", 128 * KIB, [4], BOTH, "at least", 1.25),
    LoadGoal("mib_per_s", MIB, [1, 4], BOTH, "at least", 1.25),
    *(
        LoadGoal("instructions", 4 * KIB, [32], PERSISTENT, "at most", 0.6, f"{DRIVER_DOMAIN} over {what}", f"{GRANARY} over {what}")
        for what in (NVME, UPSTREAM)
    ),
    FactGoal("create_to_first_request_s", "at most", 1 / 5),
    FactGoal("own_start_instructions", "at most", 5_000_000, None),
    FactGoal("smallest_memory_mib", "at most", 1 / 8),
    FactGoal("image_bytes", "at most", 256 * KIB, None),
    FactGoal("idle_instructions_per_s", "at most", 1 / 4),
]
"""In the order of the table."""


@dataclass(frozen=True)
class Verdict:
    """One figure beside its bound."""

    what: str
    bound: Bound
    factor: float
    reference: str | None
    granary: Spread | None
    theirs: Spread | None
    """The reference's."""

    @property
    def met(self) -> bool | None:
        """Medians decide; None where one of them was not measured."""
        if self.granary is None or (self.reference is not None and self.theirs is None):
            return None
        limit = self.factor * (self.theirs.median if self.theirs else 1)
        return self.granary.median <= limit if self.bound == "at most" else self.granary.median >= limit

    @property
    def ratio(self) -> float | None:
        """Of the medians; None where there is none."""
        if self.granary is None or self.theirs is None or self.theirs.median == 0:
            return None
        return self.granary.median / self.theirs.median


def verdicts(results: Results) -> Iterator[Verdict]:
    """Each goal's, for reading and writing and with the grants that it is about."""
    for goal in GOALS:
        if isinstance(goal, FactGoal):
            yield _of_fact(goal, results)
        else:
            yield from _of_loads(goal, results)


def _of_loads(goal: LoadGoal, results: Results) -> Iterator[Verdict]:
    for persistent in goal.grants:
        for case in CASES:
            if case.request_bytes != goal.request_bytes or case.depth not in goal.depths:
                continue
            over = f", {goal.granary}" if goal.granary else ""
            what = f"{FIGURES[goal.figure]}: {case.name}, {grants(persistent=persistent)}{over}"
            ours, theirs = (
                results.spread(backend, case.name, goal.figure, persistent=persistent)
                for backend in (goal.granary or results.granary, goal.reference)
            )
            yield Verdict(what, goal.bound, goal.factor, goal.reference, ours, theirs)


def _of_fact(goal: FactGoal, results: Results) -> Verdict:
    ours, theirs = (results.fact(backend, goal.name) for backend in (GRANARY, goal.reference))
    return Verdict(FACTS[goal.name], goal.bound, goal.factor, goal.reference, ours, theirs)


def grants(*, persistent: bool) -> str:
    """In words."""
    return "persistent" if persistent else "not persistent"
