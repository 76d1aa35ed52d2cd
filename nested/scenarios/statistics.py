"""What Granary counts, as a person sees it."""

from ..dom0 import disks, names
from ..dom0.domain import Granary, Guest, devid
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import eventually, expect

BLOCK_BYTES = 16384
NR_READS, NR_WRITES = 100, 50


def settled(granary: Granary, guest: Guest) -> dict:
    """The counters once they stand still: a guest reads a disk that appears, looking for partitions."""
    seen = [granary.statistics(guest, "xvdb")]

    def still() -> bool:
        seen.append(granary.statistics(guest, "xvdb"))
        return seen[-1] == seen[-2]

    eventually("the counters stand still", still, poll=1)
    return seen[-1]


@scenario(limit=60)
def counters_of_a_live_vbd(lab: Lab):
    """`granaryctl stats` counts each read and write of a live guest, and the console says it all in the end."""
    guest, granary = lab.guest(), lab.granary
    guest.attach(disks.ram("xvdb", "16M"))
    before = settled(granary, guest)
    guest.sh(f"dd if=/dev/xvdb of=/dev/null bs={BLOCK_BYTES} count={NR_READS} iflag=direct")
    guest.sh(f"dd if=/dev/zero of=/dev/xvdb bs={BLOCK_BYTES} count={NR_WRITES} oflag=direct")
    after = granary.statistics(guest, "xvdb")
    for key, expected in {
        "reads": NR_READS,
        "sectors_read": NR_READS * BLOCK_BYTES // 512,
        "writes": NR_WRITES,
        "sectors_written": NR_WRITES * BLOCK_BYTES // 512,
        "errors": 0,
    }.items():
        expect(key, after[key] - before[key], expected)
    # 16 KiB are four pages, and they go one at a time.
    expect("requests of 4 to 7 segments", after["segments"]["4"] - before["segments"].get("4", 0), NR_READS + NR_WRITES)
    at_hand = sum(after["at_hand"].values()) - sum(before["at_hand"].values())
    expect("turns that found requests", at_hand <= NR_READS + NR_WRITES and at_hand > 0, True)
    expect("its state", (after["state"], after["in_flight"]), ("connected", 0))
    expect("a person sees it", f"{guest.domid}/{devid('xvdb')}" in granary.control("stats").expect(0).output, True)

    mark = granary.console.mark()
    guest.detach("xvdb")
    granary.console.wait(names.vbd_line("detached", guest.domid, devid("xvdb")), since=mark)
    for line in granary.console.matching(names.vbd_line("", guest.domid, devid("xvdb")), since=mark):
        lab.note(line)
    closing = f"closed after {after['reads']} reads"
    expect(f"lines with {closing!r}", len(granary.console.matching(closing, mark)), 1)
