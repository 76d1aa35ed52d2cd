"""Guests: each life of a tenant is a Linux guest that works on its disks until it comes to its end."""

import json
from pathlib import Path

from ..dom0 import disks
from ..dom0.domain import PATIENCE, Command, Guest
from ..dom0.xen import eventually, expect, xl
from .actor import Actor, Stage

MEMORY_MIB = 128
KEEP_MIB = 4
WORK_MIB = 16

UPSTREAM = "vbd,dev=xvdb"
"""A disk of Granary's own, of UPSTREAM_MIB: the first megabytes are one tenant's, the last are under overlays."""
UPSTREAM_MIB = KEEP_MIB + WORK_MIB + 8

SCRATCH = [
    "ram,size=8M",
    "ram,size=64M,cap=8M",
    "ram,size=8M,block=4096",
    "gold,cow,cap=16M",
    f"vbd/xvdb,cow,cap=16M,offset={KEEP_MIB + WORK_MIB}M,size=8M",
]
"""What is attached and detached in the course of a life. Each has room for SCRATCH_MIB."""
SCRATCH_MIB = 4


class Tenant(Actor):
    """Has two disks with names that outlive its guests: one to keep, one that all work is done on.

    What it keeps was acknowledged when the guest that wrote it was alive, and must be found by each
    guest that comes after it, whatever end the guests in between came to. What is on the other one is
    checked block by block, by the program in the guest that also writes it, as long as that runs.
    """

    def __init__(self, name: str, stage: Stage, seed: str):
        super().__init__(name, stage, seed)
        self._kept: str | None = None
        self._lives = 0
        for disk, offset, size in ((self._keep, 0, KEEP_MIB), (self._work, KEEP_MIB, WORK_MIB)):
            stage.control("create", disk, self._make(offset, size))

    def _make(self, _offset: int, size: int) -> str:
        """What a disk of its own is: where it would begin among all of them, and its size, in MiB."""
        return f"ram,size={size}M"

    @property
    def _keep(self) -> str:
        return f"{self.name}.keep"

    @property
    def _work(self) -> str:
        return f"{self.name}.work"

    @property
    def own(self) -> list[str]:
        """Those with a name."""
        return [self._keep, self._work]

    def leave(self) -> None:
        """Removes its disks."""
        for disk in self.own:
            self.stage.control("remove", disk)

    def _disk(self, vdev: str, target: str) -> disks.Disk:
        return disks.granary(vdev, target, backend=self.stage.granary.name)

    def turn(self) -> None:
        self._lives += 1
        self.does("life", str(self._lives))
        guest = Guest.create(
            self.name,
            self._disk("xvda", f"{self._keep},handover"),
            self._disk("xvdb", f"{self._work},handover"),
            memory_mib=MEMORY_MIB,
            on_reboot="restart",
            on_crash="destroy",
        )
        self._find(guest)
        acts = self.random.choices([self._scratch, self._forced, self._saved, self._rebooted], [6, 2, 1, 1], k=self.random.randint(1, 4))
        # At the end: the console of a migrated guest has another log than that of its next life.
        acts += [self._migrated] * (self.random.random() < 0.3)
        for act in acts:
            if self.stage.over.is_set():
                break
            act(guest)
        self.random.choice([self._shut_down, self._destroyed, self._crashed])(guest)

    def _find(self, guest: Guest) -> None:
        """What was kept is there; sometimes it is replaced."""
        if self._kept is not None:
            expect(f"what {self.name} kept", guest.checksum("/dev/xvda", KEEP_MIB), self._kept)
            self.stage.count("MiB kept and found", KEEP_MIB)
        if self._kept is None or self.random.random() < 0.3:
            self._kept = guest.fill("/dev/xvda", KEEP_MIB)

    def _load(self, guest: Guest, nr_requests: int) -> Command:
        """Begins checked reads and writes on its work disk.

        The seed is always the same, so what the guests before this one left is checked, too: each
        block is one whole write of one of them, wherever they were interrupted.
        """
        depth = self.random.choice([1, 4, 16])
        return guest.start_io(f"verify --device /dev/xvdb --seed 1 --depth {depth} --count {nr_requests}")

    def _finish(self, load: Command) -> None:
        """Waits for a load, all of which was right, and counts it."""
        measured = json.loads(load.wait(PATIENCE))
        self.stage.count("checked requests", measured["reads"]["count"] + measured["writes"]["count"])

    def _scratch(self, guest: Guest) -> None:
        """Another disk comes, is used beside the first, and goes."""
        target = self.random.choice(SCRATCH)
        self.does("attach and detach")
        load = self._load(guest, 1000)
        guest.attach(self._disk("xvdc", target))
        guest.start_verify("/dev/xvdc", SCRATCH_MIB).wait(PATIENCE)
        guest.detach("xvdc")
        self._finish(load)

    def _forced(self, guest: Guest) -> None:
        """A disk is taken away while it is written to."""
        self.does("detach by force")
        guest.attach(self._disk("xvdc", self.random.choice(SCRATCH)))
        # Not by dd: where the disk has gone before it begins, it would make a file in its place.
        guest.start_io(f"latency --device /dev/xvdc --op write --pattern sequential --size 65536 --count {SCRATCH_MIB << 4}")
        self.pause(0.5)
        xl("block-detach", guest.name, "xvdc", "--force").expect(0)

    def _saved(self, guest: Guest) -> None:
        self.does("save and restore")
        load = self._load(guest, 3000)
        file = Path(f"/tmp/{self.name}")
        xl("save", guest.name, str(file)).expect(0)
        guest.gone(PATIENCE)
        xl("restore", str(file)).expect(0)
        file.unlink()
        guest.follow()
        self._finish(load)

    def _migrated(self, guest: Guest) -> None:
        self.does("migrate")
        load = self._load(guest, 3000)
        guest.migrate().expect(0)
        self._finish(load)

    def _rebooted(self, guest: Guest) -> None:
        self.does("reboot")
        mark = guest.console.mark()
        xl("reboot", guest.name).expect(0)
        guest.wait_restarted(mark)
        self._find(guest)

    def _shut_down(self, guest: Guest) -> None:
        self.does("shutdown")
        guest.shutdown(PATIENCE)

    def _destroyed(self, guest: Guest) -> None:
        self.does("destroy")
        self._load(guest, 100_000)
        self.pause(2)
        guest.destroy(PATIENCE)

    def _crashed(self, guest: Guest) -> None:
        self.does("crash")
        self._load(guest, 100_000)
        self.pause(2)
        guest.start("echo c > /proc/sysrq-trigger")
        eventually(f"{guest.name} is gone", lambda: not guest.listed(), PATIENCE)


class TenantUpstream(Tenant):
    """One whose disks are parts of a disk that another domain serves to Granary."""

    def _make(self, offset: int, size: int) -> str:
        return f"{UPSTREAM},offset={offset}M,size={size}M"
