"""Granary beside Linux' blkback, measured (scripts/bench, docs/benchmarks.md). Nothing here is a verdict."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace

from ..bench.backends import (
    DISK_MIB,
    LINUX_NAME,
    NR_DISKS,
    Backend,
    GranaryOver,
    InDom0,
    InDom0Over,
    LinuxDriver,
    LinuxOver,
    OfGranary,
    OfLinux,
    OfQemu,
)
from ..bench.cases import CASES, MIB, Case
from ..bench.goals import NVME, UPSTREAM
from ..bench.results import GRANARY, Fact, Sample
from ..dom0 import disks, names, pci
from ..dom0.domain import Granary, Guest, NvmeGranary
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, Running, Stuck, domains, eventually, expect, run, xenstore, xl
from ..meters.cpu import cpu_ns
from ..meters.trace import traced
from .passthrough import controller
from .upstream import UP

# Routines that CPUID does not choose here. `rep movsb` is none to be used under an emulator.
OTHER_ROUTINES = ["u64"]
# Of its requests, how many a case is traced for: each leaves a few records.
TRACED = 0.1
SMALL_DISK_MIB = 8


# What the guest does for itself, whoever serves it, hides what is measured: a scheduler, looking for requests
# to merge with, statistics.
BARE_QUEUE = """
cd /sys/block/{vdev}/queue
echo none > scheduler && echo 2 > nomerges && echo 0 > iostats && echo 0 > add_random"""

# What busybox' dd says of the time is too coarse.
DD = """
now() {{ sed -n 's/^now at \\([0-9]*\\) nsecs/\\1/p' /proc/timer_list; }}
now
dd if={device} of=/dev/null bs={bytes} count={count} iflag=direct 2> /dev/null || exit 1
now"""


def load(guest: Guest, vdev: str, case: Case, seed: int) -> tuple[int, float]:
    """Runs a case; its requests and the seconds they took."""
    device = f"/dev/{vdev}"
    if case.by_dd:
        nr_requests = min(case.count, DISK_MIB)
        said = guest.sh(DD.format(device=device, bytes=case.request_bytes, count=nr_requests), limit=600)
        begin, end = map(int, said.split())
        return nr_requests, (end - begin) / 1e9
    words = f"--op {case.operation} --pattern {case.pattern} --size {case.request_bytes} --depth {case.depth}"
    measured = guest.io(f"latency --device {device} {words} --count {case.count} --seed {seed}", limit=600)
    return measured["bytes"] // case.request_bytes, measured["seconds"]


def measure(guest: Guest, vdev: str, backend: Backend, case: Case, seed: int, *, persistent: bool) -> Sample:
    """One sample. Tracing costs instructions, so that VM entries are counted in a load of their own."""
    before = cpu_ns(backend.domid)
    nr_requests, seconds = load(guest, vdev, case, seed)
    instructions = (cpu_ns(backend.domid) - before) / nr_requests
    bytes_a_second = nr_requests * case.request_bytes / seconds
    figures = {
        "iops": nr_requests / seconds,
        "mib_per_s": bytes_a_second / MIB,
        "instructions": instructions,
        "copy_instructions": backend.copy_instructions(persistent=persistent) * case.request_bytes / 4096,
    }
    with traced() as counts:
        nr_traced, _ = load(guest, vdev, replace(case, count=max(1, int(case.count * TRACED))), seed)
    counted = counts[backend.domid]
    figures["hypercalls"] = counted.hypercalls / nr_traced
    # dom0 is a PV guest: it enters no VM.
    if backend.domid:
        figures["vm_entries"] = counted.entries / nr_traced
    return Sample(backend.name, persistent, case.name, figures)


@contextmanager
def attached(guest: Guest, backends: list[Backend], *, persistent: bool) -> Iterator[dict[str, str]]:
    """The guest's vdev for each backend, every block of it written."""
    guest.sh(f"echo {'Y' if persistent else 'N'} > /sys/module/xen_blkfront/parameters/feature_persistent")
    vdevs = {backend.name: f"xvd{chr(ord('b') + number)}" for number, backend in enumerate(backends)}
    for backend in backends:
        backend.attach(guest, vdevs[backend.name])
        guest.sh(BARE_QUEUE.format(vdev=vdevs[backend.name]))
        # So that all pages are there, and as many grants as any case needs.
        for operation in ("write", "read"):
            guest.io(f"latency --device /dev/{vdevs[backend.name]} --op {operation} --pattern sequential --size {MIB} --depth 4 --count {2 * DISK_MIB}", 600)
    yield vdevs
    for backend in backends:
        backend.detach(guest, vdevs[backend.name])


BACKENDS: dict[str, Callable[[Guest], Backend]] = {
    GRANARY: lambda _: OfGranary(),
    OfLinux.name: lambda _: OfLinux(),
    InDom0.name: lambda _: InDom0(),
    OfQemu.name: OfQemu,
}
FORCED = [f"{GRANARY} ({routine})" for routine in OTHER_ROUTINES]
GRANTS = {"persistent": True, "not persistent": False}


@scenario(limit=24 * 3600, group="bench")
def side_by_side(lab: Lab):
    """Every case on every backend, again and again in turns.

    `--set repetitions=N` (3), `--set scale=X` of each case's requests (1), and names between semicolons:
    `only-cases`, `only-backends` ("Granary" is its default routine), `only-grants` ("persistent").
    """
    scale = float(lab.settings.get("scale", 1))
    repetitions = int(lab.settings.get("repetitions", 3))
    cases = [replace(case, count=max(1, int(case.count * scale))) for case in CASES if only(lab, "cases", [case.name])]
    guest = Guest.create("bench")
    say_versions(lab, guest)
    backends = [BACKENDS[name](guest) for name in only(lab, "backends", BACKENDS)]
    # Without persistent grants it is the hypervisor that copies.
    forced: list[Backend] = [OfGranary(routine) for routine, name in zip(OTHER_ROUTINES, FORCED) if name in only(lab, "backends", FORCED)]
    for grants in only(lab, "grants", GRANTS):
        measured = backends + (forced if GRANTS[grants] else [])
        with attached(guest, measured, persistent=GRANTS[grants]) as vdevs:
            for repetition, case, backend in itertools.product(range(1, repetitions + 1), cases, measured):
                sample = measure(guest, vdevs[backend.name], backend, case, repetition, persistent=GRANTS[grants])
                lab.events.send("sample", **asdict(sample))
    guest.shutdown()
    for backend in backends + forced:
        backend.destroy()


# Larger ones say nothing that these do not.
CASES_OF_A_DEVICE = [case for case in CASES if case.request_bytes < MIB]


def one_by_one(lab: Lab, makers: list[Callable[[], AbstractContextManager[Backend]]]) -> None:
    """Measures backends of which only one can be there at a time."""
    guest = lab.guest()
    for maker in makers:
        with maker() as backend, attached(guest, [backend], persistent=True) as vdevs:
            for repetition, case in itertools.product(range(1, int(lab.settings.get("repetitions", 3)) + 1), CASES_OF_A_DEVICE):
                sample = measure(guest, vdevs[backend.name], backend, case, repetition, persistent=True)
                lab.events.send("sample", **asdict(sample))


@contextmanager
def ended(backend: Backend) -> Iterator[Backend]:
    """A backend that is destroyed in the end."""
    yield backend
    backend.destroy()


@contextmanager
def dom0_over_nvme() -> Iterator[Backend]:
    controller().take_back()
    with pci.dom0s_own_driver("nvme0n1") as device:
        yield InDom0Over(NVME, device)


@scenario(limit=24 * 3600, group="bench", machine="passthrough")
def over_nvme(lab: Lab):
    """The smaller cases on an NVMe namespace, by whoever has the controller in turns.

    `--set repetitions=N` (3).
    """
    controller()
    one_by_one(
        lab,
        [
            lambda: ended(GranaryOver(NVME, NvmeGranary.create(), "nvme0n1")),
            lambda: ended(LinuxOver(NVME, LinuxDriver.create_over_nvme(), "/dev/nvme0n1")),
            dom0_over_nvme,
        ],
    )


@scenario(limit=24 * 3600, group="bench")
def over_an_upstream_disk(lab: Lab):
    """The smaller cases on a disk that dom0's blkback serves to the backend.

    `--set repetitions=N` (3).
    """
    InDom0()
    upstream = disks.blkback("xvdb", "/dev/ram0")
    one_by_one(
        lab,
        [
            lambda: ended(GranaryOver(UPSTREAM, Granary.create("granary-upstream", disk=[str(upstream)], cmdline=UP), "up")),
            lambda: ended(LinuxOver(UPSTREAM, LinuxDriver.create_over(upstream), "/dev/xvdb")),
        ],
    )


def only(lab: Lab, what: str, known: Iterable[str]) -> list[str]:
    """Those of the names that `--set only-WHAT=` has, all without it."""
    wanted = lab.settings.get(f"only-{what}")
    return [name for name in known if wanted is None or name in wanted.split(";")]


def say_versions(lab: Lab, guest: Guest) -> None:
    info = dict(line.split(":", 1) for line in xl("info").expect(0).output.splitlines() if ":" in line)
    by_name = {name.strip(): text.strip() for name, text in info.items()}
    lab.events.send("version", name="Xen", text=by_name["xen_version"])
    lab.events.send("version", name="Linux", text=guest.sh("uname -r"))


def fact(lab: Lab, backend: str, name: str, value: float) -> None:
    lab.events.send("fact", **asdict(Fact(backend, name, value)))


MAKERS: dict[str, Callable[[], OfGranary | OfLinux]] = {GRANARY: OfGranary, OfLinux.name: OfLinux}


@scenario(limit=3600, group="bench")
def start(lab: Lab):
    """From `xl create` of a backend to the first request that it served."""
    guest = lab.guest()
    fact(lab, GRANARY, "image_bytes", names.GRANARY_IMAGE.stat().st_size)
    fact(lab, OfLinux.name, "image_bytes", int(names.DRIVER_PACKED_BYTES.read_text()))
    for _ in range(3):
        for name, make in MAKERS.items():
            begin = time.monotonic()
            backend = make()
            backend.attach(guest, "xvdb")
            guest.sh("dd if=/dev/xvdb of=/dev/null bs=4k count=1 iflag=direct")
            fact(lab, name, "create_to_first_request_s", time.monotonic() - begin)
            backend.detach(guest, "xvdb")
            backend.destroy()
        fact(lab, GRANARY, "own_start_instructions", own_start(guest))


def own_start(guest: Guest) -> int:
    """The instructions of a Granary from its first one to InitWait of a disk that waits for it."""
    granary = Granary.create_paused("granary-starting")
    attach = Running("xl", "block-attach", guest.name, str(disks.ram("xvdb", "1M", backend=granary.name)))
    state = f"{granary.device(guest, 'xvdb')}/state"
    eventually("the toolstack made the backend directory", lambda: xenstore.read(state) == "1")
    xl("unpause", granary.name).expect(0)
    eventually("InitWait", lambda: xenstore.read(state) != "1", poll=0.001)
    instructions = cpu_ns(granary.domid)
    attach.wait().expect(0)
    granary.wait_ready()
    guest.detach("xvdb")
    granary.shutdown()
    return instructions


@scenario(limit=3600, group="bench")
def idle(lab: Lab):
    """What a backend does with four connected disks that nobody uses, and what one of them takes."""
    guest = lab.guest()
    vdevs = ["xvdb", "xvdc", "xvdd", "xvde"]
    expect("disks of a Linux backend", len(vdevs), NR_DISKS)
    for name, make in MAKERS.items():
        backend = make()
        taken_kib = backend.taken_kib()
        for vdev in vdevs:
            backend.attach(guest, vdev)
        fact(lab, name, "connected_vbd_kib", (backend.taken_kib() - taken_kib) / len(vdevs))
        for _ in range(3):
            before, begin = cpu_ns(backend.domid), time.monotonic()
            time.sleep(10)
            fact(lab, name, "idle_instructions_per_s", (cpu_ns(backend.domid) - before) / (time.monotonic() - begin))
        for vdev in vdevs:
            backend.detach(guest, vdev)
        backend.destroy()


@scenario(limit=7200, group="bench")
def smallest_memory(lab: Lab):
    """The smallest memory= with which a backend serves a disk of 8 MiB, all of it written."""
    fact(lab, GRANARY, "smallest_memory_mib", _smallest(lab, _granary_serves, range(14, 7, -1)))
    fact(lab, OfLinux.name, "smallest_memory_mib", _smallest(lab, _linux_serves, range(112, 31, -8)))


def _smallest(lab: Lab, serves: Callable[[Guest, int], None], sizes: range) -> int:
    """The last of falling sizes that works."""
    guest = lab.guest()
    works = 0
    for mib in sizes:
        try:
            serves(guest, mib)
        except (Mismatch, Stuck) as failure:
            lab.note(f"memory={mib}: {str(failure).splitlines()[0]}")
            break
        works = mib
    else:
        raise Mismatch(f"even memory={sizes[-1]} is enough, and nothing smaller was tried")
    if not works:
        raise Mismatch(f"not even memory={sizes[0]} is enough")
    guest.try_detach("xvdb")
    for domain in domains():
        if domain.name in (_SMALL_GRANARY, LINUX_NAME):
            run("xl", "destroy", domain.name)
    return works


_SMALL_GRANARY = "granary-small"


def _granary_serves(guest: Guest, mib: int) -> None:
    granary = Granary.create(_SMALL_GRANARY, memory=mib)
    guest.attach(disks.ram("xvdb", f"{SMALL_DISK_MIB}M", backend=granary.name))
    guest.verify("/dev/xvdb", SMALL_DISK_MIB)
    guest.detach("xvdb")
    granary.shutdown()


def _linux_serves(guest: Guest, mib: int) -> None:
    linux = OfLinux(mib, SMALL_DISK_MIB)
    linux.attach(guest, "xvdb")
    guest.verify("/dev/xvdb", SMALL_DISK_MIB)
    linux.detach(guest, "xvdb")
    linux.destroy()
