"""What a scenario is, and what it is given."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lab import Lab


@dataclass(frozen=True)
class Scenario:
    """One test in dom0. Its docstring's first line says what must be true."""

    name: str
    says: str
    limit: float
    group: str
    machine: str
    body: "Callable[[Lab], None]"


_known: dict[str, Scenario] = {}


def scenario(*, limit: float, group: str = "test", machine: str = "plain"):
    """Makes a function a scenario.

    `limit` is a hang guard in seconds of dom0's clock, three times what it usually takes or more,
    and never a verdict.
    `group` is when it runs: "test" always, "all" with --all only, "run", "soak" and "bench" in the script of that name only.
    `machine` is what it needs: "plain", or "passthrough" with an IOMMU and an NVMe controller. Each is a boot.
    """

    def register(body: "Callable[[Lab], None]") -> "Callable[[Lab], None]":
        name = f"{body.__module__.rpartition('.')[2]}.{body.__name__}"
        says = (body.__doc__ or "").strip().splitlines()[0]
        _known[name] = Scenario(name, says, limit, group, machine, body)
        return body

    return register


def known() -> dict[str, Scenario]:
    """Every scenario of nested/scenarios, by name, in the order of files and lines."""
    package = importlib.import_module("nested.scenarios")
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"nested.scenarios.{module}")
    return _known
