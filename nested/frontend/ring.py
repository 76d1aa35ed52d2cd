"""A block frontend's ring in the 64-bit ABI (io/ring.h, io/blkif.h)."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..dom0.xen import Mismatch
from .pages import PAGE_BYTES

READ, WRITE, BARRIER, FLUSH, DISCARD, INDIRECT = 0, 1, 2, 3, 5, 6
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2

RING_AT = 64
SLOT_BYTES = 112
MAX_DIRECT_SEGMENTS = 11
MAX_INDIRECT_PAGES = 8
SEGMENTS_A_PAGE = PAGE_BYTES // 8
SECTORS_A_PAGE = PAGE_BYTES // 512

SEGMENT = struct.Struct("=IBBH")
_DIRECT = struct.Struct("=BBHIQQ")
_DISCARD = struct.Struct("=BBHIQQQ")
_INDIRECT = struct.Struct("=BBHIQQHH")
_RESPONSE = struct.Struct("=QBxh")


class Segment(NamedTuple):
    gref: int
    first: int = 0
    last: int = SECTORS_A_PAGE - 1

    def packed(self) -> bytes:
        return SEGMENT.pack(self.gref, self.first, self.last, 0)


class Response(NamedTuple):
    id: int
    operation: int
    status: int


def direct(operation: int, id_: int, sector: int, segments: list[Segment], nr_segments: int | None = None) -> bytes:
    """A request. `nr_segments` is what it claims to have, if that is not what it has."""
    claimed = len(segments) if nr_segments is None else nr_segments
    return _DIRECT.pack(operation, claimed, 0, 0, id_, sector) + b"".join(segment.packed() for segment in segments)


def indirect(operation: int, id_: int, sector: int, nr_segments: int, grefs: list[int]) -> bytes:
    """A request whose segments stand in granted pages."""
    return _INDIRECT.pack(INDIRECT, operation, nr_segments, 0, id_, sector, 0, 0) + struct.pack(f"={len(grefs)}I", *grefs)


def discard(id_: int, sector: int, nr_sectors: int, flag: int = 0) -> bytes:
    return _DISCARD.pack(DISCARD, flag, 0, 0, id_, sector, nr_sectors)


class Ring:
    """The frontend's half, over memory of whole pages that the backend shares."""

    REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = range(4)

    def __init__(self, memory):
        self._memory = memory
        # Items of a view of words are stored as a whole; struct stores byte after byte.
        self.words = memoryview(memory).cast("I")
        self.nr_slots = 1 << ((len(memory) - RING_AT) // SLOT_BYTES).bit_length() - 1
        self.req_prod = 0
        self._rsp_cons = 0
        self.words[self.REQ_EVENT] = 1
        self.words[self.RSP_EVENT] = 1

    def slot(self, index: int) -> int:
        """Where a slot begins in the memory."""
        return RING_AT + index % self.nr_slots * SLOT_BYTES

    @property
    def nr_free(self) -> int:
        return self.nr_slots - (self.req_prod - self._rsp_cons)

    def put(self, request: bytes) -> None:
        """Writes a request that `push` will show."""
        at = self.slot(self.req_prod)
        self._memory[at : at + len(request)] = request
        self.req_prod += 1

    def push(self) -> bool:
        """Shows what was put; whether the backend wants an event."""
        old = self.words[self.REQ_PROD]
        new = self.req_prod % (1 << 32)
        self.words[self.REQ_PROD] = new
        return (new - self.words[self.REQ_EVENT]) % (1 << 32) < (new - old) % (1 << 32)

    def responses(self) -> Iterator[Response]:
        """What has been answered, once each; asks for an event for the next."""
        while True:
            if (self.words[self.RSP_PROD] - self._rsp_cons) % (1 << 32) > self.req_prod - self._rsp_cons:
                raise Mismatch(f"rsp_prod is {self.words[self.RSP_PROD]}, past req_prod {self.req_prod}")
            while self._rsp_cons % (1 << 32) != self.words[self.RSP_PROD]:
                at = self.slot(self._rsp_cons)
                self._rsp_cons += 1
                yield Response(*_RESPONSE.unpack_from(self._memory, at))
            self.words[self.RSP_EVENT] = (self._rsp_cons + 1) % (1 << 32)
            if self._rsp_cons % (1 << 32) == self.words[self.RSP_PROD]:
                return

    def close(self) -> None:
        self.words.release()
