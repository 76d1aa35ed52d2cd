"""The backends that are compared, each with disks of the same size. For dom0."""

from abc import ABC, abstractmethod
from pathlib import Path

from ..dom0 import disks, pci
from ..dom0.domain import Domain, Granary, Guest, devid
from ..dom0.names import COPIED_BY, DRIVER_INITRAMFS, GUEST_BZIMAGE, GUEST_CMDLINE, GUEST_KERNEL, QEMU, STORAGE_INITRAMFS
from ..dom0.xen import Running, Stuck, eventually, run, xenstore
from . import goals
from .results import GRANARY

DISK_MIB = 64
LINUX_NAME = "linux-driver"

NR_DISKS = 4
"""How many a Linux backend has; a Granary has as many as are asked for."""

COPY_INSTRUCTIONS = {"sse": 541, "u64": 1288, "erms": 4096}
"""What Granary's routines take for a page of 4 KiB (docs/benchmarks.md, "On the host")."""

REP_MOVSQ_INSTRUCTIONS = 512
"""A page by `rep movsq`, as Linux and Xen copy here: the emulator counts an iteration as an instruction."""


class Backend(ABC):
    """One that serves disks of DISK_MIB."""

    name: str
    """Its row in the tables."""
    domid: int

    @abstractmethod
    def attach(self, guest: Guest, vdev: str) -> None:
        """Attaches one of its disks; returns when the guest can use it."""

    @abstractmethod
    def detach(self, guest: Guest, vdev: str) -> None: ...

    @abstractmethod
    def destroy(self) -> None: ...

    def copy_instructions(self, *, persistent: bool) -> int:
        """What it takes to copy a page of data, the hypervisor's part included."""
        return REP_MOVSQ_INSTRUCTIONS


class OfGranary(Backend):
    """A Granary that copies by one of its routines, or by the one it chooses itself."""

    def __init__(self, routine: str | None = None):
        cmdline = f"copy={routine}" if routine else ""
        self._domain = Granary.create(f"granary-{routine or 'bench'}", memory=DISK_MIB + 16, cmdline=cmdline)
        self._routine = self._domain.console.wait(COPIED_BY).group(1)
        self.name = f"Granary ({self._routine})"
        self.domid = self._domain.domid

    def attach(self, guest: Guest, vdev: str) -> None:
        guest.attach(disks.ram(vdev, f"{DISK_MIB}M", backend=self._domain.name))

    def detach(self, guest: Guest, vdev: str) -> None:
        guest.detach(vdev)

    def destroy(self) -> None:
        self._domain.destroy()

    def taken_kib(self) -> float:
        """The memory that it has in use, from wherever it counts."""
        usage = self._domain.usage()
        return usage.heap_peak_bytes / 1024 - usage.free_pages * 4

    def copy_instructions(self, *, persistent: bool) -> int:
        return COPY_INSTRUCTIONS[self._routine] if persistent else REP_MOVSQ_INSTRUCTIONS


class OfLinux(Backend):
    """blkback over brd in a Linux PVH domain.

    A real one runs `xl devd`, which says what device a disk is and removes what was detached. Here
    dom0 does that for it: it is nothing that a request waits for.
    """

    name = "Linux driver domain"

    def __init__(self, memory_mib: int = DISK_MIB * NR_DISKS + 128, disk_mib: int = DISK_MIB):
        self._domain = LinuxDriver.create(LINUX_NAME, memory_mib, disk_mib)
        self.domid = self._domain.domid
        self._free = list(range(NR_DISKS))
        self._used: dict[str, int] = {}

    def attach(self, guest: Guest, vdev: str) -> None:
        self._used[vdev] = self._free.pop(0)
        self._domain.serve(guest, vdev, f"1:{self._used[vdev]:x}")

    def detach(self, guest: Guest, vdev: str) -> None:
        self._domain.serve_no_more(guest, vdev)
        self._free.append(self._used.pop(vdev))

    def destroy(self) -> None:
        self._domain.destroy()

    def taken_kib(self) -> float:
        """The memory that it has in use, from wherever it counts."""
        return -int(self._domain.sh("sed -n 's/^MemAvailable: *//p' /proc/meminfo").removesuffix(" kB"))


class LinuxDriver(Guest):
    """A Linux that has nothing but blkback and disks for it."""

    @classmethod
    def create(cls, name: str, memory_mib: int, disk_mib: int) -> "LinuxDriver":
        return cls._boot(
            name,
            (),
            kernel=str(GUEST_KERNEL),
            ramdisk=str(DRIVER_INITRAMFS),
            cmdline=f"{GUEST_CMDLINE} brd.rd_nr={NR_DISKS} brd.rd_size={disk_mib << 10}",
            memory=memory_mib,
            driver_domain=1,
        )

    @classmethod
    def create_over(cls, *upstream: disks.Disk) -> "LinuxDriver":
        """One whose disks other domains serve."""
        return cls._boot(LINUX_NAME, upstream, kernel=str(GUEST_KERNEL), **_STORAGE)

    @classmethod
    def create_over_nvme(cls) -> "LinuxDriver":
        """One that has this machine's NVMe controller, which takes an HVM domain."""
        hvm = {"type": "hvm", "xen_platform_pci": 0, "vga": "none", "vnc": 0, "usb": 0, "hvm_pirq": 1, "pci": [pci.nvme().address]}
        return cls._boot(LINUX_NAME, (), kernel=str(GUEST_BZIMAGE), **hvm, **_STORAGE)

    def number(self, device: str) -> str:
        """A block device of it, as blkback wants to be told."""
        return self.sh(f"until [ -b {device} ]; do usleep 20000; done; stat -c %t:%T {device}")

    def serve(self, guest: Guest, vdev: str, number: str) -> None:
        """Attaches one of its block devices."""
        guest.try_attach(disks.granary(vdev, "device", backend=self.name)).expect(0)
        directory = self._directory(guest, vdev)
        xenstore.write(f"{directory}/physical-device", number)
        xenstore.write(f"{directory}/hotplug-status", "connected")
        guest.wait_disk(vdev)

    def serve_no_more(self, guest: Guest, vdev: str) -> None:
        detaching = Running("xl", "block-detach", guest.name, vdev)
        directory = self._directory(guest, vdev)
        eventually("blkback has closed", lambda: xenstore.read(f"{directory}/state") == "6")
        xenstore.remove(directory)
        detaching.wait().expect(0)

    def _directory(self, guest: Domain, vdev: str) -> str:
        return f"{self.home}/backend/vbd/{guest.domid}/{devid(vdev)}"


_STORAGE = {"ramdisk": str(STORAGE_INITRAMFS), "cmdline": GUEST_CMDLINE, "memory": 256, "driver_domain": 1}


class Over(Backend):
    """A backend over a disk that is not in its memory."""

    def __init__(self, who: str, what: str, copied: int = REP_MOVSQ_INSTRUCTIONS):
        self.name = f"{who} over {what}"
        # A controller reaches the guest's pages by itself, whosever it is.
        self._copied = 0 if what == goals.NVME else copied

    def copy_instructions(self, *, persistent: bool) -> int:
        return self._copied


class LinuxOver(Over):
    """blkback in a Linux domain."""

    def __init__(self, what: str, domain: LinuxDriver, device: str):
        super().__init__(goals.DRIVER_DOMAIN, what)
        self.domid = domain.domid
        self._domain = domain
        self._number = domain.number(device)

    def attach(self, guest: Guest, vdev: str) -> None:
        self._domain.serve(guest, vdev, self._number)

    def detach(self, guest: Guest, vdev: str) -> None:
        self._domain.serve_no_more(guest, vdev)

    def destroy(self) -> None:
        self._domain.destroy()


class GranaryOver(Over):
    """A Granary."""

    def __init__(self, what: str, domain: Granary, target: str):
        super().__init__(GRANARY, what, COPY_INSTRUCTIONS[domain.console.wait(COPIED_BY).group(1)])
        self.domid = domain.domid
        self._domain = domain
        self._target = target

    def attach(self, guest: Guest, vdev: str) -> None:
        guest.attach(disks.granary(vdev, self._target, backend=self._domain.name))

    def detach(self, guest: Guest, vdev: str) -> None:
        guest.detach(vdev)

    def destroy(self) -> None:
        self._domain.destroy()


class InDom0(Backend):
    """blkback over brd in dom0."""

    name = "Linux in dom0"
    domid = 0

    def __init__(self):
        run("rmmod", "brd").expect(0)
        run("insmod", "/modules/brd.ko", f"rd_nr={NR_DISKS}", f"rd_size={DISK_MIB << 10}").expect(0)

    def attach(self, guest: Guest, vdev: str) -> None:
        guest.attach(disks.blkback(vdev, f"/dev/ram{self._number(vdev)}"))

    def detach(self, guest: Guest, vdev: str) -> None:
        guest.detach(vdev)

    def destroy(self) -> None:
        pass

    @staticmethod
    def _number(vdev: str) -> int:
        return (ord(vdev[3]) - ord("a")) % NR_DISKS


class InDom0Over(Over):
    """blkback over a block device of dom0's."""

    domid = 0

    def __init__(self, what: str, device: Path):
        super().__init__(goals.DOM0, what)
        self._device = device

    def attach(self, guest: Guest, vdev: str) -> None:
        guest.attach(disks.blkback(vdev, str(self._device)))

    def detach(self, guest: Guest, vdev: str) -> None:
        guest.detach(vdev)

    def destroy(self) -> None:
        pass


class OfQemu(Backend):
    """QEMU in dom0, over a file in memory: what libxl calls qdisk."""

    name = "qdisk in dom0"
    domid = 0

    def __init__(self, guest: Guest):
        run("truncate", "-s", f"{DISK_MIB}M", str(_QDISK)).expect(0)
        silent = ["-nodefaults", "-nographic", "-monitor", "null", "-serial", "null", "-parallel", "null"]
        self._qemu = Running(str(QEMU), "-M", "xenpv", "-xen-domid", str(guest.domid), "-xen-attach", "-name", "qdisk", *silent)
        try:
            state = f"/local/domain/0/device-model/{guest.domid}/state"
            eventually("QEMU runs", lambda: xenstore.read(state) == "running")
        except Stuck as stuck:
            self._qemu.terminate()
            raise Stuck(f"{stuck}; it said: {self._qemu.wait().output.strip()}") from None
        # libxl attaches nothing without that (libxl__dm_check_start), and ends it with the guest.
        xenstore.write(f"{guest.home}/image/device-model-pid", str(self._qemu.pid))

    def attach(self, guest: Guest, vdev: str) -> None:
        guest.attach(disks.Disk(vdev, f"vdev={vdev},format=raw,access=rw,backendtype=qdisk,target={_QDISK}"))

    def detach(self, guest: Guest, vdev: str) -> None:
        guest.detach(vdev)

    def destroy(self) -> None:
        self._qemu.terminate()
        self._qemu.wait()
        _QDISK.unlink()


_QDISK = Path("/tmp/qdisk.img")
