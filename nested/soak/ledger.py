"""What a soak must leave as it was, counted."""

from dataclasses import dataclass

from ..dom0.domain import Granary, Usage
from ..dom0.xen import Mismatch, Stuck, domains, eventually, xenstore


@dataclass(frozen=True)
class Ledger:
    """Everything that could leak, at a time when nothing is going on."""

    usage: Usage
    """Granary's own books: pages, grant handles, event channel ports, watches, disks."""
    nodes: frozenset[str]
    """All nodes of xenstore, those of guests that are gone included."""
    domains: frozenset[str]
    """The domains that Xen lists, dying ones too."""

    @classmethod
    def now(cls, granary: Granary) -> "Ledger":
        return cls(
            granary.usage(),
            frozenset().union(*(xenstore.ls(path) for path in ("/local", "/vm", "/libxl"))),
            frozenset(f"{domain.name} ({domain.domid})" for domain in domains()),
        )

    def check(self, granary: Granary) -> None:
        """Raises unless everything is as it was. What ends in its own time gets a moment."""
        try:
            eventually("as before", lambda: Ledger.now(granary) == self, limit=30, poll=1)
        except Stuck:
            after = Ledger.now(granary)
            different = [_left("nodes", self.nodes, after.nodes), _left("domains", self.domains, after.domains)]
            if self.usage != after.usage:
                different.append(f"usage: {self.usage} before, {after.usage} after")
            raise Mismatch("; ".join(filter(None, different))) from None


def _left(what: str, before: frozenset[str], after: frozenset[str]) -> str:
    """How two sets differ, in words."""
    new, gone = sorted(after - before), sorted(before - after)
    return ", ".join([f"{what} left behind: {' '.join(new)}"] * bool(new) + [f"{what} missing: {' '.join(gone)}"] * bool(gone))
