"""What a run of the benchmark found: as dom0 sends it, as the host keeps it, and its spread."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

GRANARY = "Granary"
"""How facts call it; in samples the copy routine follows."""


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

    def figure(self, name: str) -> float | None:
        """One of `figures`, or of `results.DERIVED`."""
        if name == "protocol_instructions" and {"instructions", "copy_instructions"} <= self.figures.keys():
            return self.figures["instructions"] - self.figures["copy_instructions"]
        return self.figures.get(name)


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
    "copy_instructions": "instructions a request that copy data",
    "vm_entries": "VM entries a request",
    "hypercalls": "hypercalls a request",
}
"""What a sample may say, and its unit. Seconds are those of the emulated clock."""

DERIVED = {"protocol_instructions": "instructions a request in the serving domain, without those that copy data"}
"""What follows from a sample's figures."""

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

    def spread(self, backend: str | None, case: str, figure: str, *, persistent: bool) -> Spread | None:
        """Over the repetitions; None where there was no such measurement, or is no such backend."""
        values = [
            value
            for sample in self.samples
            if (sample.backend, sample.case, sample.persistent) == (backend, case, persistent)
            and (value := sample.figure(figure)) is not None
        ]
        return Spread.of(values) if values else None

    def fact(self, backend: str | None, name: str) -> Spread | None:
        values = [fact.value for fact in self.facts if (fact.backend, fact.name) == (backend, name)]
        return Spread.of(values) if values else None

    @property
    def backends(self) -> list[str]:
        """Of the samples, in the order in which they were measured, which is that of the tables."""
        return list(dict.fromkeys(sample.backend for sample in self.samples))

    @property
    def granary(self) -> str | None:
        """The one of them that is Granary with the copy routine that it takes by itself: its first."""
        return next((backend for backend in self.backends if backend.startswith(f"{GRANARY} (")), None)

    def add(self, other: "Results") -> None:
        """What was measured in another boot."""
        self.versions |= other.versions
        self.samples += other.samples
        self.facts += other.facts

    def take(self, event: dict[str, Any]) -> None:
        """Keeps what an event of dom0's says; others are not for us."""
        match event:
            case {"event": "sample"}:
                self.samples.append(Sample(event["backend"], event["persistent"], event["case"], event["figures"]))
            case {"event": "fact"}:
                self.facts.append(Fact(event["backend"], event["name"], event["value"]))
            case {"event": "version"}:
                self.versions[event["name"]] = event["text"]

    def save(self, path: Path) -> None:
        """A measurement a line, so that one that changes shows as one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {
            "clock": json.dumps(self.clock),
            "versions": json.dumps(self.versions),
            "samples": _lines(self.samples),
            "facts": _lines(self.facts),
        }
        path.write_text("{\n" + ",\n".join(f'"{name}": {text}' for name, text in fields.items()) + "\n}\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        saved = json.loads(path.read_text())
        return cls(
            saved["clock"],
            saved["versions"],
            [Sample(**sample) for sample in saved["samples"]],
            [Fact(**fact) for fact in saved["facts"]],
        )


def _lines(measured: Sequence[Sample | Fact]) -> str:
    return "[\n" + ",\n".join(json.dumps(asdict(one)) for one in measured) + "\n]"
