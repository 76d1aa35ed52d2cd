"""What the lab reads from ELF files, kernel images and kernel modules."""

import lzma
import re
import struct
import subprocess
from pathlib import Path

SHT_DYNAMIC = 6
DT_NULL, DT_NEEDED = 0, 1
BZIMAGE_MAGIC_AT, BZIMAGE_MAGIC = 0x202, b"HdrS"
XZ_MAGIC = b"\xfd7zXZ\x00"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def needed(path: Path) -> list[str]:
    """The shared libraries an ELF64 file names as DT_NEEDED; empty for any other file."""
    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return []
    (section_at,) = struct.unpack_from("<Q", data, 0x28)
    entry_size, nr_sections = struct.unpack_from("<HH", data, 0x3A)

    def section(index: int) -> tuple[int, int, int, int]:
        """(type, offset, size, link) of one section header."""
        _, kind, _, _, offset, size, link = struct.unpack_from(
            "<IIQQQQI", data, section_at + index * entry_size
        )
        return kind, offset, size, link

    names = []
    for index in range(nr_sections):
        kind, offset, size, link = section(index)
        if kind != SHT_DYNAMIC:
            continue
        strings_at = section(link)[1]
        for at in range(offset, offset + size, 16):
            tag, value = struct.unpack_from("<QQ", data, at)
            if tag == DT_NULL:
                break
            if tag == DT_NEEDED:
                start = strings_at + value
                names.append(data[start : data.index(b"\0", start)].decode())
    return names


def vmlinux(bzimage: bytes) -> bytes:
    """The ELF kernel inside a bzImage, compressed with xz or zstd (Linux, Documentation/arch/x86/boot.rst).

    Decompressing here, once, saves Xen's builder 20 emulated seconds a boot.
    """
    if bzimage[BZIMAGE_MAGIC_AT : BZIMAGE_MAGIC_AT + 4] != BZIMAGE_MAGIC:
        raise ValueError("not a bzImage")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The payload ends in its uncompressed size, which is no part of the compressed stream.
    payload = bzimage[start : start + length - 4]
    if payload.startswith(XZ_MAGIC):
        kernel = lzma.decompress(payload, format=lzma.FORMAT_XZ)
    elif payload.startswith(ZSTD_MAGIC):
        # Python has no zstd before 3.14.
        kernel = subprocess.run(["zstd", "-dc"], input=payload, stdout=subprocess.PIPE, check=True).stdout
    else:
        raise ValueError("the kernel is compressed with neither xz nor zstd")
    if not kernel.startswith(b"\x7fELF"):
        raise ValueError("the kernel's payload is no ELF file")
    return kernel


def unpacked_module(file: bytes) -> bytes:
    """A kernel module out of its file, which may be compressed with xz."""
    return lzma.decompress(file, format=lzma.FORMAT_XZ) if file.startswith(XZ_MAGIC) else file


def module_depends(module: bytes) -> list[str]:
    """The modules that a kernel module says it depends on."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return found.group(1).decode().split(",") if found and found.group(1) else []
