"""A frontend in dom0 that speaks the protocol wrongly, in every way that this package knows.

Run it as `python3 -m nested.frontend.hostile --help`. Each round attaches a disk to a Granary, does
one kind of harm and detaches it, as the toolstack or by force. At the end it prints, a line each,
how many rounds of a kind there were. A Granary that does not let a disk go makes it fail.
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Iterator

# nonsense adds its kinds to attacks'.
from . import nonsense  # noqa: F401
from .attacks import KINDS, Attack
from .device import CLOSED, CLOSING, Device, destroy_all
from .frontend import Frontend
from .xenstore import Xenstore

FRONTEND = 666
DEVIDS = 1 << 28 | 0x8000 << 8
"""The first of those that its disks have; a few, so that they come again."""
NR_DEVIDS = 4


def main() -> int:
    options = _arguments()
    # In the middle of a round it would leave a disk behind.
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    counts = dict.fromkeys(options.kinds, 0)
    end = time.monotonic() + options.seconds if options.seconds else None
    with Xenstore() as store:
        for round_ in _rounds(options.kinds, options.rounds):
            if stop or (end and time.monotonic() > end):
                break
            _run(store, options.granary, options.seed, *round_)
            counts[round_[0]] += 1
    for name, count in counts.items():
        print(f"{name} {count}", flush=True)
    return 0


def clean_up(granary: int) -> None:
    """Detaches what this process has left behind, if it was killed."""
    destroy_all(granary, FRONTEND)


def _rounds(kinds: list[str], limit: int | None) -> Iterator[tuple[str, int]]:
    number = 0
    while limit is None or number < limit:
        for kind in kinds:
            yield kind, number
        number += 1


def _run(store: Xenstore, granary: int, seed: int, kind: str, number: int) -> None:
    """One round, whose choices come from the seed, its kind and its number alone."""
    rng = random.Random(f"{seed} {kind} {number}")
    device = Device(granary, FRONTEND, DEVIDS + (rng.randrange(NR_DEVIDS) << 8))
    frontend = Frontend(store, device)
    frontend.attach("ram,size=1M")
    try:
        KINDS[kind](Attack(store, frontend, rng))
    finally:
        _leave(store, frontend, rng)


def _leave(store: Xenstore, frontend: Frontend, rng: random.Random) -> None:
    """The toolstack's detach, with the frontend's part in it or without one."""
    device = frontend.device
    if rng.randrange(2):
        device.begin_detach(store)
        if store.wait(device.state_path, CLOSING, CLOSED, None) == CLOSING and store.text(f"{device.frontend_path}/state") is not None:
            frontend.write("state", CLOSED)
            store.wait(device.state_path, CLOSED, None)
    device.destroy(store)
    frontend.let_go()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hostile", description="Speaks the block protocol wrongly to a Granary.")
    parser.add_argument("--granary", type=int, required=True, metavar="DOMID")
    parser.add_argument("--seed", type=int, default=1, help="what all choices come from (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="when to end; SIGTERM ends it too (default: never)")
    parser.add_argument("--rounds", type=int, help="how many of each kind (default: no end)")
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS), metavar="KIND", help="some of: %(choices)s")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
