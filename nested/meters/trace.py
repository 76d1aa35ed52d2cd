"""What domains do that costs, out of Xen's own trace: VM entries and exits, and hypercalls.

Whose they are, the trace does not say: it says who runs on a pCPU from when on. A record that is left
out would make figures too low, so every doubt raises.
"""

import struct
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from ..dom0.xen import Running, Stuck, eventually

BUFFER_PAGES = 1024
"""Of each pCPU. Xen allocates them at the first tracing since it booted, and keeps to that size.

xentrace is woken when a buffer is half full: dom0 then has the time that 50,000 records take, or more.
"""

# Classes and subclasses of trace.h.
_SCHED_MIN, _HVM_ENTRYEXIT, _HVM_HANDLER, _PV_ENTRY = 0x21000, 0x81000, 0x82000, 0x201000


class Detail(Enum):
    """What is traced. A record takes Xen some hundred instructions, in the time of the domain that it is about.

    Xen looks at a mask's classes and its subclasses apart, so a mask admits each of its subclasses in
    each of its classes. Those of COUNTS are all their class' first. HVM_HANDLER is the second, which is
    also that of the scheduler's own thoughts and of the calls in multicalls.
    """

    COUNTS = _SCHED_MIN | _HVM_ENTRYEXIT | _PV_ENTRY
    """All of `Counts` but the names of HVM and PVH domains' hypercalls, and what is in multicalls."""

    NAMES = COUNTS | _HVM_HANDLER
    """All of it, in about three times as many records."""


class LostRecords(Exception):
    """Xen had no room for some records."""


class DamagedTrace(Exception):
    """Something is not as xentrace writes it."""


@dataclass
class Counts:
    """What one domain did while it was traced."""

    entries: int = 0
    """VM entries; a PV domain has none."""

    exits: Counter[str] = field(default_factory=Counter)
    """VM exits, by reason."""

    hypercalls: int = 0
    """Hypercalls. One that Xen interrupts and continues is another one; those inside a multicall are none."""

    by_name: Counter[str] = field(default_factory=Counter)
    """Those hypercalls by their names in xen.h, as far as `Detail` has them."""

    in_multicalls: Counter[str] = field(default_factory=Counter)
    """What multicalls called, with Detail.NAMES."""

    def add(self, other: "Counts") -> None:
        self.entries += other.entries
        self.exits += other.exits
        self.hypercalls += other.hypercalls
        self.by_name += other.by_name
        self.in_multicalls += other.in_multicalls


@contextmanager
def traced(detail: Detail = Detail.COUNTS) -> Iterator[dict[int, Counts]]:
    """Traces all domains during a `with` block. When that has ended, the dict has what each did, by domid.

    A domain that did nothing has counts of nothing. Only one tracing at a time. Raises LostRecords if Xen
    had to leave records out: the figures would be too low.
    """
    domains: dict[int, Counts] = defaultdict(Counts)
    with tempfile.TemporaryDirectory(prefix="trace-") as directory:
        path = Path(directory) / "records"
        xentrace = _start(path, detail)
        try:
            yield domains
        finally:
            # It reads the buffers, ends the tracing in Xen, and reads what came last.
            xentrace.terminate()
            ended = xentrace.wait()
        ended.expect(0)
        with path.open("rb") as stream:
            domains.update(count(stream))


def count(stream: BinaryIO) -> dict[int, Counts]:
    """What each domain did, by domid, according to what xentrace wrote."""
    domains: dict[int, Counts] = defaultdict(Counts)
    processors: dict[int, _Processor] = defaultdict(lambda: _Processor(domains))
    while window := stream.read(_WINDOW.size):
        if len(window) < _WINDOW.size:
            raise DamagedTrace("the trace ends in the header of a window")
        header, cpu, size = _WINDOW.unpack(window)
        if header != _CPU_CHANGE:
            raise DamagedTrace(f"a window begins with {header:#x}")
        for event, extra in _records(stream.read(size), size):
            processors[cpu].take(event, extra)
    for cpu, processor in processors.items():
        if processor.unattributed != Counts():
            raise DamagedTrace(f"no record says who ran on pCPU {cpu} at first: {processor.unattributed}")
    return domains


def _start(path: Path, detail: Detail) -> Running:
    """xentrace, once it traces. What was in the buffers from an earlier tracing is discarded."""
    xentrace = Running("xentrace", "-D", "-e", hex(detail.value), "-S", str(BUFFER_PAGES), str(path))
    try:
        # What it writes first was traced since: dom0's own hypercalls, if nothing else.
        eventually("xentrace has written records", lambda: path.exists() and path.stat().st_size > 0)
    except Stuck as stuck:
        xentrace.terminate()
        raise Stuck(f"{stuck}; it said: {xentrace.wait().output.strip()}") from None
    return xentrace


# What xentrace writes before each pCPU's records (struct cpu_change_record): a record's header, the
# pCPU, and how many bytes of records follow.
_WINDOW = struct.Struct("<III")

# Events of trace.h.
_LOST_RECORDS = 0x1F001
_CPU_CHANGE = 0x1F003 | 2 << 28
_RUNSTATE_CHANGE, _CONTINUE_RUNNING = 0x21001, 0x21002
_VMENTRY, _VMMCALL = 0x81001, 0x82012
_PV_HYPERCALL, _SUBCALL = 0x20100D, 0x20200E

# With the instruction pointer in 32 bits or in 64. Xen 4.17 has the two for SVM and VMX alike, 4.20 the others for SVM.
_VMEXITS = {0x81002, 0x81102, 0x81003, 0x81103}

# trace_runstate_change of sched/core.c: from which of vcpu.h's runstates, and to which.
_FROM, _TO, _RUNNING = 0x300, 0x30, 0

# enum VMEXIT_EXITCODE of svm/vmcb.h; the others go by their number.
_EXITS = {
    0x60: "INTR", 0x64: "VINTR", 0x72: "CPUID", 0x77: "PAUSE", 0x78: "HLT", 0x7B: "IOIO", 0x7C: "MSR", 0x81: "VMMCALL", 0x400: "NPF",
}  # fmt: skip

# __HYPERVISOR_* of xen.h, by number.
_HYPERCALLS = [
    "set_trap_table", "mmu_update", "set_gdt", "stack_switch", "set_callbacks", "fpu_taskswitch", "sched_op_compat",
    "platform_op", "set_debugreg", "get_debugreg", "update_descriptor", "11", "memory_op", "multicall",
    "update_va_mapping", "set_timer_op", "event_channel_op_compat", "xen_version", "console_io", "physdev_op_compat",
    "grant_table_op", "vm_assist", "update_va_mapping_otherdomain", "iret", "vcpu_op", "set_segment_base", "mmuext_op",
    "xsm_op", "nmi_op", "sched_op", "callback_op", "xenoprof_op", "event_channel_op", "physdev_op", "hvm_op", "sysctl",
    "domctl", "kexec_op", "tmem_op", "argo_op", "xenpmu_op", "dm_op", "hypfs_op",
]  # fmt: skip

# The arguments' flags are above it (TRC_PV_HYPERCALL_V2 of trace.h).
_HYPERCALL_NUMBER = 0xFFFFF


class _Processor:
    """Follows one pCPU's records, and who runs there."""

    def __init__(self, domains: dict[int, Counts]):
        self._domains = domains
        self.unattributed = Counts()
        """Of whoever ran at first, until a record says who that was."""
        self._running = self.unattributed

    def take(self, event: int, extra: tuple[int, ...]) -> None:
        if event == _VMENTRY:
            self._running.entries += 1
        elif event in _VMEXITS:
            reason = _EXITS.get(extra[0], f"{extra[0]:#x}")
            self._running.exits[reason] += 1
            if reason == "VMMCALL":
                self._running.hypercalls += 1
        elif event & ~(_FROM | _TO) == _RUNSTATE_CHANGE:
            # Others than the running vCPU may change too, as one that is woken: they do not run, here or at all.
            if event & _FROM == _RUNNING:
                self._ran(extra[0])
            elif event & _TO == _RUNNING:
                self._running = self._domain(extra[0])
        elif event == _CONTINUE_RUNNING:
            self._ran(extra[0])
        elif event == _PV_HYPERCALL:
            self._running.hypercalls += 1
            self._running.by_name[_hypercall(extra[0])] += 1
        elif event == _VMMCALL:
            self._running.by_name[_hypercall(extra[0])] += 1
        elif event == _SUBCALL:
            self._running.in_multicalls[_hypercall(extra[0])] += 1
        elif event == _LOST_RECORDS:
            raise LostRecords(f"Xen left out {extra[0]} records: {BUFFER_PAGES} pages of buffers are too few")

    def _ran(self, vcpu: int) -> None:
        """Says who ran here up to now."""
        domain = self._domain(vcpu)
        if self._running is self.unattributed:
            domain.add(self.unattributed)
            self.unattributed = Counts()
        self._running = domain

    def _domain(self, vcpu: int) -> Counts:
        """Of the domid above a vCPU's number."""
        return self._domains[vcpu >> 16]


def _hypercall(word: int) -> str:
    number = word & _HYPERCALL_NUMBER
    return _HYPERCALLS[number] if number < len(_HYPERCALLS) else str(number)


def _records(data: bytes, size: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The events in a window's bytes, and their extra words (struct t_rec of trace.h)."""
    if len(data) < size or size % 4:
        raise DamagedTrace(f"a window of {size} bytes has {len(data)}")
    words = struct.unpack(f"<{size // 4}I", data)
    end = 0
    while end < len(words):
        header = words[end]
        has_cycles = header >> 31
        begin = end + (3 if has_cycles else 1)
        end = begin + (header >> 28 & 7)
        if end > len(words):
            raise DamagedTrace(f"record {header:#x} goes past its window")
        yield header & 0x0FFF_FFFF, words[begin:end]
