"""The NVMe controller of the machine for passthrough: its namespaces, and the log of what reached the first."""

from dataclasses import dataclass
from pathlib import Path

from ..dom0.names import NVME_BAD_MIB, NVME_MIB


FIRST_NODE = "first"
"""QEMU's block node of the first namespace, whose flushes can be held up."""


@dataclass(frozen=True)
class Controller:
    """Files in a folder: a boot begins with empty ones."""

    folder: Path

    @property
    def first(self) -> Path:
        """Namespace 1, of 512-byte blocks."""
        return self.folder / "first.img"

    @property
    def second(self) -> Path:
        """Namespace 2, of 4096-byte blocks."""
        return self.folder / "second.img"

    @property
    def log(self) -> Path:
        """What was written to the first, and its flushes (nested/writelog)."""
        return self.folder / "first.log"

    def make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, mib in zip((self.first, self.second, self.log), (*NVME_MIB, 0)):
            with path.open("wb") as file:
                file.truncate(mib << 20)

    def arguments(self) -> list[str]:
        """QEMU's, behind those of the IOMMU."""
        # A flush is held up behind the log, which has it when it has ended.
        held = f"file.driver=blkdebug,file.image.driver=file,file.image.filename={self.first}"
        logged = f"driver=blklogwrites,node-name={FIRST_NODE},{held},log.driver=file,log.filename={self.log}"
        bad = f"inject-error.0.event=none,inject-error.0.errno=5,inject-error.0.sector={NVME_BAD_MIB << 11}"
        faulty = f"driver=blkdebug,node-name=second,image.driver=file,image.filename={self.second},{bad}"
        return [
            *("-blockdev", logged),
            *("-blockdev", faulty),
            *("-device", "nvme,id=nvme,serial=granary-lab,addr=5"),
            *("-device", f"nvme-ns,bus=nvme,nsid=1,drive={FIRST_NODE}"),
            *("-device", "nvme-ns,bus=nvme,nsid=2,drive=second,logical_block_size=4096,physical_block_size=4096"),
        ]
