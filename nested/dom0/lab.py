"""The lab as scenarios see it: the long-lived domains, and how to report."""

from dataclasses import dataclass, field

from . import names
from .domain import Domain, Granary, Guest, Usage, backend_devices
from .events import Events
from .xen import Mismatch, Stuck, domains, eventually, xl


@dataclass(frozen=True)
class Snapshot:
    """What a scenario must leave as it was."""

    domains: frozenset[str]
    devices: frozenset[str]
    usage: Usage | None


@dataclass
class Lab:
    """The long-lived Granary and guests, made when first asked for."""

    events: Events
    settings: dict[str, str] = field(default_factory=dict)
    """What `--set` said, for scenarios that can be told something."""
    _kept: dict[str, Domain] = field(default_factory=dict)

    @property
    def granary(self) -> Granary:
        """The long-lived Granary."""
        return self._keep("granary", Granary.create)

    def guest(self, name: str = "one") -> Guest:
        """A long-lived guest without disks: "one", or "two" for what needs a second."""
        return self._keep(f"guest-{name}", lambda: Guest.create(f"guest-{name}"))

    def _keep(self, name: str, create):
        if name not in self._kept:
            self._kept[name] = create()
        return self._kept[name]

    def note(self, text: str) -> None:
        """Says something to the person who watches."""
        self.events.send("note", text=text)

    def figure(self, name: str, value: float, unit: str) -> None:
        """Reports a number. It is no verdict."""
        self.events.send("figure", name=name, value=round(value, 3), unit=unit)

    def ask(self, what: str, **fields: object) -> dict:
        """Has the host half do something to the machine, or look at it; raises where that says that something is wrong."""
        answer = self.events.ask(what, **fields)
        if wrong := answer.get("wrong"):
            raise Mismatch(wrong)
        return answer

    def snapshot(self) -> Snapshot:
        """The state that outlives scenarios. Domains that are kept are not in it."""
        kept = {domain.domid for domain in self._kept.values()}
        found = domains()
        devices = set[str]().union(*(backend_devices(domid) for domid in [0, *(d.domid for d in found)]))
        return Snapshot(
            frozenset(f"{domain.name} ({domain.domid})" for domain in found if domain.domid not in kept),
            frozenset(devices),
            # Without the image only scenarios that do without Granary can run.
            self.granary.usage() if names.GRANARY_IMAGE.exists() else None,
        )

    def check_unchanged(self, before: Snapshot) -> None:
        """Raises if a scenario left something behind. What ends in its own time gets a moment."""
        for domain in self._kept.values():
            if not domain.runs():
                raise Mismatch(f"{domain.name} should have outlived the scenario, and does not run any more")
        try:
            eventually("as before", lambda: self.snapshot() == before, limit=10)
        except Stuck:
            after = self.snapshot()
            raise Mismatch("; ".join(_differences(before, after))) from None

    def start_afresh(self) -> None:
        """Destroys every domain, so that a failure does not fail what comes after it."""
        self._kept.clear()
        for domain in domains():
            xl("destroy", str(domain.domid))


def _differences(before: Snapshot, after: Snapshot) -> list[str]:
    differences = []
    for what, old, new in [("domains", before.domains, after.domains), ("backend devices", before.devices, after.devices)]:
        if new - old:
            differences.append(f"{what} left behind: {', '.join(sorted(new - old))}")
        if old - new:
            differences.append(f"{what} missing: {', '.join(sorted(old - new))}")
    if before.usage != after.usage:
        differences.append(f"Granary had {before.usage}, and has {after.usage}")
    return differences
