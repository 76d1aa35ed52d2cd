"""Images from `ramdisk=`: what is served over them, and beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..dom0 import disks, images
from ..dom0.domain import Granary, Guest
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import expect

GOLD_MIB = 256
NAME = "granary-images"

# Every file of the gold image, read anew from the disk.
CHECK_FILES = "echo 3 > /proc/sys/vm/drop_caches; cd {at} && sha256sum -c SHA256SUMS > /dev/null"


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
    return guest.sh(f"dd if=/dev/{vdev} bs=1M iflag=direct 2> /dev/null | sha256sum", limit=600).split()[0]


def fork_and_write(guests: list[Guest]) -> None:
    """Each guest mounts an overlay of its own, finds the image's files, and keeps data of its own there."""
    for guest in guests:
        guest.attach(gold("xvdb", "gold,cow"))
        guest.sh("mount -t ext4 /dev/xvdb /mnt")
    for command in [guest.start(CHECK_FILES.format(at="/mnt")) for guest in guests]:
        command.wait()
    sums = [guest.fill("/mnt/own", 6) for guest in guests]
    expect("guests that wrote something of their own", len(set(sums)), len(guests))
    for guest, written in zip(guests, sums):
        guest.sh("rm /mnt/00 && sync")
        expect(f"what {guest.name} wrote", guest.checksum("/mnt/own", 6), written)
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
