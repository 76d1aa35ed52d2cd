"""Builds and caches what QEMU boots: Xen, dom0's kernel and archive, the guests' kernels and archives.

Debian's packages are extracted, never installed, so nothing here needs root and no package's
script runs. Two caches under target/nested/<suite>/: `tree-<hash>` holds the extracted packages,
`boot-<hash>` what is cut from them. The hash is of the recipe, which is this file's contents and
those it uses: a changed recipe builds anew, an unchanged one costs nothing.
"""

import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from . import cpio, elf, gold

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / "target" / "nested"
GUEST_SOURCES = REPOSITORY / "nested" / "guest"

KERNEL_PACKAGE = "linux-image-amd64"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Suite:
    """A Debian release, the version of Xen in it, and the release whose kernel guests run as well."""

    name: str
    xen: str
    other: str

    @property
    def packages(self) -> list[str]:
        return [
            f"xen-hypervisor-{self.xen}-amd64",
            f"xen-utils-{self.xen}",
            "xenstore-utils",
            KERNEL_PACKAGE,
            "busybox-static",
            "python3",
            "e2fsprogs",
            "util-linux",
            "grub-xen-host",
            "qemu-system-xen",
            "seabios",
            "dmsetup",
        ]


SUITES = {suite.name: suite for suite in [Suite("bookworm", "4.17", other="trixie"), Suite("trixie", "4.20", other="bookworm")]}

# Where both sorts of Debian root, merged or not, keep programs and libraries.
PROGRAM_DIRECTORIES = ["bin", "sbin", "usr/bin", "usr/sbin"]
LIBRARY_DIRECTORIES = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
LOADER_DIRECTORIES = ["lib64", "usr/lib64"]
LOADER = "ld-linux-x86-64.so.2"

# The kernels, PVH and PV, that read a disk's /boot/grub/grub.cfg.
GRUB = "usr/lib/grub-xen/grub-i386-xen_pvh.bin"
GRUB_PV = "usr/lib/grub-xen/grub-x86_64-xen.bin"

# What the C library opens by name when a thread is cancelled, which libxl does.
OPENED_BY_NAME = ["libgcc_s.so.1"]

XEN_PROGRAMS = ["xl", "xenstored", "xenstore-control", "xenconsoled", "xen-init-dom0", "libxl-save-helper", "xentrace"]
DOM0_PROGRAMS = [
    "xenstore-ls", "xenstore-read", "xenstore-write", "xenstore-rm", "xenstore-chmod", "python3", "dmsetup", "e2fsck", "debugfs",
]  # fmt: skip
DOM0_MODULES = [
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xenfs",
    "xen-blkback",
    "xen-blkfront",
    "xen-pciback",
    "loop",
    "brd",
    "dm-log-writes",
    "dm-delay",
]
# In dom0 for who asks for it: it would take the controller that is to be passed through.
DOM0_MODULES_AT_NEED = ["nvme"]
# What serves disks of the type qdisk, and is the device model of HVM domains.
QEMU = "usr/libexec/xen-qemu-system-i386"
# What an HVM domain starts with, where QEMU and libxl look for it. QEMU ends without a keymap, though
# there is no display.
FIRMWARE = [
    "usr/share/seabios/bios-256k.bin",
    "usr/share/qemu/pvh.bin",
    "usr/share/qemu/linuxboot.bin",
    "usr/share/qemu/keymaps/en-us",
]
GUEST_PROGRAMS = ["mke2fs", "e2fsck", "blkdiscard", "fstrim"]
# ext4 asks for crc32c by name at run time, which no dependency tells.
GUEST_MODULES = ["xen-blkfront", "crc32c_generic", "ext4", "loop"]
# What Granary is compared with: a Linux that has nothing but this.
DRIVER_MODULES = ["brd", "xen-blkback"]

# The same over a disk that it has from elsewhere.
STORAGE_MODULES = ["xen-blkback", "xen-blkfront", "nvme"]

# Python's library without what no runner uses: a third of its size.
PYTHON_UNUSED = {
    "asyncio", "config-*", "distutils", "ensurepip", "idlelib", "lib2to3",
    "multiprocessing", "pydoc_data", "sqlite3", "test", "tkinter", "turtledemo", "unittest",
    "wsgiref", "xml", "xmlrpc",
}  # fmt: skip

# Parts of the packages that are not even extracted; of these, and of modules, only some folders are.
NOT_EXTRACTED = ("./usr/share", "./var", "./dev", "./run", "./tmp", "./usr/include")
EXTRACTED = ("./usr/share/seabios/", "./usr/share/qemu/")
MODULE_FOLDERS = (
    "arch/x86/crypto", "block", "crypto", "drivers/block", "drivers/dax", "drivers/md", "drivers/nvme", "drivers/xen",
    "fs/ext4", "fs/jbd2", "fs/mbcache", "lib",
)  # fmt: skip


@dataclass(frozen=True)
class Boot:
    """The files that one boot is made of."""

    directory: Path

    @property
    def xen(self) -> Path:
        return self.directory / "xen"

    @property
    def kernel(self) -> Path:
        """The uncompressed Linux that dom0 and the guests run."""
        return self.directory / "vmlinux"

    @property
    def dom0(self) -> Path:
        """dom0's root, without the lab's own files."""
        return self.directory / "dom0.cpio"

    @property
    def guest(self) -> Path:
        return self.directory / "guest.cpio"

    @property
    def driver(self) -> Path:
        """The archive of a Linux that is a driver domain and nothing else."""
        return self.directory / "driver.cpio"

    @property
    def other_kernel(self) -> Path:
        """The uncompressed Linux of the suite's `other`, for guests."""
        return self.directory / "vmlinux-other"

    @property
    def other_guest(self) -> Path:
        """`guest` with that Linux' modules."""
        return self.directory / "guest-other.cpio"

    @property
    def disks(self) -> Path:
        """The disk images that scenarios serve, as one archive."""
        return self.directory / "disks.tar"


def boot_files(suite: Suite, say: Say) -> Boot:
    """The boot files of a suite: from the cache, or built into it."""
    here = Path(__file__).parent
    tree = _Tree(suite.name, suite.packages)
    other = _Tree(suite.other, [KERNEL_PACKAGE])
    sources = [here / "roots.py", here / "cpio.py", here / "elf.py", here / "gold.py", *sorted(GUEST_SOURCES.iterdir())]
    boot_key = _key(tree.key.encode(), other.key.encode(), *(source.read_bytes() for source in sources))
    cache = CACHE / suite.name
    boot = Boot(cache / f"boot-{boot_key}")
    if not boot.directory.exists():
        for needed in (tree, other):
            needed.fetch(say)
        say("building the boot archives")
        _into_place(boot.directory, lambda part: _build(_Root(suite, tree.path), _Root(suite, other.path), part))
    for stale in cache.glob("boot-*"):
        if stale != boot.directory:
            shutil.rmtree(stale)
    return boot


@dataclass(frozen=True)
class _Tree:
    """Packages of a Debian release, extracted."""

    release: str
    packages: list[str]

    @property
    def key(self) -> str:
        return _key(self.release.encode(), *(p.encode() for p in self.packages), repr((NOT_EXTRACTED, EXTRACTED, MODULE_FOLDERS)).encode())

    @property
    def path(self) -> Path:
        return CACHE / self.release / f"tree-{self.key}"

    def fetch(self, say: Say) -> None:
        """Extracts them, unless they are there."""
        if not self.path.exists():
            say(f"fetching Debian {self.release}'s packages: {' '.join(self.packages)}")
            _into_place(self.path, lambda part: _extract(self.release, self.packages, part))


def _key(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:12]


def _into_place(final: Path, build: Callable[[Path], None]) -> None:
    """Builds a directory beside its place and renames it, so a killed build leaves no half cache."""
    final.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        build(part)
        part.chmod(0o755)
        part.rename(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _extract(release: str, packages: list[str], to: Path) -> None:
    """Lets mmdebstrap download and extract the packages, and keeps the useful part of them."""
    archive = to / "root.tar"
    log = to / "mmdebstrap.log"
    command = ["mmdebstrap", "--variant=extract", f"--include={','.join(packages)}", release, str(archive)]
    with log.open("wb") as out:
        if subprocess.run(command, stdout=out, stderr=out, check=False).returncode != 0:
            raise RuntimeError(f"mmdebstrap failed:\n{log.read_text()[-3000:]}")

    def useful(member: tarfile.TarInfo) -> bool:
        left_out = member.name.startswith(NOT_EXTRACTED) and not member.name.startswith(EXTRACTED)
        if left_out or not (member.isfile() or member.issym() or member.islnk() or member.isdir()):
            return False
        _, is_module, inside = member.name.partition("/kernel/")
        return "lib/modules/" not in member.name or (bool(is_module) and inside.startswith(MODULE_FOLDERS))

    with tarfile.open(archive) as tar:
        # Links may point anywhere: nothing follows them out of the tree.
        tar.extraction_filter = staticmethod(lambda member, _path: member)
        for member in filter(useful, tar):
            tar.extract(member, to, set_attrs=False)
            if member.isfile():
                (to / member.name).chmod(member.mode | 0o400)
    archive.unlink()


def _build(root: "_Root", other: "_Root", to: Path) -> None:
    boot = Boot(to)
    boot.xen.write_bytes(gzip.decompress(root.xen()))
    boot.kernel.write_bytes(elf.vmlinux(root.bzimage()))
    boot.other_kernel.write_bytes(elf.vmlinux(other.bzimage()))
    root.compile_python()
    with boot.guest.open("wb") as out:
        root.guest(cpio.Archive(out))
    with boot.driver.open("wb") as out:
        root.driver(cpio.Archive(out))
    with boot.other_guest.open("wb") as out:
        out.write(boot.guest.read_bytes())
        other.guest_modules(cpio.Archive(out))
    with tempfile.TemporaryDirectory(dir=to) as folder:
        bootable = cpio.Folder(Path(folder))
        root.guest(bootable)
        bootable.file("boot/vmlinuz", root.bzimage())
        bootable.file("boot/vmlinux", boot.kernel.read_bytes())
        bootable.file("boot/initramfs", boot.guest.read_bytes())
        bootable.file("boot/grub/grub.cfg", (GUEST_SOURCES / "grub.cfg").read_bytes())
        gold.make(boot.disks, Path(folder), root.native("mke2fs"))
    with boot.dom0.open("wb") as out:
        root.dom0(cpio.Archive(out), boot)


class _Root:
    """An extracted tree, and how the two archives are cut from it."""

    def __init__(self, suite: Suite, tree: Path):
        self._suite = suite
        self._tree = tree
        self._xen = tree / "usr/lib" / f"xen-{suite.xen}"
        self._modules = {
            _module_name(path).replace("_", "-"): path for path in tree.glob("**/lib/modules/**/*.ko*")
        }

    def xen(self) -> bytes:
        return next((self._tree / "boot").glob("xen-*.gz")).read_bytes()

    def bzimage(self) -> bytes:
        return next((self._tree / "boot").glob("vmlinuz-*")).read_bytes()

    def dom0(self, archive: cpio.Archive, boot: Boot) -> None:
        programs = {name: self._xen / "bin" / name for name in XEN_PROGRAMS}
        programs |= {name: self._program(name) for name in DOM0_PROGRAMS}
        self._base(archive, programs)
        qemu = self._tree / QEMU
        archive.file(QEMU, qemu.read_bytes(), 0o755)
        self._libraries(archive, [qemu])
        hvmloader = str((self._xen / "boot/hvmloader").relative_to(self._tree))
        for firmware in [hvmloader, *FIRMWARE]:
            archive.file(firmware, (self._tree / firmware).read_bytes())
        # libxl runs its helper by this path.
        archive.link(f"usr/lib/xen-{self._suite.xen}/bin/libxl-save-helper", "/bin/libxl-save-helper")
        python = self._python_library()
        archive.tree(python, str(python.relative_to(self._tree)), _python_unused(python))
        for extension in python.glob("lib-dynload/*.so"):
            self._libraries(archive, [extension])
        self._add_modules(archive, DOM0_MODULES, DOM0_MODULES_AT_NEED)
        archive.file("lab/guest/vmlinux", boot.kernel.read_bytes())
        archive.file("lab/guest/initramfs", boot.guest.read_bytes())
        archive.file("lab/guest/driver/initramfs", boot.driver.read_bytes())
        packed = len(self.bzimage()) + len(gzip.compress(boot.driver.read_bytes()))
        archive.file("lab/guest/driver/packed-bytes", str(packed).encode())
        archive.file("lab/guest/driver/storage-initramfs", boot.driver.read_bytes() + self._storage_modules())
        archive.file("lab/guest/vmlinuz", self.bzimage())
        archive.file("lab/guest/other/vmlinux", boot.other_kernel.read_bytes())
        archive.file("lab/guest/other/initramfs", boot.other_guest.read_bytes())
        archive.file("lab/guest/grub", (self._tree / GRUB).read_bytes())
        archive.file("lab/guest/grub-pv", (self._tree / GRUB_PV).read_bytes())
        self._add_pygrub(archive)
        archive.file("lab/disks.tar", boot.disks.read_bytes())
        archive.close()

    def guest(self, archive: cpio.Archive | cpio.Folder) -> None:
        self._base(archive, {name: self._program(name) for name in GUEST_PROGRAMS})
        archive.link("bin/mkfs.ext4", "mke2fs")
        archive.file("etc/mke2fs.conf", (self._tree / "etc/mke2fs.conf").read_bytes())
        self._add_modules(archive, GUEST_MODULES)
        self._add_init(archive)
        archive.close()

    def driver(self, archive: cpio.Archive) -> None:
        self._base(archive, {})
        self._add_modules(archive, DRIVER_MODULES)
        self._add_init(archive)
        archive.close()

    def guest_modules(self, archive: cpio.Archive) -> None:
        """A guest's modules alone, which replace those of another kernel in an archive before it."""
        self._add_modules(archive, GUEST_MODULES)
        archive.close()

    def _storage_modules(self) -> bytes:
        """For a driver domain's archive, in place of its modules: for one whose disks are not in memory."""
        out = io.BytesIO()
        archive = cpio.Archive(out)
        self._add_modules(archive, STORAGE_MODULES)
        archive.close()
        return out.getvalue()

    def compile_python(self) -> None:
        """Compiles Python's library with that very Python: under emulation its imports take seconds."""
        options = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(self._python_library())]
        subprocess.run([*self.native("python3"), *options], env={"PYTHONHOME": str(self._tree / "usr")}, check=True)

    def native(self, program: str) -> list[str]:
        """The command that runs a program of the tree here."""
        libraries = ":".join(str(self._tree / directory) for directory in LIBRARY_DIRECTORIES)
        return [str(self._find(LOADER_DIRECTORIES, LOADER)), "--library-path", libraries, str(self._program(program).resolve())]

    def _base(self, archive: cpio.Archive, programs: dict[str, Path]) -> None:
        """busybox under all its names, the programs and what they load."""
        self._added: set[str] = set()
        archive.console()
        for directory in ["dev", "proc", "sys", "run", "tmp", "mnt", "etc", "var/lib/xen", "var/log/xen"]:
            archive.directory(directory)
        archive.link("var/run", "/run")
        archive.link("var/lock", "/run/lock")
        busybox = self._program("busybox")
        archive.file("bin/busybox", busybox.read_bytes(), 0o755)
        applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in applets:
            if applet not in {"busybox", *programs}:
                archive.link(f"bin/{applet}", "busybox")
        for name, program in programs.items():
            archive.file(f"bin/{name}", program.read_bytes(), 0o755)
        self._libraries(archive, list(programs.values()))
        archive.link("sbin", "bin")
        archive.link("usr/bin", "/bin")
        archive.link("usr/sbin", "/bin")

    def _libraries(self, archive: cpio.Archive, users: list[Path]) -> None:
        """Adds what `users` load, and what that loads, once."""
        pending = list(OPENED_BY_NAME)
        for user in users:
            pending += elf.needed(user)
        while pending:
            name = pending.pop()
            if name in self._added:
                continue
            self._added.add(name)
            library = self._library(name)
            directory = "lib64" if name == LOADER else "lib/x86_64-linux-gnu"
            archive.file(f"{directory}/{name}", library.read_bytes(), 0o755)
            pending += elf.needed(library)

    def _add_init(self, archive: cpio.Archive | cpio.Folder) -> None:
        """nested/guest, as the archive's first process."""
        archive.file("init", (GUEST_SOURCES / "init").read_bytes(), 0o755)
        # sbin is a link to bin, and a later member replaces an earlier one.
        for program in ("poweroff", "reboot"):
            archive.file(f"bin/{program}", (GUEST_SOURCES / program).read_bytes(), 0o755)

    def _add_pygrub(self, archive: cpio.Archive) -> None:
        """pygrub, where libxl looks for it, with the libraries that it looks for from there."""
        plugins = [*self._xen.glob("lib/*/xenfsimage/ext2fs-lib/fsimage.so")]
        own = [*self._xen.glob("lib/*/libxenfsimage.so.*"), *self._xen.glob("lib/python/xenfsimage.*")]
        for path in [self._xen / "bin/pygrub", *self._xen.glob("lib/python/grub/*.py"), *own, *plugins]:
            archive.file(str(path.relative_to(self._tree)), path.read_bytes(), 0o755)
        self._added.update(path.name for path in own)
        self._libraries(archive, plugins)

    def _add_modules(self, archive: cpio.Archive, names: list[str], at_need: Sequence[str] = ()) -> None:
        """Adds modules with what they depend on, and for an init that only has insmod /modules/order; /modules/at-need has the others."""
        order: list[str] = []

        def add(name: str) -> None:
            path = self._modules.get(name.replace("_", "-"))
            if path is None:
                raise RuntimeError(f"the kernel has no module {name}")
            module = _module_name(path)
            if module in order:
                return
            data = elf.unpacked_module(path.read_bytes())
            for dependency in elf.module_depends(data):
                add(dependency)
            order.append(module)
            archive.file(f"modules/{module}.ko", data)

        for file, wanted in (("order", names), ("at-need", at_need)):
            begin = len(order)
            for name in wanted:
                add(name)
            archive.file(f"modules/{file}", "".join(f"{name}\n" for name in order[begin:]).encode())

    def _python_library(self) -> Path:
        return next(path for path in sorted((self._tree / "usr/lib").glob("python3.*")) if path.is_dir())

    def _program(self, name: str) -> Path:
        return self._find(PROGRAM_DIRECTORIES, name)

    def _library(self, name: str) -> Path:
        return self._find([*LIBRARY_DIRECTORIES, *LOADER_DIRECTORIES], name)

    def _find(self, directories: list[str], name: str) -> Path:
        for directory in directories:
            path = self._tree / directory / name
            if path.is_symlink():
                # Resolved inside the tree: an absolute link would lead to the host's own file.
                target = path.readlink()
                path = self._tree / str(target).lstrip("/") if target.is_absolute() else path.parent / target
            if path.is_file():
                return path
        raise RuntimeError(f"Debian's packages hold no {name} in {' '.join(directories)}")


def _python_unused(library: Path) -> Callable[[Path], bool]:
    def unused(path: Path) -> bool:
        return any(fnmatch(part, pattern) for part in path.relative_to(library).parts for pattern in PYTHON_UNUSED)

    return unused


def _module_name(path: Path) -> str:
    """A module's name; its file may be compressed."""
    return path.name.partition(".ko")[0]
