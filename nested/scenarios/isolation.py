"""What one frontend's flood costs another, in time (docs/reliability.md)."""

from ..dom0 import disks
from ..dom0.domain import Guest
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from .hostile import hostile

READS = "latency --device /dev/xvdb --op read --seconds 1"
FLOOD = "lab-io latency --device /dev/xvdb --op write --pattern sequential --size 1048576 --depth 32 --while /tmp/more"
# The emulated machine has one processor: what shares it costs time without a single request.
SPIN = "while [ -e /tmp/more ]; do :; done"


def measure(lab: Lab, guest: Guest, beside: str) -> None:
    measured = guest.io(READS)
    for name in ("p50", "p99", "max"):
        lab.figure(f"4 KiB reads {beside}, {name}", measured[f"{name}_ns"] / 1000, "us")


@scenario(limit=300, group="all")
def a_flooding_neighbour(lab: Lab):
    """A guest's 4 KiB reads go on while another guest asks for as much as it can."""
    guest, neighbour = lab.guest("one"), lab.guest("two")
    guest.attach(disks.ram("xvdb", "16M"))
    neighbour.attach(disks.ram("xvdb", "48M"))
    guest.fill("/dev/xvdb", 16)
    measure(lab, guest, "alone")
    for what, command in [("a guest that only computes", SPIN), ("a guest's flood", FLOOD)]:
        neighbour.sh("touch /tmp/more")
        running = neighbour.start(command)
        measure(lab, guest, f"beside {what}")
        neighbour.sh("rm /tmp/more")
        if said := running.wait().strip():
            lab.note(f"{what}: {said}")
    for each in (guest, neighbour):
        each.detach("xvdb")


@scenario(limit=300, group="all")
def a_hostile_neighbour(lab: Lab):
    """A guest's 4 KiB reads go on beside storms of events, of requests and of xenstore writes."""
    guest = lab.guest()
    guest.attach(disks.ram("xvdb", "16M"))
    guest.fill("/dev/xvdb", 16)
    measure(lab, guest, "alone")
    for kind in ("event_storm", "full_rings", "state_flood"):
        with hostile(lab, 1, "--kinds", kind):
            measure(lab, guest, f"beside {kind}")
    guest.detach("xvdb")
