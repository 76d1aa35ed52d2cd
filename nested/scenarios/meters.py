"""What serving a disk costs the domain that serves it."""

from ..dom0 import disks
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import expect
from ..meters.cpu import cpu_ns
from ..meters.trace import Counts, Detail, traced

NR_READS = 200
READS = f"latency --device /dev/xvdb --op read --count {NR_READS}"


def report(lab: Lab, what: str, detail: Detail, counts: Counts) -> None:
    lab.figure(f"{what}, {detail.name}: VM entries a request", counts.entries / NR_READS, "entries")
    lab.figure(f"{what}, {detail.name}: hypercalls a request", counts.hypercalls / NR_READS, "hypercalls")
    for name, found in [("exits", counts.exits), ("hypercalls", counts.by_name), ("in multicalls", counts.in_multicalls)]:
        lab.note(f"{what}, {detail.name}: {name}: " + ", ".join(f"{key} {number}" for key, number in found.most_common(12)))


@scenario(limit=180, group="all")
def count_what_a_domain_does(lab: Lab):
    """A request's instructions, VM entries and hypercalls are counted in the domain that serves it."""
    guest, granary = lab.guest(), lab.granary
    guest.attach(disks.ram("xvdb", "16M"))
    # By then the guest has looked for partitions, and its grants are mapped.
    guest.io(READS)

    before = cpu_ns(granary.domid)
    guest.io(READS)
    ran_ns = cpu_ns(granary.domid) - before
    lab.figure("Granary: CPU time a request", ran_ns / NR_READS, "ns")
    expect("it ran", ran_ns > 0, True)

    for detail in Detail:
        with traced(detail) as counts:
            guest.io(READS)
        served = counts[granary.domid]
        report(lab, "Granary", detail, served)
        report(lab, "dom0", detail, counts[0])
        expect("it was entered", served.entries > 0, True)
        expect("a hypercall leaves it, and it is entered again", served.entries >= served.hypercalls > 0, True)
        # The span may begin or end while its vCPU runs, or in the middle of an exit.
        expect("every entry ends in an exit", abs(served.entries - served.exits.total()) <= 1, True)
        expect("dom0 is PV: it has no entries, and makes hypercalls", (counts[0].entries, counts[0].hypercalls > 0), (0, True))
        if detail == Detail.NAMES:
            expect("hypercalls with names", served.by_name.total(), served.hypercalls)
    guest.detach("xvdb")
