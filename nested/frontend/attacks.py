"""What a hostile frontend can do once it is connected: to the ring, to its requests and to its grants.

Each kind is called with a frontend that is attached, and may leave it in any state whatever. What the
backend answers does not matter: only that it, and others' disks, survive.
"""

import os
import random
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import ring
from .device import CLOSED, CLOSING, CONNECTED, INITIALISED
from .frontend import Frontend
from .pages import Access, PAGE_BYTES, Pages
from .ring import SLOT_BYTES, Ring, Segment
from .xenstore import Xenstore

Kind = Callable[["Attack"], None]
KINDS: dict[str, Kind] = {}

SECTORS = 2048
"""Of the disk that is attacked: 1 MiB."""

_U32 = 1 << 32
_U64 = 1 << 64


def kind(body: Kind) -> Kind:
    KINDS[body.__name__] = body
    return body


class Attack:
    """One round: a frontend, and choices that are the same for the same seed."""

    def __init__(self, store: Xenstore, frontend: Frontend, rng: random.Random):
        self.store = store
        self.frontend = frontend
        self.device = frontend.device
        self.rng = rng

    def connect(self) -> None:
        self.frontend.connect()

    @property
    def ring(self) -> Ring:
        return self.frontend.ring

    @property
    def gref(self) -> int:
        """One that is good."""
        return self.rng.choice(self.frontend.data.grefs)

    def send(self, *requests: bytes) -> None:
        """Puts requests, as many as the ring has room for, and notifies."""
        for request in requests:
            if not self.ring.nr_free:
                self.push()
                self.take_responses()
                if not self.ring.nr_free:
                    return
            self.ring.put(request)
        self.push()

    def push(self) -> None:
        self.ring.push()
        self.frontend.port.notify()

    def take_responses(self) -> None:
        """Takes what comes within a moment."""
        for _ in self.ring.responses():
            pass
        while self.ring.nr_free < self.ring.nr_slots and self.frontend.port.wait(0.05):
            for _ in self.ring.responses():
                pass

    def alive(self) -> bool:
        """Whether the backend still serves it."""
        return self.store.text(self.device.state_path) == CONNECTED

    def id(self) -> int:
        return self.rng.randrange(_U64)

    def segments(self, count: int = 1) -> list[Segment]:
        return [Segment(self.gref) for _ in range(count)]

    def data_operation(self) -> int:
        return self.rng.choice([ring.READ, ring.WRITE, ring.BARRIER, ring.FLUSH])


@kind
def req_prod_jumps(attack: Attack) -> None:
    attack.connect()
    size = attack.ring.nr_slots
    attack.send(ring.direct(ring.READ, 1, 0, attack.segments()))
    attack.take_responses()
    jump = attack.rng.choice([-1, 1, size, size + 1, -size, 1 << 31, (1 << 31) + 1, _U32 - 1, attack.rng.randrange(_U32)])
    attack.ring.words[Ring.REQ_PROD] = (attack.ring.req_prod + jump) % _U32
    attack.frontend.port.notify()
    time.sleep(0.05)
    # And back, as if nothing had been.
    attack.ring.words[Ring.REQ_PROD] = attack.ring.req_prod
    attack.frontend.port.notify()


@kind
def ring_header_scribbled(attack: Attack) -> None:
    attack.connect()
    for _ in range(16):
        attack.send(ring.direct(ring.READ, attack.id(), 0, attack.segments()))
        for word in (Ring.REQ_EVENT, Ring.RSP_PROD, Ring.RSP_EVENT, *range(4, 16)):
            attack.ring.words[word] = attack.rng.choice([0, 1, 1 << 31, _U32 - 1, attack.rng.randrange(_U32)])
        attack.frontend.port.notify()


@kind
def garbage_slots(attack: Attack) -> None:
    attack.connect()
    for _ in range(8):
        attack.send(*(attack.rng.randbytes(SLOT_BYTES) for _ in range(16)))
        attack.take_responses()


@kind
def wrong_grefs(attack: Attack) -> None:
    attack.connect()
    revoked = Pages(attack.device.backend, 1)
    another = Pages(0, 1)
    read_only = Pages(attack.device.backend, 1, Access.READ)
    own_ring = attack.frontend.ring_gref
    revoked.withdraw()
    bad = [0, 1, 7, 8, _U32 - 1, 1 << 20, attack.rng.randrange(_U32), *revoked.grefs, *another.grefs, *read_only.grefs, own_ring, own_ring]
    for _ in range(48):
        grefs = [attack.rng.choice([attack.gref, *bad]) for _ in range(attack.rng.randint(1, 11))]
        if attack.rng.randrange(2):
            # The same page again and again.
            grefs = grefs[:1] * len(grefs)
        attack.send(ring.direct(attack.data_operation(), attack.id(), 0, [Segment(gref) for gref in grefs]))
    attack.take_responses()
    another.withdraw()
    read_only.withdraw()


@kind
def wrong_segments(attack: Attack) -> None:
    attack.connect()
    for _ in range(48):
        count = attack.rng.choice([0, 1, 11, 12, 255])
        edges = [(0, 0), (7, 0), (1, 0), (0, 8), (8, 8), (255, 255), (0, 255), (7, 7)]
        segments = [Segment(attack.gref, *attack.rng.choice(edges)) for _ in range(min(count, 11))]
        attack.send(ring.direct(attack.data_operation(), attack.id(), 0, segments, count))
    attack.take_responses()


@kind
def wrong_sectors(attack: Attack) -> None:
    attack.connect()
    for _ in range(48):
        sector = attack.rng.choice([SECTORS - 1, SECTORS, SECTORS + 1, 1 << 32, 1 << 55, 1 << 63, _U64 - 1, _U64 - 8, _U64 - 88])
        if attack.rng.randrange(3):
            attack.send(ring.direct(attack.data_operation(), attack.id(), sector, attack.segments(attack.rng.randint(1, 11))))
        else:
            count = attack.rng.choice([0, 1, SECTORS + 1, 1 << 32, 1 << 63, _U64 - 1, _U64 - sector])
            attack.send(ring.discard(attack.id(), sector, count, attack.rng.randrange(256)))
    attack.take_responses()


@kind
def unknown_operations(attack: Attack) -> None:
    attack.connect()
    for _ in range(48):
        operation = attack.rng.choice([4, 7, 8, 127, 128, 255, attack.rng.randrange(256)])
        attack.send(bytes([operation]) + attack.rng.randbytes(SLOT_BYTES - 1))
    attack.take_responses()


@kind
def wrong_indirect(attack: Attack) -> None:
    attack.connect()
    pages = Pages(attack.device.backend, ring.MAX_INDIRECT_PAGES)
    bad_grefs = [0, _U32 - 1, attack.rng.randrange(_U32), attack.frontend.ring_gref]
    for _ in range(32):
        for number in range(pages.count):
            pages.memory[pages.page(number)] = attack.rng.choice(
                [attack.rng.randbytes(PAGE_BYTES), Segment(attack.gref).packed() * ring.SEGMENTS_A_PAGE, bytes(PAGE_BYTES)]
            )
        operation = attack.rng.choice([ring.READ, ring.WRITE, ring.BARRIER, ring.FLUSH, ring.DISCARD, ring.INDIRECT, 255])
        count = attack.rng.choice([0, 1, 11, 12, 256, 257, 512, 513, 4096, 4097, 65535])
        grefs = [attack.rng.choice([*pages.grefs, *bad_grefs]) if attack.rng.randrange(2) else gref for gref in pages.grefs]
        attack.send(ring.indirect(operation, attack.id(), attack.rng.choice([0, SECTORS - 8, _U64 - 1]), count, grefs))
    attack.take_responses()
    pages.withdraw()


@kind
def pages_withdrawn_in_flight(attack: Attack) -> None:
    attack.connect()
    pages = Pages(attack.device.backend, 11)
    table = Pages(attack.device.backend, 1)
    table.memory[:] = b"".join(Segment(attack.rng.choice(pages.grefs)).packed() for _ in range(ring.SEGMENTS_A_PAGE))
    for _ in range(8):
        attack.ring.put(ring.direct(attack.data_operation(), attack.id(), 0, [Segment(gref) for gref in pages.grefs]))
        attack.ring.put(ring.indirect(ring.WRITE, attack.id(), 0, 128, list(table.grefs)))
    attack.push()
    for withdrawn in attack.rng.sample([pages, table], 2):
        withdrawn.withdraw()
    if attack.rng.randrange(2):
        attack.frontend.let_go()
    else:
        attack.take_responses()


@kind
def changed_while_read(attack: Attack) -> None:
    attack.connect()
    table = Pages(attack.device.backend, 1)
    with _mutator(attack, table):
        end = time.monotonic() + 0.3
        while time.monotonic() < end and attack.alive():
            table.memory[:] = Segment(attack.gref).packed() * ring.SEGMENTS_A_PAGE
            attack.send(
                ring.direct(attack.data_operation(), attack.id(), 0, attack.segments(11)),
                ring.indirect(ring.WRITE, attack.id(), 0, 256, list(table.grefs)),
            )
            attack.take_responses()
    table.withdraw()


@contextmanager
def _mutator(attack: Attack, table: Pages) -> Iterator[None]:
    """Another process that writes over slots and descriptors for as long as the block lasts."""
    pid = os.fork()
    if pid == 0:
        try:
            slots = memoryview(attack.frontend.ring_memory)
            while True:
                at = attack.rng.randrange(ring.RING_AT, PAGE_BYTES)
                slots[at] = attack.rng.randrange(256)
                struct.pack_into("=Q", table.memory, attack.rng.randrange(ring.SEGMENTS_A_PAGE) * 8, attack.id())
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@kind
def event_storm(attack: Attack) -> None:
    attack.connect()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        for _ in range(64):
            attack.frontend.port.notify()
        if attack.rng.randrange(2) and attack.ring.nr_free:
            attack.send(ring.direct(ring.READ, attack.id(), 0, attack.segments()))
            attack.take_responses()


@kind
def full_rings(attack: Attack) -> None:
    """As much work as a ring can ask for, again and again, and nobody reads the data."""
    attack.connect()
    table = Pages(attack.device.backend, 1)
    table.memory[:] = b"".join(Segment(attack.gref).packed() for _ in range(ring.SEGMENTS_A_PAGE))
    for _ in range(4):
        while attack.ring.nr_free:
            attack.ring.put(ring.indirect(attack.rng.choice([ring.READ, ring.WRITE]), attack.id(), 0, 256, list(table.grefs)))
        attack.push()
        attack.take_responses()
    table.withdraw()


@kind
def closes_at_any_point(attack: Attack) -> None:
    """It leaves in some way, at some point: at once, without its keys, connected, with requests in flight."""
    point = attack.rng.randrange(4)
    if point == 1:
        attack.frontend.write("state", INITIALISED)
    elif point >= 2:
        attack.connect()
    if point == 3:
        attack.send(*(ring.direct(attack.data_operation(), attack.id(), 0, attack.segments(11)) for _ in range(16)))
    way = attack.rng.choice([(CLOSING,), (CLOSED,), (CLOSING, CLOSED), (CLOSED, "1"), ("1",), (CLOSING, CLOSED, "1", INITIALISED), ()])
    for state in way:
        attack.frontend.write("state", state)
        time.sleep(attack.rng.choice([0, 0.01, 0.1]))
    if attack.rng.randrange(2):
        attack.frontend.let_go()


@kind
def directory_removed_under_load(attack: Attack) -> None:
    attack.connect()
    attack.send(*(ring.direct(attack.data_operation(), attack.id(), 0, attack.segments(11)) for _ in range(24)))
    attack.device.remove_frontend(attack.store)
