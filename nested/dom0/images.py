"""The disk images that the host half made (nested/host/gold.py), and files beside them."""

import tarfile
from pathlib import Path

from . import names
from .xen import run

FOLDER = Path("/tmp/images")


def unpacked(*members: str) -> list[Path]:
    """Files of the archive, with their holes. dom0's memory holds them: `remove` gives it back."""
    FOLDER.mkdir(exist_ok=True)
    with tarfile.open(names.DISK_IMAGES) as archive:
        for member in members:
            archive.extract(member, FOLDER)
    return [FOLDER / member for member in members]


def packed(name: str, *members: str) -> Path:
    """An archive that scripts/pack makes of files of the archive."""
    archive, files = FOLDER / name, unpacked(*members)
    run("python3", str(names.PACK), str(archive), *(str(file) for file in files)).expect(0)
    remove(*files)
    return archive


def empty(name: str, mib: int) -> Path:
    """A raw image of zeroes, which is one hole."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / name).open("wb") as file:
        file.truncate(mib << 20)
    return FOLDER / name


def gold_checksum() -> str:
    """The md5 of the whole disk that every `gold.…` is."""
    return unpacked("gold.md5")[0].read_text()


def remove(*files: Path) -> None:
    for file in files:
        file.unlink()
