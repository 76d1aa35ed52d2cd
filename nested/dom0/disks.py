"""Disk specifications as xl takes them (xl-disk-configuration(5))."""

from dataclasses import dataclass

from . import names


@dataclass(frozen=True)
class Disk:
    """One disk of a guest."""

    vdev: str
    spec: str

    def __str__(self) -> str:
        return self.spec


def granary(vdev: str, target: str, access: str = "rw", backend: str = names.GRANARY) -> Disk:
    """A disk that a Granary serves; `target` goes to it as it is."""
    return Disk(vdev, f"vdev={vdev},format=raw,access={access},backend={backend},target={target}")


def ram(vdev: str, size: str, backend: str = names.GRANARY) -> Disk:
    """A RAM disk of a Granary."""
    return granary(vdev, f"ram,size={size}", backend=backend)


def blkback(vdev: str, path: str) -> Disk:
    """A file or block device that dom0's own blkback serves."""
    return Disk(vdev, f"vdev={vdev},format=raw,access=rw,script={names.BLOCK_SCRIPT},target={path}")
