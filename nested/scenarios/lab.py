"""The lab itself, with dom0's own blkback in Granary's place: if these fail, nothing else counts."""

from ..dom0 import disks
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import run


@scenario(limit=120)
def blkback_disk(lab: Lab):
    """A guest writes and reads a disk of dom0's blkback, attached and detached."""
    run("truncate", "-s", "64M", "/tmp/lab.img").expect(0)
    guest = lab.guest()
    lab.figure("attach", guest.attach(disks.blkback("xvdx", "/tmp/lab.img")), "s")
    guest.verify("/dev/xvdx", 32)
    lab.figure("detach", guest.detach("xvdx"), "s")
