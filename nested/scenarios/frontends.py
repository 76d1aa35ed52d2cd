"""Frontends beside the PVH guests of the other scenarios: PV guests, another Linux, and dom0 itself."""

import os
import random
import re
from collections.abc import Callable
from functools import partial
from hashlib import md5
from pathlib import Path

from ..dom0 import disks, images, names
from ..dom0.domain import Granary, Guest, devid
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import eventually, expect, xl
from .features import connected

BY_LINUX = "x86_64-abi, 1 ring of 32 requests, persistent grants"
FILE_MIB = 16
NAME = "granary-frontends"


def uses_its_disks(lab: Lab, guest: Guest) -> None:
    """A guest with an empty xvda keeps a file system there, and uses a second disk that comes and goes."""
    lab.note(f"Linux {guest.sh('uname -r')}, as {guest.sh('cat /sys/hypervisor/guest_type')}")
    expect("xvda is connected", connected(lab, guest, "xvda"), BY_LINUX)
    guest.sh("mkfs.ext4 -q /dev/xvda && mount -t ext4 /dev/xvda /mnt")
    written = guest.fill("/mnt/file", FILE_MIB)
    guest.attach(disks.ram("xvdb", "16M"))
    guest.verify("/dev/xvdb", 12)
    guest.detach("xvdb")
    expect("the file", guest.checksum("/mnt/file", FILE_MIB), written)
    guest.sh("umount /mnt && e2fsck -fn /dev/xvda")


@scenario(limit=120)
def linux_as_pv(lab: Lab):
    """Linux as a PV guest keeps a file system on its disk, and a second disk comes and goes."""
    guest = Guest.create("pv", disks.ram("xvda", "48M"), type="pv")
    expect("what it is", guest.sh("cat /sys/hypervisor/guest_type"), "PV")
    uses_its_disks(lab, guest)
    guest.shutdown()


@scenario(limit=120, group="all")
def linux_of_another_release(lab: Lab):
    """The Linux of another Debian release keeps a file system on its disk, and a second comes and goes."""
    guest = Guest.create_of_other_release("other-linux", disks.ram("xvda", "48M"))
    expect("it is another", guest.sh("uname -r") != os.uname().release, True)
    uses_its_disks(lab, guest)
    guest.shutdown()


@scenario(limit=120)
def dom0(lab: Lab):
    """dom0 is a frontend itself: it finds on a disk with a name what a guest wrote, and writes to it."""
    guest, granary = lab.guest(), lab.granary
    granary.control("create", "shared", f"ram,size={FILE_MIB}M").expect(0)
    guest.attach(disks.granary("xvdb", "shared"))
    written, _ = guest.fill("/dev/xvdb", FILE_MIB).split()
    guest.detach("xvdb")

    disk = disks.granary("xvdz", "shared")
    xl("block-attach", "0", str(disk)).expect(0)
    device, size = Path("/dev/xvdz"), Path("/sys/block/xvdz/size")
    eventually("dom0 has the disk", lambda: size.exists() and int(size.read_text()) == FILE_MIB << 11)
    granary.console.wait(rf"^granary: vbd 0/{devid(disk.vdev)}: connected, {BY_LINUX}")
    expect("what the guest wrote", md5(device.read_bytes()).hexdigest(), written)
    noise = random.Random("dom0").randbytes(FILE_MIB << 20)
    with device.open("r+b") as file:
        file.write(noise)
        os.fsync(file.fileno())
    refused = guest.try_attach(disks.granary("xvdb", "shared")).expect_failure()
    lab.note(f"attached to a guest as well: xl failed after {refused.seconds:.1f} s")
    guest.detach("xvdb")
    lab.figure("detach", xl("block-detach", "0", "xvdz").expect(0).seconds, "s")
    eventually("dom0 has it no more", lambda: not size.exists())

    guest.attach(disks.granary("xvdb", "shared"))
    expect("what dom0 wrote", guest.checksum("/dev/xvdb", FILE_MIB).split(), [md5(noise).hexdigest(), "-"])
    guest.detach("xvdb")
    granary.control("remove", "shared").expect(0)


def boots_from_its_disk(create: Callable[..., Guest]) -> list[str]:
    """Boots a guest from a disk with a name, which it writes to; who connected to that disk, one after the other."""
    [raw] = images.unpacked("boot.raw")
    granary = Granary.create(NAME, memory=192, ramdisk=str(raw), cmdline="disk=boot,module=0")
    images.remove(raw)
    guest = create("booted", disks.granary("xvda", "boot,cow=root", backend=NAME))
    expect("file systems on /", guest.sh("grep -c ' / ext4 rw' /proc/mounts"), "1")
    guest.verify("/kept", 4)
    guest.shutdown()
    lines = granary.console.matching(names.vbd_line("connected, x86_64-abi"))
    granary.shutdown()
    whose = {names.vbd_line("", 0): "dom0", names.vbd_line("", guest.domid): "the guest"}
    return [who for line in lines for pattern, who in whose.items() if re.match(pattern, line)]


@scenario(limit=300, group="all")
def grub_as_pv(lab: Lab):
    """GRUB as a PV guest loads Linux from a disk, and that Linux has its root on it."""
    as_pv = partial(Guest.create_by_grub, grub=names.GRUB_PV, type="pv")
    expect("who connected", boots_from_its_disk(as_pv), ["the guest", "the guest"])


@scenario(limit=300, group="all")
def pygrub(lab: Lab):
    """libxl attaches a disk to dom0 for pygrub, and then the same one, which may be written, to the guest."""
    expect("who connected", boots_from_its_disk(Guest.create_by_pygrub), ["dom0", "the guest"])
