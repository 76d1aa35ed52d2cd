"""Tests of the frontends in dom0 that need no Xen: the ring, on ordinary memory."""

import struct
import unittest

from ..dom0.xen import Mismatch
from ..frontend import ring
from ..frontend.pages import PAGE_BYTES
from ..frontend.ring import Response, Ring, Segment


class Rings(unittest.TestCase):
    def setUp(self):
        self.memory = bytearray(PAGE_BYTES)
        self.ring = Ring(self.memory)

    def answer(self, number: int, id_: int, operation: int, status: int) -> None:
        struct.pack_into("=QBxh", self.memory, 64 + number % 32 * 112, id_, operation, status)
        struct.pack_into("=I", self.memory, 8, number + 1)

    def test_a_page_has_32_slots(self):
        self.assertEqual(self.ring.nr_slots, 32)
        self.assertEqual(Ring(bytearray(16 * PAGE_BYTES)).nr_slots, 512)

    def test_a_direct_request_is_laid_out_as_in_blkif_h(self):
        request = ring.direct(ring.WRITE, 0x1122, 0x3344, [Segment(7, 1, 2), Segment(8)])
        self.assertEqual(request[:2], bytes([1, 2]))
        self.assertEqual(struct.unpack_from("=QQ", request, 8), (0x1122, 0x3344))
        self.assertEqual(struct.unpack_from("=IBBxxIBB", request, 24), (7, 1, 2, 8, 0, 7))
        self.assertEqual(len(ring.direct(ring.READ, 0, 0, [Segment(1)] * 11)), ring.SLOT_BYTES)

    def test_an_indirect_request_is_laid_out_as_in_blkif_h(self):
        request = ring.indirect(ring.READ, 5, 6, 300, [9, 10])
        self.assertEqual(struct.unpack_from("=BBH", request, 0), (6, 0, 300))
        self.assertEqual(struct.unpack_from("=QQ", request, 8), (5, 6))
        self.assertEqual(struct.unpack_from("=II", request, 28), (9, 10))

    def test_a_discard_is_laid_out_as_in_blkif_h(self):
        self.assertEqual(struct.unpack("=BBxxxxxxQQQ", ring.discard(1, 2, 3, flag=1)), (5, 1, 1, 2, 3))

    def test_the_backend_is_notified_when_it_asked_for_it(self):
        self.ring.put(b"")
        self.assertTrue(self.ring.push())
        self.ring.put(b"")
        self.assertFalse(self.ring.push())
        struct.pack_into("=I", self.memory, 4, 4)
        self.ring.put(b"")
        self.ring.put(b"")
        self.assertTrue(self.ring.push())

    def test_each_response_is_taken_once(self):
        for number in range(40):
            self.ring.put(ring.direct(ring.READ, number, 0, []))
            self.ring.push()
            self.answer(number, number, ring.READ, ring.ERROR)
            self.assertEqual(list(self.ring.responses()), [Response(number, ring.READ, -1)])
            self.assertEqual(list(self.ring.responses()), [])
        self.assertEqual(self.ring.nr_free, 32)

    def test_responses_past_what_was_asked_are_told(self):
        self.answer(0, 1, ring.READ, ring.OKAY)
        with self.assertRaisesRegex(Mismatch, "rsp_prod is 1, past req_prod 0"):
            list(self.ring.responses())
