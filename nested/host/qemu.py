"""The emulated machine: its command line, its lock, and the process. docs/testing.md says why each flag."""

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .nvme import Controller
from .roots import Boot, Say

# Two emulated machines would starve each other, so one runs at a time, of all checkouts.
LOCK = Path("/tmp/granary-qemu.lock")

# Each minus was found necessary (docs/testing.md).
CPU = "EPYC,-monitor,-smap,-rdtscp"
XEN_ARGS = (
    "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all "
    "spec-ctrl=eager-fpu dom0_mem={dom0_mib}M,max:{dom0_mib}M"
)
DOM0_ARGS = "console=hvc0 quiet panic=1 nokaslr mitigations=off rdinit=/init"


# What the machine's clock counts. With "instructions" a nanosecond is an instruction, and an idle
# machine skips to its next timer: nothing depends on how busy the developer's machine is, the
# toolstack's limits of 10 s included, and waiting costs nothing. It means one processor.
CLOCKS = {
    "instructions": ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off,align=off", "-smp", "1"],
    "real": ["-accel", "tcg,thread=single", "-smp", "1"],
    "real-2cpus": ["-accel", "tcg,thread=multi", "-smp", "2"],
}


@dataclass(frozen=True)
class Machine:
    """The shape of the machine that Xen runs on."""

    memory_mib: int = 5120
    clock: str = "instructions"
    nvme: Controller | None = None
    """A controller that can be passed through, and an IOMMU for that."""

    @property
    def dom0_mib(self) -> int:
        return 2048


@dataclass(frozen=True)
class Channels:
    """Where a machine and the host half speak to each other."""

    folder: Path

    @property
    def events(self) -> Path:
        """The second serial port's pipes, without their suffixes."""
        return self.folder / "events"

    @property
    def monitor(self) -> Path:
        """A socket."""
        return self.folder / "monitor"


# Xen takes Intel's IOMMU beside AMD's processor. A page table shared with the processor needs what
# the emulated IOMMU does not have.
IOMMU = ["-device", "intel-iommu,intremap=on"]
XEN_IOMMU_ARGS = " iommu=1,verbose,no-sharept"


def command(machine: Machine, boot: Boot, archive: Path, console: str, channels: Channels) -> list[str]:
    """QEMU's command line. `console` is a -serial argument."""
    xen_args = XEN_ARGS.format(dom0_mib=machine.dom0_mib) + (XEN_IOMMU_ARGS if machine.nvme else "")
    # QEMU splits -initrd at commas, and reads a doubled one as itself.
    dom0 = f"{boot.kernel} {DOM0_ARGS}".replace(",", ",,")
    return [
        "qemu-system-x86_64",
        *("-M", "q35,kernel-irqchip=split" if machine.nvme else "q35"),
        *CLOCKS[machine.clock],
        *("-cpu", CPU),
        *("-m", str(machine.memory_mib)),
        *("-kernel", str(boot.xen)),
        *("-append", xen_args),
        *("-initrd", f"{dom0},{archive}"),
        *("-serial", console),
        *("-qmp", f"unix:{channels.monitor},server=on,wait=off"),
        *("-chardev", f"pipe,id=events,path={channels.events}"),
        *("-serial", "chardev:events"),
        # The IOMMU comes before what is behind it.
        *([*IOMMU, *machine.nvme.arguments()] if machine.nvme else []),
        *("-display", "none"),
        *("-nic", "none"),
        "-no-reboot",
    ]


@contextlib.contextmanager
def exclusive(say: Say) -> Iterator[None]:
    """Holds the lock of the one emulated machine."""
    # Opened by whoever comes first, used by every user.
    with contextlib.suppress(OSError):
        os.close(os.open(LOCK, os.O_CREAT | os.O_RDWR, 0o666))
    with LOCK.open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for the QEMU that holds {LOCK}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def running(arguments: list[str], log: Path, interactive: bool) -> Iterator[subprocess.Popen]:
    """Runs QEMU for the length of the block; what is still running at its end is killed."""
    with log.open("wb") as said:
        terminal = {} if interactive else {"stdin": subprocess.DEVNULL, "stdout": said}
        process = subprocess.Popen(arguments, stderr=said, **terminal)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
