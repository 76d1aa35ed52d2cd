"""Makes the disk images that scenarios serve: one ext4 file system in every format, and one to boot from.

They travel to dom0 as one tar archive, which keeps their holes (nested/dom0/images.py unpacks it).
"""

import hashlib
import os
import random
import subprocess
import tempfile
from pathlib import Path

GOLD_MIB = 256
BOOT_MIB = 128
NR_FILES = 24
MAX_FILE_BYTES = 640 << 10

# Each is the same disk; the name's last part is the format it must be found to have.
FORMATS = {
    "gold.qcow2": ["-O", "qcow2"],
    "gold-packed.qcow2": ["-c", "-O", "qcow2"],
    "gold.vhd": ["-O", "vpc", "-o", "subformat=dynamic,force_size=on"],
}


def make(out: Path, bootable: Path, mke2fs: list[str]) -> None:
    """Writes the archive. `bootable` holds the files to boot from, `mke2fs` is the command."""
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        raw = folder / "gold.raw"
        _file_system(raw, GOLD_MIB, _files(folder / "files"), mke2fs)
        for name, options in FORMATS.items():
            _run("qemu-img", "convert", "-f", "raw", *options, str(raw), str(folder / name))
        with raw.open("rb") as file:
            (folder / "gold.md5").write_text(hashlib.file_digest(file, "md5").hexdigest())
        _file_system(folder / "boot.raw", BOOT_MIB, bootable, mke2fs)
        members = ["gold.raw", "gold.md5", *FORMATS, "boot.raw"]
        _run("tar", "--create", "--sparse", "--file", str(out), "--directory", str(folder), *members)


def _files(folder: Path) -> Path:
    """Files with noise, the same each time, and a list of their checksums for `md5sum -c`."""
    noise = random.Random("gold")
    folder.mkdir()
    sums = ""
    for number in range(NR_FILES):
        data = noise.randbytes(noise.randrange(1, MAX_FILE_BYTES))
        (folder / f"{number:02}").write_bytes(data)
        sums += f"{hashlib.md5(data).hexdigest()}  {number:02}\n"
    (folder / "MD5SUMS").write_text(sums)
    return folder


def _file_system(image: Path, mib: int, files: Path, mke2fs: list[str]) -> None:
    """An ext4 file system that holds these files, in a file with holes."""
    with image.open("wb") as file:
        os.truncate(file.fileno(), mib << 20)
    # Without what Debian 12's GRUB cannot read.
    features = "^metadata_csum_seed,^orphan_file"
    _run(*mke2fs, "-q", "-t", "ext4", "-O", features, "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", "-d", str(files), str(image))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
