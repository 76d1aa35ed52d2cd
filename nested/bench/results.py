"""What a run of the benchmark found: as dom0 sends it, as the host keeps it, and its spread."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Sample:
    """One load on one backend, once."""

    backend: str
    """A row's name, the copy routine included: "Granary (sse)", "Linux driver domain"."""
    persistent: bool
    """Whether the frontend's grants are."""
    case: str
    """cases.Case.name"""
    figures: dict[str, float]
    """By the names of `results.FIGURES`; what could not be measured is not in it."""


@dataclass(frozen=True)
class Fact:
    """Something measured of a backend apart from loads, once."""

    backend: str
    name: str
    """One of `results.FACTS`."""
    value: float


FIGURES = {
    "iops": "requests a second",
    "mib_per_s": "MiB a second",
    "instructions": "instructions a request in the serving domain",
    "copy_instructions": "instructions of those that copy data",
    "vm_entries": "VM entries a request",
    "hypercalls": "hypercalls a request",
}
"""What a sample may say, and its unit. Seconds are those of the emulated clock."""

FACTS = {
    "image_bytes": "image, bytes",
    "smallest_memory_mib": "smallest `memory=` that serves an 8 MiB disk, MiB",
    "create_to_first_request_s": "`xl create` to the first served request, s",
    "own_start_instructions": "of that its own, unpause to first InitWait, instructions",
    "idle_instructions_per_s": "idle with four connected disks, instructions a second",
    "connected_vbd_kib": "memory a connected vbd takes, KiB",
}
"""What a fact may be, and its unit."""


@dataclass(frozen=True)
class Spread:
    """Of several measurements of the same."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Self:
        return cls(min(values), statistics.median(values), max(values))


@dataclass
class Results:
    """A whole run."""

    clock: str = "instructions"
    """qemu.CLOCKS: only by "instructions" do figures of two runs compare."""
    versions: dict[str, str] = field(default_factory=dict)
    """What took part: "Xen" and "Linux"."""
    samples: list[Sample] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)

    def spread(self, backend: str, case: str, figure: str, *, persistent: bool) -> Spread | None:
        """Over the repetitions; None where there was no such measurement."""
        values = [
            sample.figures[figure]
            for sample in self.samples
            if (sample.backend, sample.case, sample.persistent) == (backend, case, persistent) and figure in sample.figures
        ]
        return Spread.of(values) if values else None

    def fact(self, backend: str, name: str) -> Spread | None:
        values = [fact.value for fact in self.facts if (fact.backend, fact.name) == (backend, name)]
        return Spread.of(values) if values else None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        saved = json.loads(path.read_text())
        return cls(
            saved["clock"],
            saved["versions"],
            [Sample(**sample) for sample in saved["samples"]],
            [Fact(**fact) for fact in saved["facts"]],
        )
