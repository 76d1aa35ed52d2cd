"""Tests of the meters that need no Xen."""

import errno
import io
import os
import struct
import tempfile
import unittest
from array import array
from collections import Counter
from pathlib import Path
from unittest import mock

from ..dom0 import domctl, paging
from ..dom0.xen import Mismatch, Stuck, eventually
from ..meters import trace
from ..meters.cpu import cpu_ns
from ..meters.trace import Counts, DamagedTrace, Detail, LostRecords, count, traced


class FakeXen:
    """Answers domctls of one interface version as do_domctl does."""

    def __init__(self, version: int, error: int = 0, domid: int = 7):
        self.asked: list[tuple[int, int, int, bytes]] = []
        self._version = version
        self._error = error
        self._domid = domid

    def __call__(self, buffer: array) -> None:
        operation, version, domid = struct.unpack_from("<IIH", buffer)
        self.asked.append((operation, version, domid, bytes(buffer[16:])))
        if version != self._version:
            raise OSError(errno.EACCES, "not my version")
        if self._error:
            raise OSError(self._error, "no")
        # xen_domctl_getdomaininfo begins at 16, and its cpu_time stands 56 bytes behind that.
        struct.pack_into("<H", buffer, 16, self._domid)
        struct.pack_into("<Q", buffer, 72, 123_456_789_012)


class Domctls(unittest.TestCase):
    def xen(self, version: int, **behaviour: int) -> FakeXen:
        xen = FakeXen(version, **behaviour)
        patched = mock.patch.object(domctl, "_hypercall", xen)
        patched.start()
        self.addCleanup(patched.stop)
        return xen

    def test_cpu_time_in_both_versions(self):
        for version, tries in [(0x15, 1), (0x17, 3)]:
            xen = self.xen(version)
            self.assertEqual(cpu_ns(7), 123_456_789_012)
            self.assertEqual([asked[:3] for asked in xen.asked], [(5, 0x15 + n, 7) for n in range(tries)])

    def test_the_next_domain_is_another(self):
        self.xen(0x15, domid=8)
        with self.assertRaisesRegex(Mismatch, "there is no domain 7"):
            cpu_ns(7)

    def test_no_domain_is_left(self):
        self.xen(0x17, error=errno.ESRCH)
        with self.assertRaisesRegex(Mismatch, "there is no domain 7"):
            cpu_ns(7)

    def test_another_error_is_xens(self):
        self.xen(0x15, error=errno.EPERM)
        with self.assertRaises(PermissionError):
            cpu_ns(7)

    def test_no_version_fits(self):
        self.xen(0x99)
        with self.assertRaisesRegex(RuntimeError, "none of the domctl interface's versions"):
            cpu_ns(7)

    def test_a_paging_pool_that_cannot_be_empty_is_as_small_as_can_be(self):
        xen = self.xen(0x15, error=errno.ENOMEM)
        paging.take_free_pages(3)
        ((operation, _, domid, argument),) = xen.asked
        self.assertEqual((operation, domid, argument[:16]), (10, 3, struct.pack("<IIII", 31, 0, 0, 0)))


CYCLES = 0x1_2345_6789
RUNNING, RUNNABLE, BLOCKED = 0, 1, 2
IDLE = 0x7FFF

ENTRY = struct.pack("<IQ", 0x8008_1001, CYCLES)


def record(event: int, *extra: int) -> bytes:
    """With cycles, as most are."""
    return struct.pack(f"<IQ{len(extra)}I", 1 << 31 | len(extra) << 28 | event, CYCLES, *extra)


def without_cycles(event: int, *extra: int) -> bytes:
    return struct.pack(f"<I{len(extra)}I", len(extra) << 28 | event, *extra)


def vm_exit(reason: int) -> bytes:
    """Of 64-bit code."""
    return record(0x81102, reason, 0x10_0000, 0)


def runstate(domid: int, old: int, new: int, vcpu: int = 0) -> bytes:
    return record(0x21001 | old << 8 | new << 4, domid << 16 | vcpu)


def switch(old: int, new: int) -> bytes:
    return runstate(old, RUNNING, BLOCKED) + runstate(new, RUNNABLE, RUNNING)


def window(cpu: int, *records: bytes) -> bytes:
    data = b"".join(records)
    return struct.pack("<III", 0x2001_F003, cpu, len(data)) + data


def counted(*windows: bytes) -> dict[int, Counts]:
    return count(io.BytesIO(b"".join(windows)))


class Traces(unittest.TestCase):
    def test_two_domains_take_turns(self):
        found = counted(
            # Domain 5 runs already.
            window(0, vm_exit(0x81), ENTRY, vm_exit(0x78), switch(5, IDLE), switch(IDLE, 6), ENTRY, vm_exit(0x60)),
            window(0, ENTRY, vm_exit(0x7B), switch(6, 5), ENTRY, ENTRY),
        )
        self.assertEqual(found[5], Counts(3, Counter(VMMCALL=1, HLT=1), hypercalls=1))
        self.assertEqual(found[6], Counts(2, Counter(INTR=1, IOIO=1)))
        self.assertEqual(found[IDLE], Counts())

    def test_each_pcpu_has_its_own_turns(self):
        found = counted(
            window(0, switch(0, 5), ENTRY),
            window(1, switch(0, 6), ENTRY, ENTRY),
            window(0, vm_exit(0x81)),
            window(1, vm_exit(0x400), vm_exit(0x7C)),
        )
        self.assertEqual(found[5], Counts(1, Counter(VMMCALL=1), hypercalls=1))
        self.assertEqual(found[6], Counts(2, Counter(NPF=1, MSR=1)))

    def test_two_vcpus_of_a_domain_are_counted_together(self):
        found = counted(window(0, switch(0, 5), ENTRY), window(1, switch(0, IDLE), runstate(5, RUNNABLE, RUNNING, vcpu=1), ENTRY))
        self.assertEqual(found[5].entries, 2)

    def test_who_is_woken_or_ready_does_not_run(self):
        found = counted(window(0, switch(IDLE, 5), runstate(6, BLOCKED, RUNNABLE), ENTRY))
        self.assertEqual((found[5].entries, found[6].entries), (1, 0))

    def test_who_goes_on_ran_before(self):
        found = counted(window(0, ENTRY, runstate(6, BLOCKED, RUNNABLE), record(0x21002, 5 << 16), ENTRY))
        self.assertEqual((found[5].entries, found[6].entries), (2, 0))

    def test_exits_of_every_xen_and_mode(self):
        kinds = [record(event, 0x81, 0) for event in [0x81002, 0x81102, 0x81003, 0x81103]]
        self.assertEqual(counted(window(0, switch(0, 5), *kinds))[5].exits, Counter(VMMCALL=4))

    def test_an_exit_without_a_name_goes_by_its_number(self):
        self.assertEqual(counted(window(0, switch(0, 5), vm_exit(0x4E)))[5].exits, Counter({"0x4e": 1}))

    def test_hypercalls_by_name(self):
        # grant_table_op with its arguments 0 and 2, a multicall with its argument 1, and one that xen.h does not name.
        pv = [record(0x20100D, 20 | 1 << 20 | 1 << 24, 5, 32), record(0x20100D, 13 | 1 << 22, 2), record(0x20100D, 48)]
        batched = [record(0x20200E, 32), record(0x20200E, 29 | 1 << 20, 3)]
        found = counted(window(0, *pv, *batched, switch(0, 5), vm_exit(0x81), without_cycles(0x82012, 29), ENTRY))
        self.assertEqual((found[0].hypercalls, found[0].by_name), (3, Counter({"grant_table_op": 1, "multicall": 1, "48": 1})))
        self.assertEqual(found[0].in_multicalls, Counter(event_channel_op=1, sched_op=1))
        self.assertEqual(found[5], Counts(1, Counter(VMMCALL=1), 1, Counter(sched_op=1)))

    def test_what_says_nothing_is_passed_over(self):
        # The end of a buffer, with cycles and without, and records of other kinds.
        others = [record(0x1F002, *[0xFFFF_FFFF] * 7), without_cycles(0x1F002), without_cycles(0x8200F), record(0x28006, 5, 0)]
        self.assertEqual(counted(window(0, switch(0, 5), *others, ENTRY))[5], Counts(1))

    def test_lost_records(self):
        lost = record(0x1F001, 12, 0, 0, 0)
        with self.assertRaisesRegex(LostRecords, "left out 12 records"):
            counted(window(0, switch(0, 5), ENTRY, lost, ENTRY))

    def test_a_truncated_file(self):
        whole = window(0, switch(0, 5)) + window(1, switch(0, 5), ENTRY)
        for nr_bytes, message in [
            (-1, "a window of 44 bytes has 43"),
            (-44, "a window of 44 bytes has 0"),
            (-45, "ends in the header of a window"),
        ]:
            with self.assertRaisesRegex(DamagedTrace, message):
                counted(whole[:nr_bytes])

    def test_a_record_past_its_window(self):
        cut = [vm_exit(0x81)[:-4], ENTRY[:-4], ENTRY[:-8]]
        for end in cut:
            with self.assertRaisesRegex(DamagedTrace, f"record {struct.unpack_from('<I', end)[0]:#x} goes past its window"):
                counted(window(0, switch(0, 5), end))

    def test_a_window_of_bytes(self):
        with self.assertRaisesRegex(DamagedTrace, "a window of 13 bytes has 13"):
            counted(window(0, ENTRY, b"\0"))

    def test_a_window_that_is_none(self):
        with self.assertRaisesRegex(DamagedTrace, "begins with 0x80081001"):
            counted(ENTRY)

    def test_somebody_whom_nothing_names(self):
        for records in [[ENTRY], [ENTRY, runstate(5, RUNNABLE, RUNNING), ENTRY]]:
            with self.assertRaisesRegex(DamagedTrace, "no record says who ran on pCPU 1 at first"):
                counted(window(0, switch(0, 5)), window(1, *records))


XENTRACE = """#!/bin/sh
echo "$@" > {directory}/asked
trap 'cat {directory}/late >> "$6"; exit {rc}' TERM
cat {directory}/early > "$6"
while :; do sleep 0.01; done
"""


class Tracing(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        patched = mock.patch.dict(os.environ, {"PATH": f"{self.directory}:{os.environ['PATH']}"})
        patched.start()
        self.addCleanup(patched.stop)
        self.xentrace(XENTRACE.format(directory=self.directory, rc=0))
        (self.directory / "early").write_bytes(window(0, switch(0, 5), ENTRY))
        (self.directory / "late").write_bytes(window(0, ENTRY))

    def xentrace(self, script: str) -> None:
        program = self.directory / "xentrace"
        program.write_text(script)
        program.chmod(0o755)

    def test_all_up_to_the_end_is_counted(self):
        with traced() as counts:
            self.assertEqual(counts, {})
        self.assertEqual(counts[5], Counts(2))
        self.assertEqual(counts[9], Counts())

    def test_masks(self):
        for detail, mask in [(Detail.COUNTS, "0x2a1000"), (Detail.NAMES, "0x2a3000")]:
            with traced(detail):
                pass
            *options, path = (self.directory / "asked").read_text().split()
            self.assertEqual(options, ["-D", "-e", mask, "-S", "1024"])
            self.assertFalse(Path(path).exists())

    def test_what_the_block_raises_ends_xentrace(self):
        with mock.patch.object(trace, "count") as counting, self.assertRaises(ZeroDivisionError), traced():
            1 / 0  # noqa: B018
        counting.assert_not_called()

    def test_xentrace_fails_in_the_end(self):
        self.xentrace(XENTRACE.format(directory=self.directory, rc=1))
        with self.assertRaisesRegex(Mismatch, "rc 1, not 0"), traced():
            pass

    def test_xentrace_does_not_begin(self):
        said = self.directory / "said"
        self.xentrace(f"#!/bin/sh\necho no buffers\ntouch {said}\nexit 1\n")

        def never(what: str, holds: object) -> None:
            eventually(what, said.exists)
            raise Stuck("not so")

        with mock.patch.object(trace, "eventually", never), self.assertRaisesRegex(Stuck, "not so; it said: no buffers"), traced():
            self.fail("the block ran")


if __name__ == "__main__":
    unittest.main()
