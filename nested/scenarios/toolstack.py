"""What the toolstack does around Granary: its boot, its end, xenstored, the console daemon."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from ..dom0 import disks, names
from ..dom0.domain import Granary, Guest, Work, devid
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, Running, domains, eventually, expect, run, xenstore, xl

INIT_WAIT = "2"


@scenario(limit=60)
def shutdown_at_once(lab: Lab):
    """`xl shutdown` ends a Granary that serves nobody at once."""
    granary = Granary.create("granary-brief")
    lab.figure("shutdown", granary.shutdown(), "s")


@scenario(limit=180)
def shutdown_drains(lab: Lab):
    """`xl shutdown` of Granary with a guest connected: it serves on, takes no more disks, ends with the last detach."""
    guest = lab.guest()
    granary = Granary.create("granary-draining", cmdline="drain-s=600")
    for vdev in ("xvdb", "xvdc"):
        guest.attach(disks.ram(vdev, "16M", backend=granary.name))
    work = Work(guest, "/dev/xvdb", 4)
    xl("shutdown", granary.name).expect(0)
    granary.console.wait(r"^granary: asked to end \(PowerOff\): 2 vbds are attached, waits up to 600 s for them to go$")
    eventually("the toolstack is answered", lambda: xenstore.read(f"{granary.home}/control/shutdown") == "")

    guest.try_attach(disks.ram("xvdd", "16M", backend=granary.name)).expect_failure()
    granary.console.wait(names.vbd_line("cannot serve target=ram,size=16M: Granary is ending", guest.domid, devid("xvdd")))
    guest.detach("xvdd")
    work.goes_on()
    guest.detach("xvdc")
    work.goes_on()
    lab.figure("rounds", work.end(), "")
    guest.detach("xvdb")
    lab.figure("gone after the last detach", granary.gone(30), "s")


@scenario(limit=180)
def shutdown_given_up(lab: Lab):
    """Where disks are still attached after `drain-s=`, Granary says so and stays as if nobody had asked."""
    guest = lab.guest()
    granary = Granary.create("granary-staying", cmdline="drain-s=2")
    guest.attach(disks.ram("xvdb", "16M", backend=granary.name))
    xl("shutdown", granary.name).expect(0)
    granary.console.wait(rf"^granary: 1 vbd is still attached, first vbd {guest.domid}/{devid('xvdb')}: not ending$")
    guest.verify("/dev/xvdb", 8)
    guest.attach(disks.ram("xvdc", "16M", backend=granary.name))
    guest.verify("/dev/xvdc", 8)
    for vdev in ("xvdb", "xvdc"):
        guest.detach(vdev)
    expect("it runs", granary.runs(), True)
    granary.shutdown()


@scenario(limit=120)
def guest_created_before_granary_runs(lab: Lab):
    """A guest whose `xl create` began while Granary was paused comes up, and its disk is right."""
    granary = Granary.create_paused("granary-later")
    waiting = f"{granary.home}/backend/vbd"
    unpause = Running("sh", "-c", f"until xenstore-ls {waiting} | grep -q state; do sleep 0.1; done; sleep 3; xl unpause {granary.name}")
    try:
        guest = Guest.create("early", disks.ram("xvda", "32M", backend=granary.name))
    except BaseException:
        unpause.kill()
        raise
    unpause.wait().expect(0)
    lab.figure("xl create of the guest", guest.created.seconds, "s")
    granary.wait_ready()
    guest.verify("/dev/xvda", 16)
    guest.shutdown()
    granary.shutdown()


@scenario(limit=60)
def backend_that_does_not_exist(lab: Lab):
    """A guest whose disk names a domain that is not there is not created: xl's own refusal."""
    disk = disks.ram("xvda", "1M", backend="no-such-domain")
    refused = xl("create", str(names.GUEST_CONFIG), 'name="hopeful"', f'disk=["{disk}"]').expect_failure()
    said = "Unable to set disk defaults for disk 0"
    if said not in refused.output:
        raise Mismatch(f"xl should say {said!r}; it said: {refused.output.strip()}")
    expect("the guest is listed", any(listed.name == "hopeful" for listed in domains()), False)


class HalfWritten:
    """A backend directory as the toolstack leaves one that it has not finished, or never will."""

    def __init__(self, granary: Granary, guest: Guest, vdev: str):
        self.device = granary.device(guest, vdev)
        self._frontend = f"{guest.home}/device/half/{devid(vdev)}"
        self._nodes = {
            "frontend": self._frontend,
            "frontend-id": str(guest.domid),
            "params": "ram,size=1M",
            "mode": "w",
            "online": "1",
            "state": "1",
        }
        # As libxl's: the directory is the driver domain's, the frontend's is the guest's.
        _own(self.device, granary.domid, guest.domid)
        self._readers = (guest.domid, granary.domid)

    def write(self, *keys: str) -> None:
        for key in keys:
            xenstore.write(f"{self.device}/{key}", self._nodes.pop(key))

    def complete(self) -> None:
        """Writes what is missing, one by one; nobody will ever connect."""
        _own(self._frontend, *self._readers)
        xenstore.write(f"{self._frontend}/state", "1")
        self.write(*list(self._nodes))

    def state(self) -> str | None:
        return xenstore.read(f"{self.device}/state")

    def detach(self) -> None:
        """As libxl does."""
        xenstore.write(f"{self.device}/online", "0")
        xenstore.write(f"{self.device}/state", "5")
        eventually(f"{self.device} is gone", lambda: self.state() is None)
        xenstore.remove(self._frontend)


def _own(directory: str, owner: int, reader: int) -> None:
    xenstore.write(directory, "")
    run("xenstore-chmod", directory, f"n{owner}", f"r{reader}").expect(0)


@scenario(limit=180)
def directories_present_at_boot(lab: Lab):
    """Directories that stand in state 1 when Granary boots are served, whatever half-written ones stand beside."""
    guest = lab.guest()
    granary = Granary.create_paused("granary-late")
    vdevs = ["xvdb", "xvdc", "xvdd"]
    attached = [Running("xl", "block-attach", guest.name, str(disks.ram(vdev, "16M", backend=granary.name))) for vdev in vdevs]
    for vdev in vdevs:
        state = f"{granary.device(guest, vdev)}/state"
        eventually(f"the toolstack made the directory of {vdev}", lambda state=state: xenstore.read(state) == "1")

    empty, no_params, no_frontend = (HalfWritten(granary, guest, vdev) for vdev in ("xvde", "xvdf", "xvdg"))
    no_params.write("frontend", "frontend-id", "mode", "online", "state")
    no_frontend.write("frontend", "frontend-id", "params", "mode", "online", "state")
    nonsense = [f"{granary.home}/backend/vbd/{path}" for path in (f"{guest.domid}/no-number", "nobody", "65535")]
    for path in nonsense:
        xenstore.write(f"{path}/state", "1")
    xl("unpause", granary.name).expect(0)
    granary.wait_ready()
    for running in attached:
        running.wait().expect(0)
    for vdev in vdevs:
        guest.wait_disk(vdev)
        guest.verify(f"/dev/{vdev}", 8)
    lab.note(f"states of the half-written ones: {', '.join(str(half.state()) for half in (empty, no_params, no_frontend))}")
    expect("the state of one without params", no_params.state(), "1")

    for half in (empty, no_params):
        half.complete()
        eventually("once complete it is in InitWait", lambda half=half: half.state() == INIT_WAIT)
    for path in nonsense:
        xenstore.remove(path)
    for half in (empty, no_params):
        half.detach()
    xenstore.write(f"{no_frontend.device}/online", "0")
    eventually("the one without a frontend is gone", lambda: no_frontend.state() is None)
    for vdev in vdevs:
        guest.verify(f"/dev/{vdev}", 4)
        guest.detach(vdev)
    eventually("nothing is left", lambda: (granary.usage().vbds, granary.usage().disks) == (0, 0))
    granary.shutdown()
    xenstore.remove(f"{guest.home}/device/half")


@contextlib.contextmanager
def stopped(pid_file: Path) -> Iterator[None]:
    """One of dom0's daemons does nothing for the length of the block."""
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@scenario(limit=180)
def xenstored_slow(lab: Lab):
    """While xenstored does nothing disks work, and what was asked of Granary then happens after."""
    guest = lab.guest()
    guest.attach(disks.ram("xvdb", "64M"))
    # Commands to a guest go by xenstore: this one has its way to go alone.
    verify = guest.start_verify("/dev/xvdb", 48)
    with stopped(names.XENSTORED_PID):
        before = verify.ended()
        attach = Running("xl", "block-attach", guest.name, str(disks.ram("xvdc", "16M")))
        eventually("the data is verified", verify.ended, limit=90)
        expect("it began before xenstored stopped, and ended", before, False)
    verify.wait()
    attach.wait().expect(0)
    guest.wait_disk("xvdc")
    guest.verify("/dev/xvdc", 8)
    guest.detach("xvdc")
    guest.detach("xvdb")


@scenario(limit=180, group="all")
def xenstored_updated(lab: Lab):
    """A live update of xenstored under I/O: disks work on, attach and detach too."""
    guest = lab.guest()
    guest.attach(disks.ram("xvdb", "64M"))
    work = Work(guest, "/dev/xvdb", 4)
    run("xenstore-control", "live-update", "/bin/xenstored").expect(0)
    pid = names.XENSTORED_PID.read_text().strip()
    # Its new self was started with -U.
    expect("it is another xenstored", "-U" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"), True)
    guest.attach(disks.ram("xvdc", "16M"))
    guest.verify("/dev/xvdc", 8)
    guest.detach("xvdc")
    work.goes_on()
    lab.figure("rounds", work.end(), "")
    guest.detach("xvdb")


@scenario(limit=180, group="all")
def console_not_read(lab: Lab):
    """A console that nobody reads does not hold Granary up; when it is read again, lines come again."""
    guest, granary = lab.guest(), lab.granary
    guest.attach(disks.ram("xvdb", "64M"))

    def writes() -> int:
        return granary.statistics(guest, "xvdb")["writes"]

    # A load that says nothing meanwhile: Linux stands still while its own console is full.
    guest.sh("touch /tmp/more")
    load = guest.start_io("verify --device /dev/xvdb --while /tmp/more")
    eventually("it writes", lambda: writes() > 0)
    first = granary.console.mark()
    with stopped(names.XENCONSOLED_PID):
        before = writes()
        # The ring holds 2 KiB: each of these vbds causes lines of some hundred bytes.
        hostile = ("python3", "-m", "nested.frontend.hostile", "--granary", str(granary.domid), "--kinds", "wrong_segments")
        run(*hostile, "--rounds", "16").expect(0)
        mark = granary.console.mark()
        expect("lines of Granary's meanwhile", granary.console.matching(names.vbd_line("detached"), first), [])
        done = writes() - before
        lab.figure("writes meanwhile", done, "")
        expect("writes went on", done > 0, True)
    guest.sh("rm /tmp/more")
    load.wait()
    guest.detach("xvdb")
    lost = granary.console.wait(r"^\[(\d+) bytes lost\]$", since=mark)
    lab.figure("lost", int(lost.group(1)), "bytes")
    granary.console.wait(names.vbd_line("detached", guest.domid, devid("xvdb")), since=mark)
