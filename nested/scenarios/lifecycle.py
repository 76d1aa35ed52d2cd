"""A disk's life and its guest's: attach, detach, shutdown, destroy."""

from ..dom0 import disks
from ..dom0.domain import Granary, Guest, backend_devices
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import eventually, expect


@scenario(limit=120)
def attach_and_detach_ten_times(lab: Lab):
    """The same vdev is attached, used and detached ten times, and xl never fails."""
    guest = lab.guest()
    attach, detach = [], []
    for _ in range(10):
        attach.append(guest.attach(disks.ram("xvdb", "16M")))
        guest.verify("/dev/xvdb", 1)
        detach.append(guest.detach("xvdb"))
    for what, times in [("attach", attach), ("detach", detach)]:
        lab.note(f"{what}: {' '.join(f'{seconds:.1f}' for seconds in times)} s")
        lab.figure(f"longest {what}", max(times), "s")
    lab.figure("peak heap", lab.granary.usage().heap_peak_bytes / 1024, "KiB")


@scenario(limit=120)
def guest_with_disk_shuts_down(lab: Lab):
    """A guest created with a disk sees its size, uses it, shuts down, and nothing of it stays."""
    guest = Guest.create("short-lived", disks.ram("xvda", "32M"))
    expect("sectors", guest.sh("cat /sys/block/xvda/size"), str(32 << 11))
    guest.verify("/dev/xvda", 8)
    lab.figure("shutdown", guest.shutdown(), "s")


@scenario(limit=120)
def destroyed_while_writing(lab: Lab):
    """A guest destroyed in the middle of writing leaves no zombie and no backend directory."""
    guest = Guest.create("doomed", disks.ram("xvda", "64M"))
    device = lab.granary.device(guest, "xvda")
    expect("its backend directory exists", device in backend_devices(lab.granary.domid), True)
    guest.start("while dd if=/dev/urandom of=/dev/xvda bs=1M count=64 oflag=direct; do :; done")
    eventually("it writes", lambda: int(guest.sh("awk '{ print $7 }' /sys/block/xvda/stat")) > 0)
    lab.figure("xl destroy until gone from xl list", guest.destroy(), "s")
    lab.figure(
        "its backend directory gone after",
        eventually("no backend directory", lambda: device not in backend_devices(lab.granary.domid)),
        "s",
    )


@scenario(limit=60)
def granary_shuts_down(lab: Lab):
    """`xl shutdown` ends a Granary cleanly."""
    granary = Granary.create("granary-brief")
    lab.figure("shutdown", granary.shutdown(), "s")


@scenario(limit=90)
def more_ports_than_one_poll_takes(lab: Lab):
    """With 129 ports bound, each wakes Granary, and so do those of the disks that come after them."""
    granary = Granary.create("granary-ports", cmdline="selftest=ports settle-ms=1000")
    granary.console.wait(r"^granary: selftest ports: ok")
    guest = lab.guest()
    guest.attach(disks.ram("xvdb", "8M", backend=granary.name))
    guest.verify("/dev/xvdb", 4)
    guest.detach("xvdb")
    granary.shutdown()
