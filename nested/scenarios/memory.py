"""How little Granary needs: memory, page tables, and time to start."""

from ..dom0 import disks, paging
from ..dom0.domain import Granary, Guest
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, Running, Stuck, domains, eventually, expect, xenstore, xl


def serves_one_mib(lab: Lab, memory_mib: int) -> None:
    """Boots a Granary of this size beside the other, and uses all of a 1 MiB disk of it."""
    granary = Granary.create("granary-small", memory=memory_mib)
    guest = lab.guest()
    guest.attach(disks.ram("xvdb", "1M", backend=granary.name))
    guest.verify("/dev/xvdb", 1)
    guest.detach("xvdb")
    lab.figure(f"peak heap with memory={memory_mib}", granary.usage().heap_peak_bytes / 1024, "KiB")
    granary.shutdown()


@scenario(limit=120)
def four_mib(lab: Lab):
    """With memory=4 Granary boots and serves a 1 MiB disk."""
    serves_one_mib(lab, 4)


@scenario(limit=60)
def first_init_wait(lab: Lab):
    """A Granary that starts with a disk waiting for it gets to InitWait."""
    guest = lab.guest()
    granary = Granary.create_paused("granary-starting")
    attach = Running("xl", "block-attach", guest.name, str(disks.ram("xvdb", "1M", backend=granary.name)))
    state = f"{granary.device(guest, 'xvdb')}/state"
    eventually("the toolstack made the backend directory", lambda: xenstore.read(state) == "1")
    xl("unpause", granary.name).expect(0)
    seconds = eventually("InitWait", lambda: xenstore.read(state) != "1", poll=0.001)
    lab.figure("unpause to InitWait, at most", seconds * 1000, "ms")
    attach.wait().expect(0)
    granary.wait_ready()
    guest.detach("xvdb")
    granary.shutdown()


# What one page table maps.
PAGES_OF_A_TABLE = 512


def _many_segments(guest: Guest, granary: Granary) -> int:
    """Has a guest use all the grants it can on its xvdb; how many of them are mapped then."""
    writes = [guest.start(f"dd if=/dev/zero of=/dev/xvdb bs=1M count=6 seek={6 * nth} oflag=direct") for nth in range(8)]
    for write in writes:
        write.wait()
    guest.verify("/dev/xvdb", 32)
    vbd = granary.statistics(guest, "xvdb")
    expect("errors", vbd["errors"], 0)
    return vbd["mapped"]


@scenario(limit=180)
def no_page_table_to_be_had(lab: Lab):
    """Where Xen has no page table to map a grant with, Granary has the data copied."""
    guest = lab.guest()
    guest.attach(disks.ram("xvdb", "48M"))
    mapped = _many_segments(guest, lab.granary)
    guest.detach("xvdb")
    lab.figure("mapped", mapped, "pages")
    expect("more than a table's", mapped > PAGES_OF_A_TABLE, True)

    granary = Granary.create("granary-tables")
    guest.attach(disks.ram("xvdb", "48M", backend=granary.name))
    # Its ring is mapped, by a page table whose other entries will do for some of its data.
    paging.take_free_pages(granary.domid)
    mapped = _many_segments(guest, granary)
    lab.figure("mapped without page tables", mapped, "pages")
    expect("no more than a table's", 0 < mapped < PAGES_OF_A_TABLE, True)
    guest.detach("xvdb")
    granary.shutdown()


@scenario(limit=300, group="all")
def smallest(lab: Lab):
    """The smallest memory= that still serves a 1 MiB disk, down from 4."""
    works = 4
    for memory_mib in [3, 2, 1]:
        try:
            serves_one_mib(lab, memory_mib)
        except (Mismatch, Stuck) as failure:
            errors = [line for line in str(failure).splitlines() if "error" in line]
            lab.note(f"memory={memory_mib}: {(errors or [str(failure)])[0]}")
            lab.guest().try_detach("xvdb")
            if any(domain.name == "granary-small" for domain in domains()):
                xl("destroy", "granary-small")
            break
        works = memory_mib
    lab.figure("smallest memory=", works, "MiB")
