"""A guest that is saved, restored and migrated while it works, on a disk with a name."""

from pathlib import Path

from ..dom0 import disks, names
from ..dom0.domain import Guest, Work, devid
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import eventually, expect, xl

# Small: all of it is saved.
MEMORY_MIB = 160
BEFORE_MIB = 16


def _at_work(lab: Lab, name: str, target: str) -> tuple[Guest, str, Work]:
    """A guest with a file system on a disk with a name: the checksum of a file there, and work beside it."""
    lab.granary.control("create", "kept", "ram,size=64M").expect(0)
    guest = Guest.create(name, disks.granary("xvda", target), memory_mib=MEMORY_MIB)
    guest.sh("mkfs.ext4 -q /dev/xvda && mount -t ext4 /dev/xvda /mnt")
    written = guest.fill("/mnt/before", BEFORE_MIB)
    return guest, written, Work(guest, "/mnt/work", 4)


def _end(lab: Lab, guest: Guest, written: str, work: Work) -> None:
    """The work goes on, all of it was right, and the file is as it was."""
    work.goes_on()
    lab.figure("rounds, all of them right", work.end(), "")
    expect("the file from before", guest.checksum("/mnt/before", BEFORE_MIB), written)
    guest.sh("umount /mnt && e2fsck -fn /dev/xvda")


def _leave(lab: Lab, guest: Guest) -> None:
    guest.shutdown()
    lab.granary.control("remove", "kept").expect(0)


def _say_lines(lab: Lab, mark: int) -> None:
    for line in lab.granary.console.matching("vbd", mark):
        lab.note(line)


@scenario(limit=300)
def save_and_restore(lab: Lab):
    """A guest saved in the midst of its work goes on where it is restored, and no byte is wrong."""
    guest, written, work = _at_work(lab, "saved", "kept")
    mark, file = lab.granary.console.mark(), Path("/tmp/saved")
    lab.figure("xl save", xl("save", guest.name, str(file)).expect(0).seconds, "s")
    guest.gone(30)
    lab.figure("xl restore", xl("restore", str(file)).expect(0).seconds, "s")
    file.unlink()
    guest.follow()
    _end(lab, guest, written, work)
    _leave(lab, guest)
    _say_lines(lab, mark)


@scenario(limit=300)
def migrate_with_handover(lab: Lab):
    """With `handover` a guest at work migrates within the host, and no byte is wrong."""
    guest, written, work = _at_work(lab, "moving", "kept,handover")
    mark, old = lab.granary.console.mark(), guest.domid
    lab.figure("xl migrate", guest.migrate().expect(0).seconds, "s")
    expect("it has a new domid", guest.domid > old, True)
    _end(lab, guest, written, work)
    _leave(lab, guest)
    _say_lines(lab, mark)


@scenario(limit=300, group="all")
def migrate_without_handover(lab: Lab):
    """Without `handover` a migration within the host fails, and the guest goes on where it was."""
    guest, written, work = _at_work(lab, "staying", "kept")
    mark = lab.granary.console.mark()
    failed = guest.migrate().expect_failure()
    lab.figure("xl migrate failed after", failed.seconds, "s")
    for line in failed.output.splitlines()[-4:]:
        lab.note(f"xl: {line}")
    new = rf"(?!{guest.domid}/)\d+"
    lab.granary.console.wait(names.vbd_line("cannot serve target=kept: ", new, devid("xvda")), since=mark)
    expect("it is the same domain", int(xl("domid", guest.name).expect(0).output), guest.domid)
    _end(lab, guest, written, work)
    # The xl that would take it away ended when the domain was suspended.
    xl("shutdown", guest.name).expect(0)
    eventually("it has shut down", lambda: not guest.runs())
    guest.destroy()
    eventually("its disk is free", lambda: lab.granary.control("remove", "kept").rc == 0)
    _say_lines(lab, mark)
