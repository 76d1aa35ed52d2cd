"""What a hostile frontend can do to its part of xenstore. Kinds as in attacks.py."""

import time

from .attacks import Attack, kind
from .device import CLOSED, CONNECTED, INITIALISED
from .events import Port
from .pages import Pages

KEYS = [
    "ring-ref", "ring-ref0", "ring-ref1", "ring-page-order", "num-ring-pages", "multi-queue-num-queues", "event-channel",
    "protocol", "feature-persistent", "feature-large-sector-size", "virtual-device", "device-type", "state", "backend",
    "backend-id", "queue-0/ring-ref", "queue-0/event-channel", "queue-1/ring-ref",
]  # fmt: skip

VALUES = [
    b"", b"0", b"1", b"2", b"5", b"6", b"31", b"32", b"33", b"-1", b"+1", b" 1", b"1 ", b"0x10", b"08", b"1.0", b"4294967295",
    b"4294967296", b"18446744073709551616", b"9" * 400, b"\0", b"\xff\xfe", b"x86_32-abi", b"x86_64-abi", b"powerpc64-abi",
    b"/local/domain/0", b"%s%n", b"\x1b[2J\r\n", b"a" * 2048, bytes(range(256)) * 12,
]  # fmt: skip

STATES = [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9", b"", b"-1", b"x", b"04", b"4294967298", b"3" * 1000]


def put(attack: Attack, key: str, value: bytes) -> None:
    attack.store.write_bytes(f"{attack.device.frontend_path}/{key}", value)


def moment(attack: Attack) -> None:
    time.sleep(attack.rng.choice([0, 0, 0.01, 0.05]))


@kind
def nonsense_values(attack: Attack) -> None:
    """Good keys but for a few, then "connect", again and again."""
    page, port = Pages(attack.device.backend, 1), Port(attack.device.backend)
    good = {"ring-ref": page.grefs[0], "event-channel": port.number, "protocol": "x86_64-abi", "feature-persistent": 1}
    for _ in range(6):
        for key, value in good.items():
            put(attack, key, str(value).encode())
        for key in attack.rng.sample(KEYS, attack.rng.randint(1, 4)):
            put(attack, key, attack.rng.choice(VALUES))
        put(attack, "state", attack.rng.choice([INITIALISED, CONNECTED]).encode())
        attack.store.wait(attack.device.state_path, CONNECTED, CLOSED, "2")
        moment(attack)
        put(attack, "state", CLOSED.encode())
        moment(attack)
        put(attack, "state", b"1")
        moment(attack)
    port.close()
    page.withdraw()


@kind
def ports_of_others(attack: Attack) -> None:
    """A ring that is good, with a port that is nobody's, closed, or bound already."""
    page, port, closed = Pages(attack.device.backend, 1), Port(attack.device.backend), Port(attack.device.backend)
    not_for_it = Port(0)
    closed.close()
    put(attack, "ring-ref", str(page.grefs[0]).encode())
    for number in [0, 1, 4095, 131071, 1 << 31, closed.number, not_for_it.number, port.number, port.number]:
        put(attack, "event-channel", str(number).encode())
        put(attack, "state", INITIALISED.encode())
        moment(attack)
        put(attack, "state", attack.rng.choice([b"1", b"5", b"6"]))
        moment(attack)
    not_for_it.close()
    port.close()
    page.withdraw()


@kind
def rings_of_one_page(attack: Attack) -> None:
    """A large ring, or several, all of whose pages are one, which is no page of zeroes."""
    page, port = Pages(attack.device.backend, 1), Port(attack.device.backend)
    page.memory[:] = attack.rng.randbytes(len(page.memory))
    order, queues = attack.rng.choice([1, 3, 5]), attack.rng.choice([1, 2, 4])
    put(attack, "ring-page-order", str(order).encode())
    put(attack, "multi-queue-num-queues", str(queues).encode())
    for queue in range(queues):
        at = f"queue-{queue}/" if queues > 1 else ""
        put(attack, f"{at}event-channel", str(port.number).encode())
        for number in range(1 << order):
            put(attack, f"{at}ring-ref{number}", str(page.grefs[0]).encode())
    put(attack, "state", INITIALISED.encode())
    attack.store.wait(attack.device.state_path, CONNECTED, CLOSED)
    for _ in range(100):
        port.notify()
    moment(attack)
    port.close()
    page.withdraw()


@kind
def states_out_of_order(attack: Attack) -> None:
    if attack.rng.randrange(2):
        attack.connect()
    for _ in range(40):
        put(attack, "state", attack.rng.choice(STATES))
        moment(attack)


@kind
def state_flood(attack: Attack) -> None:
    if attack.rng.randrange(2):
        attack.connect()
    for number in range(600):
        put(attack, "state", attack.rng.choice([b"1", b"3", b"4", b"5", b"6"]) if number % 4 else b"3")


@kind
def node_flood(attack: Attack) -> None:
    """More nodes, and larger ones, than anybody expects in a frontend's directory."""
    for number in range(200):
        put(attack, f"{'n' * 60}{number}", b"v" * 1000)
        if number % 50 == 0:
            put(attack, "state", attack.rng.choice([b"1", b"3"]))
    for key in KEYS:
        if key not in ("state", "backend"):
            put(attack, key, b"7" * 3900)
    put(attack, "state", INITIALISED.encode())
    moment(attack)


@kind
def vanishing_keys(attack: Attack) -> None:
    attack.connect()
    names = attack.store.list(attack.device.frontend_path)
    for name in attack.rng.sample(names, len(names)):
        attack.store.remove(f"{attack.device.frontend_path}/{name}")
        moment(attack)
        if attack.rng.randrange(3) == 0:
            put(attack, "state", attack.rng.choice([b"1", b"3", b"4", b"6"]))
