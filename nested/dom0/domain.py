"""Domains as scenarios handle them: Granary and Linux guests."""

import base64
import itertools
import json
import re
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

from . import console, disks, names, pci
from .console import Console
from .xen import Mismatch, Outcome, Running, domains, eventually, run, xenstore, xl


PATIENCE = 900
"""A hang guard in seconds for what takes long where many share a processor."""


class Domain:
    """A domain that was created; `name` may have had earlier lives, `domid` had none."""

    def __init__(self, name: str, domid: int, log: Console, created: Outcome):
        self.name = name
        self.domid = domid
        self.console = log
        self.created = created
        log.alive = self.runs

    @classmethod
    def _create(cls, name: str, config: str, *flags: str, **settings: object) -> Self:
        """`xl create`, with settings that replace those of the file."""
        log = Console(name)
        overrides = [f"{key}={json.dumps(value)}" for key, value in {"name": name, **settings}.items()]
        created = xl("create", *flags, config, *overrides).expect(0)
        return cls(name, int(xl("domid", name).expect(0).output), log, created)

    @property
    def home(self) -> str:
        """Its directory in xenstore."""
        return f"/local/domain/{self.domid}"

    def listed(self) -> bool:
        """Whether Xen still has it, if only dying."""
        return any(listed.domid == self.domid for listed in domains())

    def runs(self) -> bool:
        """Whether it is neither gone, nor dying, nor shut down or crashed."""
        return any(listed.domid == self.domid and not set(listed.state) & set("scd") for listed in domains())

    def shutdown(self, limit: float = 60) -> float:
        """Asks it to shut down; the seconds until it was gone."""
        asked = xl("shutdown", self.name).expect(0)
        return asked.seconds + self.gone(limit)

    def destroy(self, limit: float = 60) -> float:
        """`xl destroy`; the seconds until it was gone."""
        destroyed = xl("destroy", self.name).expect(0)
        return destroyed.seconds + self.gone(limit)

    def gone(self, limit: float) -> float:
        return eventually(f"{self.name} is gone from xl list", lambda: not self.listed(), limit)


_GRANARY_SETTINGS = {"kernel": str(names.GRANARY_IMAGE), "tsc_mode": "native"}


@dataclass(frozen=True)
class Usage:
    """What a Granary says it has in use."""

    free_pages: int
    handles: int
    ports: int
    watches: int
    vbds: int
    disks: int
    heap_peak_bytes: int = field(compare=False)
    """The most that its heap ever held: no state to go back to."""


class Granary(Domain):
    """A driver domain."""

    @classmethod
    def create(cls, name: str = names.GRANARY, **settings: object) -> Self:
        """Boots a Granary, with xl settings that replace those of its file; returns when it is ready."""
        granary = cls._create(name, str(names.GRANARY_CONFIG), **_GRANARY_SETTINGS, **settings)
        granary.wait_ready()
        return granary

    @classmethod
    def create_paused(cls, name: str, **settings: object) -> Self:
        """A Granary that has not run an instruction yet: `xl unpause` starts it."""
        return cls._create(name, str(names.GRANARY_CONFIG), "-p", **_GRANARY_SETTINGS, **settings)

    def wait_ready(self) -> None:
        self.console.wait(names.GRANARY_READY)
        eventually(f"{self.name} says what it has in use", lambda: xenstore.read(f"{self.home}/{names.USAGE_NODE}"))

    def usage(self) -> Usage:
        """Its free pages, outstanding grant handles, bound ports, watches, vbds and disks."""
        text = xenstore.read(f"{self.home}/{names.USAGE_NODE}") or ""
        found = dict(re.findall(r"(\w+)=(\d+)", text))
        wanted = [field.name for field in fields(Usage)]
        if not set(wanted) <= found.keys():
            raise Mismatch(f"{self.name} does not say what it has in use: {names.USAGE_NODE} is {text!r}")
        return Usage(*(int(found[name]) for name in wanted))

    def control(self, *words: str) -> Outcome:
        """Runs granaryctl, whatever comes of it."""
        return run(*self._control(words))

    def start_control(self, *words: str) -> Running:
        """Begins granaryctl beside what else goes on."""
        return Running(*self._control(words))

    def _control(self, words: tuple[str, ...]) -> list[str]:
        return ["python3", str(names.GRANARYCTL), "-d", str(self.domid), *words]

    def listing(self) -> dict:
        """What `granaryctl list --json` says: `pool`, `images` and `disks`."""
        return json.loads(self.control("list", "--json").expect(0).output)

    def disk(self, name: str) -> dict:
        """A disk with a name, as it is listed."""
        found = [disk for disk in self.listing()["disks"] if disk["name"] == name]
        if not found:
            raise Mismatch(f"{self.name} lists no disk {name}")
        return found[0]

    def statistics(self, guest: Domain, vdev: str) -> dict:
        """What `granaryctl stats --json` says of one vbd."""
        found = json.loads(self.control("stats", "--json").expect(0).output)["vbds"]
        wanted = {"frontend": guest.domid, "devid": devid(vdev)}
        return next(vbd for vbd in found if vbd["id"] == wanted)

    def device(self, guest: Domain, vdev: str) -> str:
        """The backend directory of one disk."""
        return f"{self.home}/backend/vbd/{guest.domid}/{devid(vdev)}"


class NvmeGranary(Granary):
    """A driver domain that has an NVMe controller: an HVM domain."""

    @classmethod
    def create(cls, name: str = "granary-nvme", words: str = "", **settings: object) -> Self:
        """Boots one that has this machine's controller, at the image's own entry: without firmware. `words` are what dom0 writes for it."""
        granary = cls._create(name, str(hvm_config("firmware_override")), "-p", tsc_mode="native", **settings)
        if words:
            xenstore.write(f"{granary.home}/{names.CONFIG_NODE}", words)
        xl("unpause", name).expect(0)
        granary.wait_ready()
        return granary

    @classmethod
    def create_by_hvmloader(cls, name: str = "granary-nvme", **settings: object) -> Self:
        """The same by the way that has a command line: firmware, and a boot loader of QEMU's."""
        granary = cls._create(name, str(hvm_config("kernel")), tsc_mode="native", **settings)
        granary.wait_ready()
        return granary


def hvm_config(key: str) -> Path:
    """images/granary-nvme.cfg with the image as this key's value, and this machine's controller."""
    lines = names.GRANARY_NVME_CONFIG.read_text().splitlines()
    # xl replaces settings, but it cannot take one out.
    kept = [line for line in lines if line.partition("=")[0].strip() not in ("kernel", "firmware_override", "pci")]
    config = Path(f"/tmp/granary-nvme-{key}.cfg")
    own = [f'{key} = "{names.GRANARY_HVM_IMAGE}"', f'pci = [ "{pci.nvme().address}" ]']
    config.write_text("".join(f"{line}\n" for line in kept + own))
    return config


def devid(vdev: str) -> int:
    """The device number of xvda…xvdz without a partition (Xen's docs/man/xen-vbd-interface.7)."""
    disk = ord(vdev[3]) - ord("a")
    return 202 << 8 | disk << 4 if disk < 16 else 1 << 28 | disk << 8


def backend_devices(domid: int) -> set[str]:
    """The device directories below a domain's backend/vbd."""
    nodes = xenstore.ls(f"/local/domain/{domid}/backend/vbd")
    return {path.removesuffix("/frontend-id") for path in nodes if path.endswith("/frontend-id")}


class Command:
    """A command that runs in a guest."""

    def __init__(self, guest: "Guest", text: str, number: int, since: int):
        self._guest = guest
        self._text = text
        self._number = number
        self._since = since

    def ended(self) -> bool:
        """Whether it has ended: its console alone is asked."""
        return bool(self._guest.console.matching(rf"^{self._number}= \d+$", self._since))

    def wait(self, limit: float = 120, rc: int = 0) -> str:
        """Its output, once it ended with this status. `limit` is a hang guard in seconds."""
        log = self._guest.console
        status = int(log.wait(rf"^{self._number}= (\d+)$", limit, self._since).group(1))
        start = f"{self._number}: "
        encoded = "".join(line.removeprefix(start) for line in log.lines[self._since :] if line.startswith(start))
        output = base64.b64decode(encoded).decode(errors="replace")
        if status != rc:
            raise Mismatch(f"{self._guest.name}: `{self._text}`: status {status}, not {rc}; it said: {output.strip()[-2000:]}")
        return output


class Guest(Domain):
    """A Linux PVH guest that runs nested/guest/init."""

    @classmethod
    def create(cls, name: str, *attached: disks.Disk, memory_mib: int = 256, vcpus: int = 1, cmdline: str = "", **settings: object) -> Self:
        """Boots a guest, and returns when it takes commands.

        `cmdline` is for its kernel and modules, `settings` are xl's.
        """
        return cls._boot(
            name,
            attached,
            kernel=str(names.GUEST_KERNEL),
            ramdisk=str(names.GUEST_INITRAMFS),
            cmdline=f"{names.GUEST_CMDLINE} {cmdline}",
            memory=memory_mib,
            vcpus=vcpus,
            **settings,
        )

    @classmethod
    def create_of_other_release(cls, name: str, *attached: disks.Disk) -> Self:
        """Boots the Linux of another Debian release than dom0's."""
        return cls._boot(name, attached, kernel=str(names.OTHER_KERNEL), ramdisk=str(names.OTHER_INITRAMFS), cmdline=names.GUEST_CMDLINE)

    @classmethod
    def create_by_grub(cls, name: str, *attached: disks.Disk, grub: Path = names.GRUB, **settings: object) -> Self:
        """Boots what GRUB finds on the disks, whose init must be nested/guest/init."""
        return cls._boot(name, attached, kernel=str(grub), ramdisk="", cmdline="", **settings)

    @classmethod
    def create_by_pygrub(cls, name: str, *attached: disks.Disk) -> Self:
        """Boots what pygrub, a program in dom0, finds on the first disk: libxl attaches it to dom0 for that."""
        return cls._boot(name, attached, bootloader="pygrub", bootloader_args=["-q"], kernel="", ramdisk="", cmdline="")

    @classmethod
    def _boot(cls, name: str, attached: tuple[disks.Disk, ...], **settings: object) -> Self:
        # A guest that reboots unasked (a triple fault looks so) must not hide it.
        defaults = {"tsc_mode": "native", "on_reboot": "destroy"}
        guest = cls._create(name, str(names.GUEST_CONFIG), disk=[str(disk) for disk in attached], **defaults | settings)
        guest.console.wait(names.GUEST_READY, limit=PATIENCE)
        return guest

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._numbers = itertools.count(1)

    def follow(self) -> None:
        """Goes on as the domain that has its name now, after a restart, restore or migration."""
        self.domid = int(xl("domid", self.name).expect(0).output)

    def migrate(self) -> Outcome:
        """`xl migrate` within the host, whatever comes of it."""
        # Until it has arrived it has another name, under which its console is logged for good.
        incoming = Console(f"{self.name}--incoming")
        # With an empty "ssh" the host's name is what sh is to run.
        outcome = xl("migrate", "-s", "", self.name, "xl migrate-receive", limit=PATIENCE)
        if outcome.rc == 0:
            self.follow()
            self.console.go_on_in(incoming)
        return outcome

    def wait_restarted(self, since: int) -> None:
        """Waits until the toolstack has made it anew, and it takes commands. `since` is a line before that."""
        old = self.domid
        eventually(
            f"{self.name} has another domid",
            lambda: any(listed.name == self.name and listed.domid > old for listed in domains()),
            PATIENCE,
        )
        self.follow()
        self.console.wait(names.GUEST_READY, limit=PATIENCE, since=since)

    def start(self, command: str) -> Command:
        """Runs a shell command line in the guest, beside others that run there."""
        number = next(self._numbers)
        since = self.console.mark()
        console.write(self.domid, f"{number} {base64.b64encode(command.encode()).decode()}\n")
        return Command(self, command, number, since)

    def sh(self, command: str, limit: float = 120, rc: int = 0) -> str:
        """Runs a shell command line in the guest; its output."""
        return self.start(command).wait(limit, rc).rstrip("\n")

    def try_attach(self, disk: disks.Disk) -> Outcome:
        return xl("block-attach", self.name, str(disk))

    def try_detach(self, vdev: str) -> Outcome:
        return xl("block-detach", self.name, vdev)

    def attach(self, disk: disks.Disk) -> float:
        """`xl block-attach`, until the guest can use the disk; the seconds xl took."""
        seconds = self.try_attach(disk).expect(0).seconds
        self.wait_disk(disk.vdev)
        return seconds

    def wait_disk(self, vdev: str) -> None:
        """Waits until it can use a disk that was attached.

        Who writes before that makes a file of that name, which takes all that is written from then on.
        """
        found = f"[ -b /dev/{vdev} ] && [ $(cat /sys/block/{vdev}/size) != 0 ]"
        self.sh(f"until {found}; do [ ! -f /dev/{vdev} ] || exit 1; usleep 20000; done", limit=60)

    def detach(self, vdev: str) -> float:
        """`xl block-detach`; the seconds it took."""
        return self.try_detach(vdev).expect(0).seconds

    def start_io(self, words: str) -> Command:
        """Runs lab-io (nested/io) beside what else goes on; waiting for it raises if a block was wrong."""
        return self.start(f"lab-io {words}")

    def io(self, words: str, limit: float = 120) -> dict:
        """Runs lab-io; what it measured."""
        return json.loads(self.start_io(words).wait(limit))

    def fill(self, path: str, mib: int) -> str:
        """Writes noise to a file or disk, down to the disk; its checksum."""
        return self.sh(_FILL.format(path=shlex.quote(path), mib=mib))

    def checksum(self, path: str, mib: int) -> str:
        """The checksum of a file's or disk's first MiBs, read anew from the disk."""
        return self.sh(_CHECKSUM.format(path=shlex.quote(path), mib=mib))

    def verify(self, path: str, mib: int) -> None:
        """Writes noise to the start of a disk or to a file; what is read back must be the same."""
        self.start_verify(path, mib).wait()

    def start_verify(self, path: str, mib: int) -> Command:
        """Begins `verify` beside what else goes on; waiting for it raises if the data differs."""
        return self.start(_VERIFY.format(path=shlex.quote(path), mib=mib))


class Work:
    """Checksummed I/O in a guest, round after round: noise is written to a file or disk, and read back."""

    def __init__(self, guest: Guest, path: str, mib: int):
        self._guest = guest
        self._node = f"/tmp/work{path.replace('/', '-')}"
        verify = _VERIFY.format(path=shlex.quote(path), mib=mib)
        self._command = guest.start(_WORK.format(node=self._node, verify=verify))
        self.goes_on()

    def rounds(self) -> int:
        """How many are done."""
        return int(self._guest.sh(f"cat {self._node} 2> /dev/null || echo 0"))

    def goes_on(self) -> None:
        """Waits for a round that began later than now."""
        # The first of the two may have begun before.
        wanted = self.rounds() + 2
        ended = f"{self._node}.ended"
        is_done = f"[ -e {ended} ] || [ 0$(cat {self._node}) -ge {wanted} ]"
        if self._guest.sh(f"until {is_done}; do usleep 100000; done 2> /dev/null; [ ! -e {ended} ] || echo yes"):
            raise Mismatch(f"the work on {self._node} ended: {self._command.wait()}")

    def end(self) -> int:
        """Lets it end after the round it is in; the rounds, all of which were right."""
        self._guest.sh(f"touch {self._node}.enough")
        self._command.wait()
        return self.rounds()


# Large writes: a small one makes Linux read the rest of its page first. md5sum takes a third of the
# instructions of busybox' other checksums, and nobody forges data here.
_FILL = """
case {path} in /dev/*) [ -b {path} ] || exit 1 ;; esac
noise=/tmp/noise.$$
dd if=/dev/urandom of=$noise bs=1M count={mib} 2> /dev/null &&
dd if=$noise of={path} bs=1M conv=fsync 2> /dev/null &&
md5sum < $noise && rm $noise"""
_CHECKSUM = """
echo 3 > /proc/sys/vm/drop_caches
dd if={path} bs=1M count={mib} 2> /dev/null | md5sum"""
_VERIFY = f"""
written=$({_FILL}) || exit 1
read=$({_CHECKSUM}) || exit 1
echo "written $written, read $read"
[ "$written" = "$read" ]"""
_WORK = """
rm -f {node}.enough {node}.ended
trap "touch {node}.ended" EXIT
round=0
until [ -e {node}.enough ]; do
    ( {verify} ) || exit 1
    round=$((round + 1))
    echo $round > {node}
done"""
