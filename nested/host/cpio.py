"""Writes initramfs archives: the "newc" format of Linux' Documentation/driver-api/early-userspace/buffer-format.rst.

Everything belongs to root and has time 0, so an archive depends on its contents only, and nobody
needs to be root to write one. Archives may be concatenated: later files replace earlier ones.
"""

import stat
from pathlib import Path
from typing import BinaryIO

# The kernel finds the next archive of a concatenation at any multiple of 4; 512 is customary.
ALIGN = 512


class Archive:
    """One archive, written to `out` as its members are added. `close()` ends it."""

    def __init__(self, out: BinaryIO):
        self._out = out
        self._inode = 0
        self._written = 0
        self._directories = {"."}

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._parents(name)
        self._member(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        self._parents(name)
        self._member(name, stat.S_IFLNK | 0o777, target.encode())

    def directory(self, name: str) -> None:
        self._parents(f"{name}/child")

    def console(self) -> None:
        """/dev/console, which the kernel opens for init before init can mount /dev."""
        self._parents("dev/console")
        self._member("dev/console", stat.S_IFCHR | 0o600, b"", rdev=(5, 1))

    def tree(self, root: Path, at: str, skip=lambda path: False) -> None:
        """Everything below `root` as `at`/…, links as links."""
        for path in sorted(root.rglob("*")):
            name = f"{at}/{path.relative_to(root)}"
            if skip(path):
                continue
            if path.is_symlink():
                self.link(name, str(path.readlink()))
            elif path.is_file():
                self.file(name, path.read_bytes(), path.stat().st_mode & 0o777)

    def close(self) -> None:
        self._member("TRAILER!!!", 0, b"")
        self._pad(ALIGN)

    def _parents(self, name: str) -> None:
        for parent in reversed(Path(name).parents):
            if str(parent) not in self._directories:
                self._directories.add(str(parent))
                self._member(str(parent), stat.S_IFDIR | 0o755, b"")

    def _member(self, name: str, mode: int, data: bytes, rdev: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(path), 0)
        self._write(b"070701" + b"".join(b"%08X" % field for field in fields) + path)
        self._pad(4)
        self._write(data)
        self._pad(4)

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._written += len(data)

    def _pad(self, align: int) -> None:
        self._write(b"\0" * (-self._written % align))


class Folder:
    """The same members as files below a folder, but for devices, which take root to make."""

    def __init__(self, root: Path):
        self._root = root

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        path = self._place(name)
        path.write_bytes(data)
        path.chmod(mode)

    def link(self, name: str, target: str) -> None:
        self._place(name).symlink_to(target)

    def directory(self, name: str) -> None:
        (self._root / name).mkdir(parents=True, exist_ok=True)

    def console(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _place(self, name: str) -> Path:
        """Where a member goes. It replaces an earlier one, and does not follow it if that is a link."""
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path
