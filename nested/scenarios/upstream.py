"""Disks that another domain serves to Granary: what it passes on reaches them, and their faults reach only who uses them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..dom0 import disks, files, images, mapper
from ..dom0.domain import Granary, Guest, Usage, Work
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, Outcome, Stuck, eventually, expect, run, xenstore, xl
from ..writelog import durability

# As its command line calls the disk that it has as xvdb.
UP = "disk=up,vbd,dev=xvdb"
MIB = 1 << 20


@contextmanager
def granary_on(*upstream: disks.Disk, cmdline: str = UP, name: str = "granary-upstream") -> Iterator[Granary]:
    """A Granary that has disks of its own; at the end nobody may use it."""
    granary = Granary.create(name, disk=[str(disk) for disk in upstream], cmdline=cmdline)
    yield granary
    granary.shutdown()


def served(granary: Granary, vdev: str, target: str, access: str = "rw") -> disks.Disk:
    return disks.granary(vdev, target, access, backend=granary.name)


def usage_when_connected(granary: Granary, guest: Guest) -> Usage:
    """What it has in use while its upstream disk is connected, and nobody has a disk on it."""
    guest.attach(served(granary, "xvdb", "up"))
    guest.detach("xvdb")
    # libxl is done when the directory is gone, and what is in use is written after that.
    eventually("nobody has a disk", lambda: granary.usage().vbds == 0)
    return granary.usage()


def check_as_before(granary: Granary, before: Usage) -> None:
    """Raises unless that is what it has in use now. What ends in its own time gets a moment."""
    try:
        eventually("as before", lambda: granary.usage() == before)
    except Stuck:
        expect("what is in use", granary.usage(), before)
    check_idle(granary)


def check_idle(granary: Granary) -> None:
    """Raises where a request to an upstream disk is not over: its pages are the upstream disk's own, and no free ones of the pool."""
    expect("upstream disks with requests in flight", [upstream for upstream in granary.listing()["upstreams"] if upstream["in_flight"]], [])


def md5(file: Path) -> str:
    return run("md5sum", str(file)).expect(0).output.split()[0]


@scenario(limit=180)
def a_file_of_dom0(lab: Lab):
    """What a guest wrote to an upstream disk is in dom0's file."""
    guest = lab.guest()
    file = images.empty("upstream.img", 64)
    with granary_on(disks.blkback("xvdb", str(file))) as granary:
        before = usage_when_connected(granary, guest)
        guest.attach(served(granary, "xvdb", "up"))
        expect("its sectors", guest.sh("cat /sys/block/xvdb/size"), str(64 << 11))
        guest.verify("/dev/xvdb", 32)
        sums = files.write(guest, "xvdb", 1, 8, 4)
        guest.detach("xvdb")
        check_as_before(granary, before)
    files.check(file, sums)
    images.remove(file)


@scenario(limit=240)
def an_overlay_leaves_it_alone(lab: Lab):
    """Overlays of an upstream disk are written, and dom0's file is as it was."""
    guest = lab.guest()
    (gold,) = images.unpacked("gold.raw")
    with granary_on(disks.blkback("xvdb", str(gold))) as granary:
        for vdev, target in (("xvdb", "up,cow"), ("xvdc", "vbd/xvdb,cow")):
            guest.attach(served(granary, vdev, target))
            guest.sh(f"mount -t ext4 /dev/{vdev} /mnt && cd /mnt && md5sum -c MD5SUMS")
            guest.fill("/mnt/new", 8)
            guest.sh(f"cd /mnt && md5sum -c MD5SUMS && cd / && umount /mnt && e2fsck -fn /dev/{vdev}")
        guest.detach("xvdc")
        guest.sh("mount -t ext4 /dev/xvdb /mnt && [ -f /mnt/new ] && umount /mnt")
        guest.detach("xvdb")
    expect("the file's checksum", md5(gold), images.gold_checksum())
    images.remove(gold)


@scenario(limit=180, group="all")
def slices(lab: Lab):
    """Two disks that are parts of one upstream disk are written side by side, each into its part."""
    guest = lab.guest()
    file = images.empty("slices.img", 48)
    words = "disk=left,vbd,dev=xvdb,size=16M disk=right,vbd,dev=xvdb,offset=16M,size=24M"
    with granary_on(disks.blkback("xvdb", str(file)), cmdline=words) as granary:
        for vdev, target in (("xvdb", "left"), ("xvdc", "right")):
            guest.attach(served(granary, vdev, target))
        expect("their sectors", guest.sh("cat /sys/block/xvd[bc]/size").split(), [str(16 << 11), str(24 << 11)])
        written = [guest.fill("/dev/xvdb", 16).split()[0], guest.fill("/dev/xvdc", 24).split()[0]]
        for vdev in ("xvdb", "xvdc"):
            guest.detach(vdev)
    parts = [run("sh", "-c", f"dd if={file} bs=1M skip={skip} count={count} 2> /dev/null | md5sum") for skip, count in ((0, 16), (16, 24))]
    expect("the parts of the file", [part.expect(0).output.split()[0] for part in parts], written)
    with file.open("rb") as whole:
        whole.seek(40 * MIB)
        expect("nothing is behind them", whole.read().strip(b"\0"), b"")
    images.remove(file)


@scenario(limit=180)
def a_granary_on_a_granary(lab: Lab):
    """A guest uses a disk of a Granary that has it from another Granary; the other one has what was written."""
    guest, lower = lab.guest(), lab.granary
    lower.control("create", "below", "ram,size=32M").expect(0)
    with granary_on(disks.granary("xvdb", "below"), name="granary-upper") as upper:
        guest.attach(served(upper, "xvdb", "up"))
        guest.attach(disks.ram("xvdc", "16M"))
        beside = guest.start_verify("/dev/xvdc", 12)
        guest.verify("/dev/xvdb", 24)
        beside.wait()
        written = guest.fill("/dev/xvdb", 24)
        for vdev in ("xvdb", "xvdc"):
            guest.detach(vdev)
    guest.attach(disks.granary("xvdb", "below"))
    expect("what is below", guest.checksum("/dev/xvdb", 24), written)
    guest.detach("xvdb")
    lower.control("remove", "below").expect(0)


# Of a disk of 64 MiB, what the file system has; promises are behind it.
DURABLE_MIB, FILE_SYSTEM_MIB, NR_PROMISES = 64, 48, 8


@scenario(limit=300, group="all")
def an_fsync_reaches_it(lab: Lab):
    """When a guest's fsync is answered, the upstream disk has had its writes, and a flush after them."""
    guest = lab.guest()
    log = Path("/tmp/upstream.log")
    with mapper.logged("logged", DURABLE_MIB, log) as device:
        with granary_on(disks.blkback("xvdb", str(device))) as granary:
            guest.attach(served(granary, "xvdb", "up"))
            files.promised(guest, "xvdb", "upstream", FILE_SYSTEM_MIB, NR_PROMISES)
            guest.detach("xvdb")
    before = images.empty("before.img", DURABLE_MIB)
    kept = durability.check(log, before, "upstream", FILE_SYSTEM_MIB * MIB)
    expect("promises", kept.nr_promises, NR_PROMISES)
    lab.figure("entries of the log", kept.nr_entries, "")
    images.remove(before, log)


FLUSH_SECONDS = 3


@scenario(limit=180, group="all")
def an_fsync_waits_for_it(lab: Lab):
    """A guest's fsync takes no less than the upstream disk's flush, and other disks do not wait for it."""
    guest = lab.guest()
    with mapper.slow_to_flush("slow", 16, FLUSH_SECONDS) as device, granary_on(disks.blkback("xvdb", str(device))) as granary:
        guest.attach(served(granary, "xvdb", "up"))
        guest.attach(disks.ram("xvdc", "16M", backend=granary.name))
        work = Work(guest, "/dev/xvdc", 4)
        begin = time.monotonic()
        synced = guest.start("[ -b /dev/xvdb ] && dd if=/dev/urandom of=/dev/xvdb bs=64k count=4 conv=fsync 2> /dev/null")
        work.goes_on()
        synced.wait()
        expect("it took no less than a flush", time.monotonic() - begin >= FLUSH_SECONDS, True)
        work.end()
        for vdev in ("xvdb", "xvdc"):
            guest.detach(vdev)


def fails(guest: Guest, command: str) -> None:
    said = guest.sh(command, rc=1)
    if "Input/output error" not in said:
        raise Mismatch(f"{guest.name}: `{command}` should say so of an input/output error; it said: {said}")


@scenario(limit=240, group="all")
def its_errors_are_the_guests(lab: Lab):
    """Where an upstream disk fails a request it is that guest's error; all else goes on, and goes on after it is well again."""
    guest = lab.guest()
    with mapper.faulty("faulty", 48) as upstream, granary_on(disks.blkback("xvdb", str(upstream.path))) as granary:
        before = usage_when_connected(granary, guest)
        guest.attach(served(granary, "xvdb", "up"))
        guest.attach(disks.ram("xvdc", "16M", backend=granary.name))
        written = guest.fill("/dev/xvdb", 48)
        work = Work(guest, "/dev/xvdc", 4)
        upstream.fail(at_mib=16, mib=1)
        for _ in range(20):
            fails(guest, "dd if=/dev/xvdb of=/dev/null bs=64k skip=256 count=1 iflag=direct")
            fails(guest, "dd if=/dev/zero of=/dev/xvdb bs=64k seek=263 count=1 oflag=direct conv=notrunc")
        guest.sh("dd if=/dev/xvdb of=/dev/null bs=1M count=16 iflag=direct")
        guest.sh("dd if=/dev/xvdb of=/dev/null bs=1M skip=17 iflag=direct")
        work.goes_on()
        expect("errors that Granary counts", granary.statistics(guest, "xvdb")["errors"] >= 40, True)
        upstream.heal()
        expect("what was there", guest.checksum("/dev/xvdb", 48), written)
        guest.verify("/dev/xvdb", 8)
        work.end()
        for vdev in ("xvdb", "xvdc"):
            guest.detach(vdev)
        check_as_before(granary, before)


class Load:
    """Writes to a guest's xvdb until one fails, or it is told to end."""

    # A file that a vanished disk leaves its name to would take what is written.
    _WRITE = "[ -b /dev/xvdb ] && dd if=/dev/zero of=/dev/xvdb bs=64k count=64 oflag=direct conv=notrunc 2> /dev/null"

    def __init__(self, guest: Guest):
        self._guest = guest
        guest.sh("touch /tmp/load")
        self._command = guest.start(f"while [ -e /tmp/load ]; do {self._WRITE} || {{ echo failed; break; }}; done")

    def goes_on(self) -> bool:
        return not self._command.ended()

    def fails(self) -> None:
        """Waits for a write that fails."""
        expect("how the load ended", self._command.wait(limit=300), "failed\n")

    def end(self) -> str:
        """Ends it, if it has not failed yet; "failed" if it has."""
        self._guest.sh("rm /tmp/load")
        return self._command.wait(limit=300).strip()


def vanishes(lab: Lab, *detach: str) -> None:
    """Takes a Granary's upstream disk away while a guest writes to it."""
    file = images.empty("vanishing.img", 32)
    other = lab.guest()
    with granary_on(disks.blkback("xvdb", str(file))) as granary:
        before = usage_when_connected(granary, other)
        nodes = own_nodes(granary)
        # What Linux does with requests of a disk that is gone is its affair: it has a guest of its own.
        bereft = Guest.create("bereft", served(granary, "xvdb", "up"))
        other.attach(disks.ram("xvdc", "16M", backend=granary.name))
        work = Work(other, "/dev/xvdc", 4)
        load = Load(bereft)
        work.goes_on()
        expect("it writes", load.goes_on(), True)
        detached: Outcome = xl("block-detach", *detach, granary.name, "xvdb").expect(0)
        lab.figure("xl block-detach", detached.seconds, "s")
        load.fails()
        work.goes_on()
        lab.figure("xl block-detach of the guest's disk", bereft.detach("xvdb"), "s")
        bereft.destroy()
        work.goes_on()
        work.end()
        other.detach("xvdc")
        check_nothing_kept(granary, before, nodes)
    images.remove(file)


def check_nothing_kept(granary: Granary, before: Usage, nodes: set[str]) -> None:
    """Of what it used when it had its upstream disk and nobody had a disk of it, nothing may have grown; what it granted is free."""
    # A page stays in use for as long as its grant cannot be taken back.
    total = granary.listing()["pool"]["total_pages"]
    with suppress(Stuck):
        eventually("all pages are free", lambda: granary.usage().free_pages == total)
    expect("free pages", granary.usage().free_pages, total)
    after = granary.usage()
    more = {
        name: (getattr(before, name), getattr(after, name))
        for name in ("handles", "ports", "watches", "vbds", "disks")
        if getattr(after, name) > getattr(before, name)
    }
    expect("what it has kept", more, {})
    expect("nodes that it has kept", own_nodes(granary) - nodes, set())
    check_idle(granary)


def own_nodes(granary: Granary) -> set[str]:
    """Its nodes in xenstore."""
    return set(xenstore.ls(granary.home))


@scenario(limit=300)
def detached_under_load(lab: Lab):
    """`xl block-detach` of an upstream disk that is written to: its guest sees errors, and others nothing."""
    vanishes(lab)


@scenario(limit=300, group="all")
def detached_by_force_under_load(lab: Lab):
    """`xl block-detach --force` of an upstream disk that is written to: its guest sees errors, and others nothing."""
    vanishes(lab, "--force")
