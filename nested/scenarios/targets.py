"""Targets that cannot be served: each is one vbd's failure, said clearly, and nobody else's."""

from ..dom0 import disks, names
from ..dom0.domain import backend_devices
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, eventually, expect, xenstore

CLOSED = "6"


def refused(lab: Lab, target: str) -> None:
    """Attaches a target that must be refused, and then a good one at the same vdev."""
    guest, granary = lab.guest(), lab.granary
    device = granary.device(guest, "xvdb")
    mark = granary.console.mark()
    attach = guest.try_attach(disks.granary("xvdb", target)).expect_failure()
    lab.figure("xl block-attach failed after", attach.seconds, "s")

    expect("the backend's state", xenstore.read(f"{device}/state"), CLOSED)
    error = xenstore.read(f"{granary.home}/error/{device.removeprefix(f'{granary.home}/')}/error")
    if not error:
        raise Mismatch("the vbd has no error node")
    lab.note(f"error node: {error}")
    lines = granary.console.matching(names.vbd_line("", guest.domid), mark)
    if not lines:
        raise Mismatch("Granary's console has no line about the vbd")
    for line in lines:
        lab.note(f"console: {line}")

    lab.figure("xl block-detach", guest.detach("xvdb"), "s")
    eventually("the backend directory is gone", lambda: device not in backend_devices(granary.domid))
    guest.attach(disks.ram("xvdb", "1M"))
    guest.verify("/dev/xvdb", 1)
    guest.detach("xvdb")


@scenario(limit=120)
def empty(lab: Lab):
    """`target=` with nothing behind it is refused."""
    refused(lab, "")


@scenario(limit=120)
def unknown(lab: Lab):
    """A disk nobody defined is refused."""
    refused(lab, "no-such-disk")


@scenario(limit=120)
def size_zero(lab: Lab):
    """A disk without a sector is refused."""
    refused(lab, "ram,size=0")


@scenario(limit=120)
def size_beyond_the_pool(lab: Lab):
    """A disk larger than the pool can ever hold is refused."""
    refused(lab, "ram,size=64G")


@scenario(limit=120)
def size_not_a_number(lab: Lab):
    """A size that is no number is refused."""
    refused(lab, "ram,size=many")


@scenario(limit=120)
def stray_option(lab: Lab):
    """An option that a RAM disk does not have is refused."""
    refused(lab, "ram,size=1M,colour=blue")
