"""A frontend that keeps to the protocol."""

import mmap
import random
import time
from collections.abc import Iterator

from ..dom0.xen import Mismatch, Stuck
from . import ring
from .device import CLOSED, CLOSING, CONNECTED, INIT_WAIT, INITIALISED, Device
from .events import Port
from .pages import PAGE_BYTES, Pages
from .ring import Response, Ring, Segment
from .xenstore import Xenstore

PAGES_A_REQUEST = ring.MAX_DIRECT_SEGMENTS


class Refused(Exception):
    """The backend closed a disk that was to be attached."""


class Frontend:
    """One disk, with a ring of one page and a fixed set of pages for data."""

    def __init__(self, store: Xenstore, device: Device, nr_pages: int = PAGES_A_REQUEST):
        self._store = store
        self.device = device
        self._nr_pages = nr_pages
        self._next_id = 0

    def attach(self, target: str, mode: str = "w") -> None:
        """As `xl block-attach` does, until the backend is ready for the frontend."""
        self.device.begin_attach(self._store, target, mode)
        if self._store.wait(self.device.state_path, INIT_WAIT, CLOSED) == CLOSED:
            raise Refused(f"{self.device.backend_path} is closed")

    def connect(self) -> None:
        self._ring_page = Pages(self.device.backend, 1)
        self.ring = Ring(self._ring_page.memory)
        self.port = Port(self.device.backend)
        self.data = Pages(self.device.backend, self._nr_pages)
        self.write("ring-ref", str(self._ring_page.grefs[0]))
        self.write("event-channel", str(self.port.number))
        self.write("protocol", "x86_64-abi")
        self.write("feature-persistent", "1")
        self.write("state", INITIALISED)
        if self._store.wait(self.device.state_path, CONNECTED, CLOSED) == CLOSED:
            raise Mismatch(f"{self.device.backend_path} is closed, and should be connected")
        self.write("state", CONNECTED)

    @property
    def ring_gref(self) -> int:
        return self._ring_page.grefs[0]

    @property
    def ring_memory(self) -> mmap.mmap:
        return self._ring_page.memory

    def write(self, name: str, value: str) -> None:
        """Writes a node of the frontend's own."""
        self._store.write(f"{self.device.frontend_path}/{name}", value)

    @property
    def sectors(self) -> int:
        return int(self._store.text(f"{self.device.backend_path}/sectors") or 0)

    def submit(self, operation: int, sector: int, pages: range) -> int:
        """Puts a request for some of `data` on the ring and shows it; its id."""
        self._next_id += 1
        segments = [Segment(self.data.grefs[page]) for page in pages]
        self.ring.put(ring.direct(operation, self._next_id, sector, segments))
        if self.ring.push():
            self.port.notify()
        return self._next_id

    def responses(self, limit: float = 60) -> Iterator[Response]:
        """Responses as they come. `limit` is a hang guard in seconds for each."""
        deadline = time.monotonic() + limit
        while True:
            for response in self.ring.responses():
                yield response
                deadline = time.monotonic() + limit
            if not self.port.wait(max(0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                raise Stuck(f"{self.device.backend_path} has not answered after {limit:.0f} s")

    def request(self, operation: int, sector: int, pages: range) -> None:
        """One request, answered."""
        expected = Response(self.submit(operation, sector, pages), operation, ring.OKAY)
        found = next(self.responses())
        if found != expected:
            raise Mismatch(f"{self.device.backend_path}: {found}, not {expected}")

    def verify(self, seed: int, nr_pages: int) -> None:
        """Writes a pattern of its own to the disk's first pages, and reads it back."""
        extents = [range(start, min(start + self._nr_pages, nr_pages)) for start in range(0, nr_pages, self._nr_pages)]
        for operation in (ring.WRITE, ring.READ):
            for extent in extents:
                pattern = b"".join(_pattern(seed, page) for page in extent)
                self.data.memory[: len(pattern)] = pattern if operation == ring.WRITE else bytes(len(pattern))
                self.request(operation, extent.start * ring.SECTORS_A_PAGE, range(len(extent)))
                if self.data.memory[: len(pattern)] != pattern:
                    raise Mismatch(f"{self.device.backend_path}: pages {extent} do not hold what was written")

    def detach(self) -> None:
        """As `xl block-detach` does, with the frontend's part in it."""
        self.device.begin_detach(self._store)
        if self._store.wait(self.device.state_path, CLOSING, CLOSED, None) == CLOSING:
            self.write("state", CLOSED)
        self._store.wait(self.device.state_path, CLOSED, None)
        self.device.wait_gone(self._store)
        self.device.remove_frontend(self._store)
        self.let_go()

    def let_go(self) -> None:
        """Ends what the backend was given, if it was given anything."""
        if hasattr(self, "ring"):
            self.ring.close()
            self._ring_page.withdraw()
            self.data.withdraw()
            self.port.close()
            del self.ring


def _pattern(seed: int, page: int) -> bytes:
    return random.Random(f"{seed} {page}").randbytes(PAGE_BYTES)
