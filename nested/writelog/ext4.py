"""Looks into an ext4 file system in a file, from outside: nothing is mounted, so nobody needs to be root."""

import hashlib
import subprocess
from pathlib import Path


class Broken(Exception):
    """The file system is not what it must be."""


def recover(image: Path) -> None:
    """Replays its journal, as the next mount would. Changes the image."""
    # 1 says that it did something.
    _e2fsck("-E", "journal_only", "-p", str(image), accepted={0, 1})


def check(image: Path) -> None:
    """Raises unless e2fsck finds nothing wrong. Changes nothing."""
    _e2fsck("-f", "-n", str(image), accepted={0})


def md5(image: Path, name: str) -> str:
    """The checksum of a file in it; raises if there is none."""
    done = subprocess.run(["debugfs", "-R", f'cat "{name}"', str(image)], capture_output=True, check=False)
    # debugfs ends with 0 whatever happens, and says its version before anything else.
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if not line.startswith("debugfs ")]
    if done.returncode != 0 or said:
        raise Broken(f"{name}: {' '.join(said)}")
    return hashlib.md5(done.stdout).hexdigest()


def _e2fsck(*arguments: str, accepted: set[int]) -> None:
    done = subprocess.run(["e2fsck", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode not in accepted:
        raise Broken(f"e2fsck {' '.join(arguments)}: status {done.returncode}: {done.stdout.decode(errors='replace').strip()[-1500:]}")
