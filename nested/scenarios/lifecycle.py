"""A disk's life and its guest's: attach, detach, shutdown, destroy."""

from ..dom0 import disks
from ..dom0.domain import Granary, Guest, Work, backend_devices
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import eventually, expect, xl


def attach_and_detach(lab: Lab, times: int) -> list[int]:
    """Attaches, uses and detaches the same vdev; the peak of Granary's heap in bytes after each time."""
    guest = lab.guest()
    attach, detach, peaks = [], [], []
    for _ in range(times):
        attach.append(guest.attach(disks.ram("xvdb", "16M")))
        guest.verify("/dev/xvdb", 1)
        detach.append(guest.detach("xvdb"))
        peaks.append(lab.granary.usage().heap_peak_bytes)
    for what, seconds in [("attach", attach), ("detach", detach)]:
        lab.note(f"{what}: {' '.join(f'{each:.2f}' for each in seconds[:10])} s …")
        lab.figure(f"median {what} of {times}", sorted(seconds)[times // 2], "s")
        lab.figure(f"longest {what} of {times}", max(seconds), "s")
    lab.figure("peak heap", peaks[-1] / 1024, "KiB")
    return peaks


@scenario(limit=120)
def attach_and_detach_ten_times(lab: Lab):
    """The same vdev is attached, used and detached ten times, and xl never fails."""
    attach_and_detach(lab, 10)


@scenario(limit=1200, group="all")
def attach_and_detach_200_times(lab: Lab):
    """The same vdev is attached, used and detached 200 times; the heap stays as it was after ten."""
    peaks = attach_and_detach(lab, 200)
    expect("bytes that the peak of the heap grew by after ten times", peaks[-1] - peaks[9], 0)


@scenario(limit=120)
def guest_with_disk_shuts_down(lab: Lab):
    """A guest created with a disk sees its size, uses it, shuts down, and nothing of it stays."""
    guest = Guest.create("short-lived", disks.ram("xvda", "32M"))
    expect("sectors", guest.sh("cat /sys/block/xvda/size"), str(32 << 11))
    guest.verify("/dev/xvda", 8)
    lab.figure("shutdown", guest.shutdown(), "s")


NR_LOADED = 4
# On each disk at once: deep queues of large writes and reads, small ones, and discards.
LOAD = """
cd /tmp
all() {{ while :; do "$@" > /dev/null 2>&1; done; }}
for n in 1 2; do
    all dd if=/dev/zero of={disk} bs=1M count=32 oflag=direct &
    all dd if=/dev/zero of={disk} bs=4k count=4096 oflag=direct &
    all dd if={disk} of=/dev/null bs=1M count=32 iflag=direct &
done
all /bin/blkdiscard -o 8M -l 8M -p 1M {disk} &
wait
"""


@scenario(limit=180)
def destroyed_under_full_load(lab: Lab):
    """A guest destroyed while it reads, writes and discards on four disks leaves no zombie and no directory."""
    vdevs = [f"xvd{letter}" for letter in "abcdefgh"[:NR_LOADED]]
    guest = Guest.create("doomed", *(disks.ram(vdev, "32M") for vdev in vdevs))
    devices = {lab.granary.device(guest, vdev) for vdev in vdevs}
    expect("its backend directories exist", devices <= backend_devices(lab.granary.domid), True)
    for vdev in vdevs:
        guest.start(LOAD.format(disk=f"/dev/{vdev}"))
    for vdev in vdevs:
        eventually(f"{vdev} is under load", lambda vdev=vdev: _under_load(lab.granary.statistics(guest, vdev)), limit=60)
    lab.note(f"in flight: {', '.join(str(lab.granary.statistics(guest, vdev)['in_flight']) for vdev in vdevs)}")
    lab.figure("xl destroy until gone from xl list", guest.destroy(), "s")
    lab.figure(
        "its backend directories gone after",
        eventually("no backend directory", lambda: not devices & backend_devices(lab.granary.domid)),
        "s",
    )


def _under_load(vbd: dict) -> bool:
    return min(vbd["reads"], vbd["writes"], vbd["discards"]) > 0


@scenario(limit=180)
def detached_by_force(lab: Lab):
    """`xl block-detach --force` of a mounted disk in use ends that disk alone: another one works on."""
    guest = Guest.create("forced", disks.ram("xvda", "32M"), disks.ram("xvdb", "64M"))
    device = lab.granary.device(guest, "xvdb")
    other = Work(guest, "/dev/xvda", 4)
    guest.sh("mkfs.ext4 -q /dev/xvdb && mount -t ext4 /dev/xvdb /mnt")
    mounted = guest.start("while dd if=/dev/zero of=/mnt/file bs=1M count=16 oflag=direct; do :; done")
    eventually("it writes", lambda: lab.granary.statistics(guest, "xvdb")["writes"] > 20)
    lab.figure("xl block-detach --force", xl("block-detach", "--force", guest.name, "xvdb").expect(0).seconds, "s")
    eventually("the backend directory is gone", lambda: device not in backend_devices(lab.granary.domid))
    other.goes_on()
    # Linux may wait for ever for what it had under way there: no verdict.
    lab.note(f"the write to the mounted disk has {'' if mounted.ended() else 'not '}ended")
    lab.figure("rounds on the other disk", other.end(), "")
    guest.destroy()


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
