"""Images from `ramdisk=`, and disks of pages: what is kept apart from what."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..dom0 import disks, images, names
from ..dom0.domain import Granary, Guest
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import expect

GOLD_MIB = 256
# The same disk in each, by its file's name and so by its own.
FORMATS = {"gold.qcow2": "qcow2", "gold-packed.qcow2": "qcow2", "gold.vhd": "vhd"}
NAME = "granary-images"

# What a disk with a cap may store.
CAP_MIB = 8

# Every file of the gold image, read anew from the disk.
CHECK_FILES = "echo 3 > /proc/sys/vm/drop_caches; cd {at} && md5sum -c MD5SUMS > /dev/null"


@contextmanager
def granary(lab: Lab, ramdisk: Path, memory_mib: int, cmdline: str = "") -> Iterator[Granary]:
    """A Granary of its own with a module, as long as the block; the module's file goes at once."""
    made = Granary.create(NAME, memory=memory_mib, ramdisk=str(ramdisk), cmdline=cmdline)
    images.remove(ramdisk)
    lab.figure(f"xl create with a module, memory={memory_mib}", made.created.seconds, "s")
    yield made
    made.shutdown()


def gold(vdev: str, target: str, access: str = "rw") -> disks.Disk:
    return disks.granary(vdev, target, access, backend=NAME)


def whole_checksum(guest: Guest, vdev: str) -> str:
    """The checksum of a whole disk."""
    return guest.sh(f"dd if=/dev/{vdev} bs=1M iflag=direct 2> /dev/null | md5sum", limit=600).split()[0]


def fork_and_write(guests: list[Guest]) -> None:
    """Each guest mounts an overlay of its own, finds the image's files, and keeps data of its own there."""
    for guest in guests:
        guest.attach(gold("xvdb", "gold,cow"))
        guest.sh("mount -t ext4 /dev/xvdb /mnt")
    for command in [guest.start(CHECK_FILES.format(at="/mnt")) for guest in guests]:
        command.wait()
    for command in [guest.start_verify("/mnt/own", 6) for guest in guests]:
        command.wait()
    for guest in guests:
        guest.sh("rm /mnt/00 && sync")
    sums = {guest.checksum("/mnt/own", 6) for guest in guests}
    expect("guests that wrote something of their own", len(sums), len(guests))
    for guest in guests:
        guest.sh("umount /mnt && e2fsck -fn /dev/xvdb")


def each_its_own(lab: Lab, guests: list[Guest]) -> None:
    """The blog post's example, for so many guests."""
    [raw] = images.unpacked("gold.raw")
    with granary(lab, raw, GOLD_MIB + 64, "disk=gold,module=0") as served:
        before = served.usage()
        fork_and_write(guests)
        for guest in guests:
            guest.detach("xvdb")
            guest.attach(gold("xvdb", "gold,cow"))
            guest.sh("mount -t ext4 /dev/xvdb /mnt")
            guest.sh(f"[ ! -e /mnt/own ] && {CHECK_FILES.format(at='/mnt')}")
            guest.sh("umount /mnt")
            guest.detach("xvdb")
        guests[0].attach(gold("xvdb", "gold", access="ro"))
        expect("the image's checksum at the end", whole_checksum(guests[0], "xvdb"), images.gold_checksum())
        guests[0].detach("xvdb")
        expect("what is in use, at the end", served.usage(), before)


@scenario(limit=900)
def two_guests_on_one_gold_image(lab: Lab):
    """Two guests write on overlays of one image, which stays as it is."""
    each_its_own(lab, [lab.guest("one"), lab.guest("two")])


@scenario(limit=1800, group="all")
def four_guests_on_one_gold_image(lab: Lab):
    """Four guests write on overlays of one image at once, in 64 MiB beside it."""
    more = [Guest.create(f"gold-{number}") for number in (3, 4)]
    each_its_own(lab, [lab.guest("one"), lab.guest("two"), *more])
    for guest in more:
        guest.shutdown()


@scenario(limit=900, group="all")
def qcow2_and_vhd_serve_the_same_bytes(lab: Lab):
    """One disk as qcow2, compressed or not, and as VHD, in one archive, is served as the same bytes."""
    guest = lab.guest()
    with granary(lab, images.packed("gold.cpio", *FORMATS), 128) as served:
        listed = {image["name"]: (image["format"], image["sectors"]) for image in served.listing()["images"]}
        expect("the images", listed, {name: (kind, GOLD_MIB << 11) for name, kind in FORMATS.items()})
        for name in FORMATS:
            guest.attach(gold("xvdb", name, access="ro"))
            expect(f"the checksum of {name}", whole_checksum(guest, "xvdb"), images.gold_checksum())
            guest.detach("xvdb")
        # Several at once, and written to.
        guest.attach(gold("xvdb", "gold.qcow2,cow"))
        guest.attach(gold("xvdc", "gold.vhd,cow,cap=16M"))
        guest.sh("for disk in b c; do mkdir -p /mnt/$disk && mount -t ext4 /dev/xvd$disk /mnt/$disk || exit 1; done")
        for command in [guest.start(CHECK_FILES.format(at=f"/mnt/{disk}")) for disk in "bc"]:
            command.wait()
        for disk in "bc":
            guest.verify(f"/mnt/{disk}/own", 4)
        guest.sh("umount /mnt/b && umount /mnt/c && e2fsck -fn /dev/xvdb && e2fsck -fn /dev/xvdc")
        for vdev in ("xvdb", "xvdc"):
            guest.detach(vdev)


@scenario(limit=300, group="all")
def start_does_not_grow_with_the_image(lab: Lab):
    """Granary needs as long to be ready with an image of 512 MiB as with one of 64 MiB."""
    took = {}
    for mib in (64, 512):
        file = images.empty("large.raw", mib)
        with granary(lab, file, mib + 32, "disk=large,module=0,format=raw") as served:
            expect("sectors", served.listing()["images"], [{"name": "large", "format": "raw", "sectors": mib << 11}])
            line = served.console.wait(names.GRANARY_READY_AFTER)
            took[mib] = float(line.group(1))
        lab.figure(f"ready with an image of {mib} MiB after", took[mib], "us")
    # By the lab's clock a nanosecond is an instruction, and less than one for each page is none.
    pages = (512 - 64) << 8
    expect("instructions that the larger one takes more, fewer than it has pages more", (took[512] - took[64]) * 1000 < pages, True)


@scenario(limit=180)
def a_full_disk_harms_nobody(lab: Lab):
    """A disk at its cap fails writes of its own, no other's, and can be used again once emptied."""
    guest, granary = lab.guest(), lab.granary
    granary.control("create", "capped", f"ram,size=64M,cap={CAP_MIB}M").expect(0)
    guest.attach(disks.granary("xvdb", "capped"))
    guest.attach(disks.ram("xvdc", "24M"))
    other = guest.start_verify("/dev/xvdc", 20)
    guest.sh("dd if=/dev/urandom of=/dev/xvdb bs=64k count=1000 oflag=direct", rc=1)
    full = granary.disk("capped")
    lab.note(f"capped has {full['pages']} pages of {full['cap_pages']}")
    expect("room that is left, less than a request's", full["cap_pages"] - full["pages"] < 256, True)
    other.wait()
    guest.verify("/dev/xvdc", 4)
    guest.sh("dd if=/dev/xvdb of=/dev/null bs=1M iflag=direct")

    guest.sh("blkdiscard /dev/xvdb")
    expect("its pages after blkdiscard", granary.disk("capped")["pages"], 0)
    guest.verify("/dev/xvdb", CAP_MIB // 2)
    guest.detach("xvdb")
    guest.detach("xvdc")
    granary.control("remove", "capped").expect(0)


# Files come and go, and what is theirs is written down at times.
LOAD = """
while [ -e /tmp/load ]; do
    for file in 1 2 3 4; do dd if=/dev/urandom of=/mnt/load$file bs=32k count=16 2> /dev/null; done
    sync
    rm /mnt/load[13]
done"""


@scenario(limit=240, group="all")
def a_snapshot_under_load_is_consistent(lab: Lab):
    """What a guest has synced is in a snapshot and a clone taken while it writes on, and their file system is sound."""
    guest, granary = lab.guest(), lab.granary
    granary.control("create", "busy", "ram,size=32M").expect(0)
    guest.attach(disks.granary("xvdb", "busy"))
    guest.sh("mkfs.ext4 -q /dev/xvdb && mount -t ext4 /dev/xvdb /mnt && touch /tmp/load")
    load = guest.start(LOAD)
    written = guest.fill("/mnt/synced", 4)
    guest.sh("sync")
    granary.control("snapshot", "busy", "busy.snapshot").expect(0)
    granary.control("clone", "busy", "busy.clone").expect(0)

    guest.attach(disks.granary("xvdc", "busy.snapshot", access="ro"))
    before = guest.checksum("/dev/xvdc", 32)
    guest.attach(disks.granary("xvdd", "busy.clone"))
    # What a crashed guest's file system gets as well: its journal, and then no fault is left.
    guest.sh("e2fsck -y -E journal_only /dev/xvdd && e2fsck -fn /dev/xvdd")
    guest.sh("mkdir -p /tmp/clone && mount -t ext4 /dev/xvdd /tmp/clone")
    expect("the file in the clone", guest.checksum("/tmp/clone/synced", 4), written)
    guest.sh("umount /tmp/clone && e2fsck -fn /dev/xvdd")
    expect("the snapshot, while the guest writes on", guest.checksum("/dev/xvdc", 32), before)
    guest.sh("rm /tmp/load")
    load.wait()
    expect("the file", guest.checksum("/mnt/synced", 4), written)
    guest.sh("umount /mnt && e2fsck -fn /dev/xvdb")
    for vdev in ("xvdb", "xvdc", "xvdd"):
        guest.detach(vdev)
    for name in ("busy", "busy.snapshot", "busy.clone"):
        granary.control("remove", name).expect(0)
