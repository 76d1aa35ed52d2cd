"""A frontend that keeps to nothing, beside one that does."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..dom0 import disks, names
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, Running, eventually, expect, xenstore
from ..frontend.hostile import KINDS, clean_up

# What a frontend may make Granary say: a few lines a vbd, and a vbd is attached for each kind.
MAX_LINES_A_VBD = 12


@contextmanager
def hostile(lab: Lab, seed: int, *options: str) -> Iterator[Running]:
    """A hostile frontend for the length of the block, once its first disk is there."""
    granary = lab.granary
    lab.note(f"hostile {' '.join(options)} with seed {seed}")
    running = Running("python3", "-m", "nested.frontend.hostile", "--granary", str(granary.domid), "--seed", str(seed), *options)
    try:
        eventually("its first disk is attached", lambda: xenstore.ls(f"{granary.home}/backend/vbd/0"))
        yield running
        running.terminate()
        running.wait(300).expect(0)
    finally:
        running.terminate()
        running.wait()
        clean_up(granary.domid)


def beside(lab: Lab, seed: int, rounds: int) -> None:
    """A guest's data is right while a hostile frontend does each kind of harm so many times."""
    guest, granary = lab.guest(), lab.granary
    guest.attach(disks.ram("xvdb", "16M"))
    mark = granary.console.mark()
    guest.sh("touch /tmp/more")
    work = guest.start_io("verify --device /dev/xvdb --depth 2 --while /tmp/more")
    with hostile(lab, seed, "--rounds", str(rounds)) as running:
        counts = running.wait(600).expect(0).output.split()
    guest.sh("rm /tmp/more")
    measured = json.loads(work.wait())
    kinds = dict(zip(counts[::2], map(int, counts[1::2]), strict=True))
    expect("kinds, and rounds of each", kinds, dict.fromkeys(KINDS, rounds))
    for what in ("reads", "writes"):
        lab.figure(f"the guest's {what} beside it", measured[what]["count"], "")
        lab.figure(f"the longest of the guest's {what}", measured[what]["max_ns"] / 1e6, "ms")
    guest.detach("xvdb")

    lines = granary.console.matching(names.vbd_line("", 0), mark)
    lab.figure("console lines a vbd", len(lines) / sum(kinds.values()), "")
    if len(lines) > MAX_LINES_A_VBD * sum(kinds.values()):
        raise Mismatch(f"{len(lines)} console lines about {sum(kinds.values())} vbds")


@scenario(limit=600)
def beside_a_guest_at_work(lab: Lab):
    """A guest's data is right, and Granary whole, beside a frontend that does every harm we know."""
    beside(lab, seed=1, rounds=1)


@scenario(limit=3000, group="all")
def many_rounds(lab: Lab):
    """The same with other choices, several times each kind."""
    beside(lab, seed=int.from_bytes(os.urandom(4), "little"), rounds=5)
