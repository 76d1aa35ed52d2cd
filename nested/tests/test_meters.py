"""Tests of the meters that need no Xen."""

import errno
import struct
import unittest
from array import array
from unittest import mock

from ..dom0 import domctl, paging
from ..dom0.xen import Mismatch
from ..meters.cpu import cpu_ns


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


if __name__ == "__main__":
    unittest.main()
