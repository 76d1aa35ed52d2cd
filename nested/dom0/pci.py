"""Devices of the machine that domains can be given, as xl and Linux' sysfs have them."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .xen import Mismatch, eventually, run, xl

_DEVICES = Path("/sys/bus/pci/devices")
_MODULES = Path("/modules")

# A storage controller for non-volatile memory, by the NVM Express interface.
_NVME_CLASS = "0x010802"

# The command register, two bytes; memory space, bus master.
_COMMAND_AT = 4
_MEMORY, _BUS_MASTER = 1 << 1, 1 << 2


# Controller Configuration, as 32-bit words from the start (NVM Express 1.4, 3.1.5). 0 disables it.
_CC = 0x14 // 4


@dataclass(frozen=True)
class Device:
    """A device by its address, as in 0000:00:05.0."""

    address: str

    def assignable(self) -> bool:
        """Whether it can be given to a domain: it is dom0's no longer, and nobody's yet."""
        return self.address in xl("pci-assignable-list").expect(0).output.split()

    def give_up(self) -> None:
        """Lets dom0 have it no longer, so that it can be given to a domain."""
        xl("pci-assignable-add", self.address).expect(0)

    def take_back(self) -> None:
        """Makes it dom0's again."""
        xl("pci-assignable-remove", self.address).expect(0)

    def stop(self) -> None:
        """Has the NVMe controller stop where it stands, whoever has it, as one does whose firmware failed."""
        with (self._folder / "resource0").open("r+b") as registers, mmap.mmap(registers.fileno(), mmap.PAGESIZE) as page:
            with memoryview(page).cast("I") as words:
                words[_CC] = 0

    def vanish(self) -> None:
        """It answers no access any more, and does none: what is left of a device that was pulled.

        Its next owner makes it well again.
        """
        with (self._folder / "config").open("r+b", buffering=0) as config:
            config.seek(_COMMAND_AT)
            command = int.from_bytes(config.read(2), "little")
            config.seek(_COMMAND_AT)
            config.write((command & ~(_MEMORY | _BUS_MASTER)).to_bytes(2, "little"))

    @property
    def _folder(self) -> Path:
        return _DEVICES / self.address


@contextmanager
def dom0s_own_driver(namespace: str) -> Iterator[Path]:
    """Lets Linux in dom0 drive the controller, which must be dom0's; the block device of a namespace, as in nvme0n1."""
    modules = (_MODULES / "at-need").read_text().split()
    for module in modules:
        run("insmod", str(_MODULES / f"{module}.ko")).expect(0)
    try:
        device = Path("/dev") / namespace
        eventually(f"there is {device}", device.exists)
        yield device
    finally:
        for module in reversed(modules):
            run("rmmod", module)


def nvme() -> Device:
    """The machine's NVMe controller."""
    found = [folder.name for folder in sorted(_DEVICES.iterdir()) if (folder / "class").read_text().strip() == _NVME_CLASS]
    if not found:
        raise Mismatch("this machine has no NVMe controller")
    return Device(found[0])
