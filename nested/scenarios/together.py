"""Several disks and several guests at once."""

from ..dom0 import disks
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import expect, run

@scenario(limit=180)
def two_granary_disks_beside_blkback(lab: Lab):
    """One guest uses two Granary disks and one of dom0's blkback at the same time."""
    run("truncate", "-s", "32M", "/tmp/beside.img").expect(0)
    guest = lab.guest()
    attached = [disks.ram("xvdb", "32M"), disks.ram("xvdc", "32M"), disks.blkback("xvdd", "/tmp/beside.img")]
    for disk in attached:
        guest.attach(disk)
    for command in [guest.start_verify(f"/dev/{disk.vdev}", 24) for disk in attached]:
        command.wait()
    for disk in attached:
        guest.detach(disk.vdev)


@scenario(limit=180)
def two_guests_at_once(lab: Lab):
    """Two guests write and read a disk each at the same time; neither sees the other's data."""
    guests = [lab.guest("one"), lab.guest("two")]
    for guest in guests:
        guest.attach(disks.ram("xvdb", "48M"))
    for command in [guest.start_verify("/dev/xvdb", 40) for guest in guests]:
        command.wait()
    sums = [guest.checksum("/dev/xvdb", 40) for guest in guests]
    expect("the two disks differ", sums[0] != sums[1], True)
    for guest in guests:
        guest.detach("xvdb")
