"""GRUB, a 32-bit frontend, and the Linux that it boots, one after the other on one disk."""

from ..dom0 import disks, images
from ..dom0.domain import Granary, Guest, devid
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import expect

NAME = "granary-boot"


@scenario(limit=300)
def reads_a_file_and_boots_linux_from_it(lab: Lab):
    """GRUB loads Linux from a disk with a name, and Linux has its root on that disk."""
    [raw] = images.unpacked("boot.raw")
    granary = Granary.create(NAME, memory=160, ramdisk=str(raw), cmdline="disk=boot,module=0")
    images.remove(raw)
    guest = Guest.create_by_grub("grub", disks.granary("xvda", "boot,cow=root", backend=NAME))
    connected = rf"^granary: vbd {guest.domid}/{devid('xvda')}: connected, "
    lines = [line.partition("connected, ")[2] for line in granary.console.matching(connected)]
    for line in lines:
        lab.note(line)
    expect("the frontends' ABIs", [line.partition(",")[0] for line in lines], ["x86_32-abi", "x86_64-abi"])
    expect("file systems on /", guest.sh("grep -c ' / ext4 rw' /proc/mounts"), "1")
    written = guest.fill("/kept", 4)
    lab.figure("shutdown", guest.shutdown(), "s")

    other = lab.guest()
    other.attach(disks.granary("xvdb", "root", backend=NAME))
    other.sh("mount -t ext4 /dev/xvdb /mnt")
    expect("what Linux wrote", other.checksum("/mnt/kept", 4), written)
    other.sh("umount /mnt && e2fsck -fn /dev/xvdb")
    other.detach("xvdb")
    granary.shutdown()
