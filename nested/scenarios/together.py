"""Several disks and several guests at once."""

import itertools
import json
import re
from contextlib import ExitStack

from ..dom0 import disks, names
from ..dom0.domain import Granary, devid
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, expect, run
from ..frontend.device import LIBXL_NODES, Device
from ..frontend.frontend import Frontend, Refused
from ..frontend.process import Process
from ..frontend.xenstore import Xenstore

# What we may add to libxl's nodes, so that 32 disks fit an unprivileged domain's 1000 (docs/toolstack.md).
MAX_OWN_NODES = 14
# More than the quota has room for, whatever a disk takes.
MAX_EXTRA_DISKS = 16


@scenario(limit=180, group="all")
def two_granary_disks_beside_blkback(lab: Lab):
    """One guest uses two Granary disks and one of dom0's blkback at the same time."""
    run("truncate", "-s", "32M", "/tmp/beside.img").expect(0)
    guest = lab.guest()
    attached = [disks.ram("xvdb", "32M"), disks.ram("xvdc", "32M"), disks.blkback("xvdd", "/tmp/beside.img")]
    for disk in attached:
        guest.attach(disk)
    for command in [guest.start_verify(f"/dev/{disk.vdev}", 24) for disk in attached]:
        command.wait()
    for disk in attached:
        guest.detach(disk.vdev)


@scenario(limit=180, group="all")
def two_guests_at_once(lab: Lab):
    """Two guests write and read a disk each at the same time; neither sees the other's data."""
    guests = [lab.guest("one"), lab.guest("two")]
    for guest in guests:
        guest.attach(disks.ram("xvdb", "48M"))
    for command in [guest.start_verify("/dev/xvdb", 40) for guest in guests]:
        command.wait()
    sums = [guest.checksum("/dev/xvdb", 40) for guest in guests]
    expect("the two disks differ", sums[0] != sums[1], True)
    for guest in guests:
        guest.detach("xvdb")


@scenario(limit=900)
def disks_32_over_8_frontends(lab: Lab):
    """32 disks of 8 frontends work at once; one past the xenstore quota is refused, and harms none."""
    granary = lab.granary
    before = owned(granary)
    numbers = itertools.count()
    with ExitStack() as stack:
        work = Work(lab, stack, nr_guests=2, nr_processes=6, disks_each=4, numbers=numbers)
        work.verify()
        count_nodes(lab, granary, before, owned(granary), work.nr_disks)

        store = stack.enter_context(Xenstore())
        extra: list[Frontend] = []
        mark = granary.console.mark()
        refused = attach_until_refused(store, granary, numbers, extra)
        lab.figure("disks before one was refused", work.nr_disks + len(extra), "")
        says = names.vbd_line("cannot be served: .*quota", 0, str(refused.device.devid))
        granary.console.wait(says, since=mark)
        lines = granary.console.matching(names.vbd_line("cannot ", 0), mark)
        for line in lines:
            lab.note(f"console: {line}")
        expect("lines of a disk that cannot be served", len(lines), 1)
        work.verify()

        refused.detach()
        extra.pop().detach()
        again = lab_frontend(store, granary, next(numbers))
        extra.append(again)
        again.attach("ram,size=1M")
        again.connect()
        again.verify(seed=again.device.devid, nr_pages=16)
        for frontend in extra:
            frontend.detach()
        work.detach()


def attach_until_refused(store: Xenstore, granary: Granary, numbers: itertools.count, connected: list[Frontend]) -> Frontend:
    """Connects disks until one is refused, which it returns."""
    for _ in range(MAX_EXTRA_DISKS):
        frontend = lab_frontend(store, granary, next(numbers))
        try:
            frontend.attach("ram,size=1M")
        except Refused:
            return frontend
        frontend.connect()
        connected.append(frontend)
    raise Mismatch(f"{MAX_EXTRA_DISKS} more disks, and none was refused")


def lab_frontend(store: Xenstore, granary: Granary, number: int, frontend: int = 0) -> Frontend:
    """A frontend in dom0, whose disk is told from others by a number."""
    return Frontend(store, Device(granary.domid, frontend, 1 << 28 | number << 8))


class Work:
    """Disks of Linux guests and of processes in dom0, each of which checks data of its own."""

    def __init__(self, lab: Lab, stack: ExitStack, nr_guests: int, nr_processes: int, disks_each: int, numbers: itertools.count):
        self.nr_disks = (nr_guests + nr_processes) * disks_each
        self._lab = lab
        self._rounds = itertools.count(1)
        self._vdevs = [f"xvd{letter}" for letter in "bcdefghi"[:disks_each]]
        self._guests = [lab.guest(name) for name in ["one", "two"][:nr_guests]]
        self._processes = []
        for number in range(1, nr_processes + 1):
            store = stack.enter_context(Xenstore())
            serve = Several([lab_frontend(store, lab.granary, next(numbers), number) for _ in range(disks_each)])
            self._processes.append(stack.enter_context(Process(f"frontend {number}", serve)))
        for process in self._processes:
            process.ask("attach", "ram,size=1M")
        for guest in self._guests:
            for vdev in self._vdevs:
                guest.attach(disks.ram(vdev, "1M"))
        self._answers()

    def verify(self) -> None:
        """All of them at once."""
        seed = next(self._rounds)
        for process in self._processes:
            process.ask("verify", seed)
        loads = [
            guest.start_io(f"verify --device /dev/{vdev} --count 100 --size 16384 --seed {guest.domid << 16 | devid(vdev)}")
            for guest in self._guests
            for vdev in self._vdevs
        ]
        self._answers()
        worst = [json.loads(load.wait()) for load in loads]
        self._lab.figure("a guest's longest request", max(each[what]["max_ns"] for each in worst for what in ("reads", "writes")) / 1e6, "ms")

    def detach(self) -> None:
        for process in self._processes:
            process.ask("detach")
        for guest in self._guests:
            for vdev in self._vdevs:
                guest.detach(vdev)
        self._answers()

    def _answers(self) -> None:
        for process in self._processes:
            process.answer()


class Several:
    """One frontend's disks, in its process."""

    def __init__(self, frontends: list[Frontend]):
        self._frontends = frontends

    def __call__(self, what: str, *words) -> None:
        for frontend in self._frontends:
            match what:
                case "attach":
                    frontend.attach(*words)
                    frontend.connect()
                case "verify":
                    frontend.verify(words[0] << 32 | frontend.device.devid, 48)
                case "detach":
                    frontend.detach()


def owned(granary: Granary) -> set[str]:
    """The xenstore nodes that count as a Granary's own, libxl's in its backend directories included."""
    listed = run("xenstore-ls", "-f", "-p", "/local/domain").expect(0).output.splitlines()
    return {line.partition(" = ")[0] for line in listed if re.search(rf"\(.{granary.domid}\b[^)]*\)$", line)}


def count_nodes(lab: Lab, granary: Granary, before: set[str], after: set[str], nr_disks: int) -> None:
    """Reports and checks how many nodes of its own it has for each disk."""
    device = re.compile(rf"{granary.home}/backend/vbd/(\d+/\d+)(?:/(.*))?$")
    own, libxl, elsewhere = {}, 0, 0
    for path in after - before:
        if found := device.match(path):
            vbd, name = found.groups()
            if name is None or name in LIBXL_NODES:
                libxl += 1
            else:
                own[vbd] = own.get(vbd, 0) + 1
        else:
            elsewhere += 1
    expect("disks that have nodes", len(own), nr_disks)
    lab.figure("nodes of libxl's a disk", libxl / nr_disks, "")
    lab.figure("nodes of Granary's own a disk, at most", max(own.values()), "")
    lab.figure("nodes of its own elsewhere, of all of them", elsewhere, "")
    lab.figure("nodes in all that count as Granary's", len(after), "")
    expect("at most 14 of its own", max(own.values()) + -(-elsewhere // nr_disks) <= MAX_OWN_NODES, True)
