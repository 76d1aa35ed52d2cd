"""The lab itself, with dom0's own blkback in Granary's place: if these fail, nothing else counts."""

from pathlib import Path

from ..dom0 import disks, files, images, mapper
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, expect, run
from ..writelog import durability


@scenario(limit=120)
def blkback_disk(lab: Lab):
    """A guest writes and reads a disk of dom0's blkback, attached and detached."""
    run("truncate", "-s", "64M", "/tmp/lab.img").expect(0)
    guest = lab.guest()
    lab.figure("attach", guest.attach(disks.blkback("xvdx", "/tmp/lab.img")), "s")
    guest.verify("/dev/xvdx", 32)
    lab.figure("detach", guest.detach("xvdx"), "s")


MIB = 1 << 20


def promises_on_blkback(lab: Lab, cache: str) -> durability.Kept:
    """Has promises made on a disk that is logged, which the guest takes to have such a cache."""
    guest, log, vdev = lab.guest(), Path("/tmp/lab.log"), "xvdx"
    with mapper.logged("lab", 64, log) as device:
        guest.attach(disks.blkback(vdev, str(device)))
        guest.sh(f"echo {cache} > /sys/block/{vdev}/queue/write_cache")
        files.promised(guest, vdev, "lab", file_system_mib=48, count=4)
        guest.detach(vdev)
    before = images.empty("before.img", 64)
    try:
        return durability.check(log, before, "lab", 48 * MIB)
    finally:
        images.remove(before, log)


@scenario(limit=180, group="all")
def promises(lab: Lab):
    """What a guest syncs on dom0's own blkback is durable when its fsync is answered."""
    kept = promises_on_blkback(lab, "write back")
    expect("promises", kept.nr_promises, 4)
    lab.figure("entries of the log", kept.nr_entries, "")


@scenario(limit=180, group="all")
def promises_without_a_flush(lab: Lab):
    """Where no flush is sent, the check of promises finds out."""
    try:
        # Linux sends no flush to a disk that it takes to have no cache.
        promises_on_blkback(lab, "write through")
    except durability.NotDurable as found:
        lab.note(str(found).splitlines()[0])
    else:
        raise Mismatch("no flush was sent, and the promises are said to be kept")


@scenario(limit=120, group="all")
def faults(lab: Lab):
    """A disk of dom0's that is told to fail does so where it is told to, and is well again afterwards."""
    guest = lab.guest()
    with mapper.faulty("faulty", 32) as faulty:
        guest.attach(disks.blkback("xvdx", str(faulty.path)))
        written = guest.fill("/dev/xvdx", 32)
        faulty.fail(at_mib=16, mib=1)
        guest.sh("dd if=/dev/xvdx of=/dev/null bs=64k skip=256 count=1 iflag=direct", rc=1)
        guest.sh("dd if=/dev/xvdx of=/dev/null bs=64k skip=255 count=1 iflag=direct")
        faulty.heal()
        expect("what was there", guest.checksum("/dev/xvdx", 32), written)
        guest.detach("xvdx")
