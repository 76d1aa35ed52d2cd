"""A guest's next life: reboot and crash, with disks that have a name and disks that have none."""

from ..dom0 import disks
from ..dom0.domain import Guest, backend_devices
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import eventually, expect, xl

ZEROES = "dd if=/dev/xvdb bs=1M iflag=direct 2> /dev/null | tr -d '\\000' | wc -c | grep -qx 0"


def next_life(lab: Lab, guest: Guest, end, written: str) -> None:
    """Ends a guest that is made anew then: its xvda must hold what was written, its xvdb nothing."""
    granary, old = lab.granary, guest.domid
    guest.fill("/dev/xvdb", 4)
    mark = guest.console.mark()
    end()
    guest.wait_restarted(mark)
    expect("the disk with a name", guest.checksum("/dev/xvda", 8), written)
    guest.sh(ZEROES)
    expect("directories of the former domid", {d for d in backend_devices(granary.domid) if f"/vbd/{old}/" in d}, set())


def _with_both_disks(name: str, **settings: object) -> Guest:
    return Guest.create(name, disks.granary("xvda", "kept"), disks.ram("xvdb", "16M"), **settings)


@scenario(limit=240)
def reboot(lab: Lab):
    """After a reboot a disk with a name holds what it held, and one without is zeroes again."""
    lab.granary.control("create", "kept", "ram,size=16M").expect(0)
    guest = _with_both_disks("reborn", on_reboot="restart")
    written = guest.fill("/dev/xvda", 8)
    next_life(lab, guest, lambda: guest.start("/bin/reboot"), written)
    next_life(lab, guest, lambda: xl("reboot", guest.name).expect(0), written)
    guest.shutdown()
    lab.granary.control("remove", "kept").expect(0)


@scenario(limit=240, group="all")
def crash(lab: Lab):
    """A guest that crashes is made anew, or goes; nothing of the one that crashed stays."""
    granary = lab.granary
    granary.control("create", "kept", "ram,size=16M").expect(0)
    guest = _with_both_disks("crashing", on_crash="restart")
    written = guest.fill("/dev/xvda", 8)
    next_life(lab, guest, lambda: guest.start("echo c > /proc/sysrq-trigger"), written)
    guest.shutdown()

    guest = _with_both_disks("crashed", on_crash="destroy")
    devices = {granary.device(guest, vdev) for vdev in ("xvda", "xvdb")}
    expect("what was written before", guest.checksum("/dev/xvda", 8), written)
    guest.start("while dd if=/dev/zero of=/dev/xvdb bs=1M count=16 oflag=direct; do :; done")
    guest.start("sleep 1; echo c > /proc/sysrq-trigger")
    lab.figure("gone after", guest.gone(60), "s")
    eventually("no backend directory", lambda: not devices & backend_devices(granary.domid))
    granary.control("remove", "kept").expect(0)
