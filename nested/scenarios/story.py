"""The main job on one page: what scripts/run shows a newcomer."""

import time

from ..dom0 import disks
from ..dom0.domain import Guest
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import expect, xl

FILE_MIB = 64
READ_MIB = 100


@scenario(limit=300, group="run")
def story(lab: Lab):
    """A Linux guest keeps an ext4 file system on a disk that Granary serves."""
    lab.figure("xl create of Granary", lab.granary.created.seconds, "s")

    guest = Guest.create("story", disks.ram("xvda", "192M"))
    lab.figure("xl create of the guest", guest.created.seconds, "s")
    lab.note(f"the guest is up; xvda has {guest.sh('cat /sys/block/xvda/size')} sectors")

    guest.sh("mkfs.ext4 -q /dev/xvda && mount -t ext4 /dev/xvda /mnt")
    lab.note("made and mounted an ext4 file system")
    written = guest.fill("/mnt/file", FILE_MIB)
    lab.note(f"wrote {FILE_MIB} MiB, checksum {written[:16]}…")
    read = guest.checksum("/mnt/file", FILE_MIB)
    lab.note(f"dropped the caches, read them back: checksum {read[:16]}…")
    expect("the file's checksum", read, written)
    guest.sh("umount /mnt && e2fsck -fn /dev/xvda")
    lab.note("unmounted; e2fsck -fn finds no fault")
    start = time.monotonic()
    guest.sh(f"dd if=/dev/xvda of=/dev/null bs=1M iflag=direct count={READ_MIB}")
    lab.figure(f"dd iflag=direct of {READ_MIB} MiB", time.monotonic() - start, "s")

    lab.figure("xl block-attach of xvdb", guest.attach(disks.ram("xvdb", "64M")), "s")
    guest.verify("/dev/xvdb", 16)
    lab.figure("xl block-detach of xvdb", guest.detach("xvdb"), "s")
    expect("what xl block-list shows", len(xl("block-list", guest.name).expect(0).output.splitlines()), 2)

    lab.figure("shutdown of the guest", guest.shutdown(), "s")
