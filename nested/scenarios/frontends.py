"""Frontends beside the PVH guests of the other scenarios: Linux as a PV guest."""

from ..dom0 import disks
from ..dom0.domain import Guest
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import expect
from .features import connected

BY_LINUX = "x86_64-abi, 1 ring of 32 requests, persistent grants"
FILE_MIB = 16


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
