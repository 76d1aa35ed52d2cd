"""What a soak must leave as it was, counted."""

from dataclasses import dataclass, fields

from ..dom0.domain import Granary, Usage
from ..dom0.xen import Mismatch, Stuck, domains, eventually, xenstore


@dataclass(frozen=True)
class Ledger:
    """Everything that could leak, at a time when nothing is going on."""

    usage: Usage
    """Granary's own books: pages, grant handles, event channel ports, watches, disks."""
    own_nodes: int
    """Nodes below Granary's xenstore directory, which are charged to its quota."""
    all_nodes: int
    """All nodes of xenstore, those of guests that are gone included."""
    domains: tuple[str, ...]
    """The domains that Xen lists, dying ones too."""

    @classmethod
    def now(cls, granary: Granary) -> "Ledger":
        return cls(
            granary.usage(),
            len(xenstore.ls(granary.home)),
            sum(len(xenstore.ls(path)) for path in ("/local", "/vm", "/libxl")),
            tuple(sorted(f"{domain.name} ({domain.domid})" for domain in domains())),
        )

    def check(self, granary: Granary) -> None:
        """Raises unless everything is as it was. What ends in its own time gets a moment."""
        try:
            eventually("as before", lambda: Ledger.now(granary) == self, limit=30, poll=1)
        except Stuck:
            after = Ledger.now(granary)
            different = [
                f"{field.name}: {getattr(self, field.name)} before, {getattr(after, field.name)} after"
                for field in fields(self)
                if getattr(self, field.name) != getattr(after, field.name)
            ]
            raise Mismatch("; ".join(different)) from None
