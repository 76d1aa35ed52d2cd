"""Reads logs of writes as Linux' dm-log-writes and QEMU's blklogwrites make them.

The format is that of Linux' drivers/md/dm-log-writes.c: a superblock in sector 0, then entries of a
sector each, an entry's data right behind it. Sectors are of the size that the superblock says.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import BinaryIO

MAGIC = 0x6A736677736872
VERSION = 1

# struct log_write_super: magic, version, nr_entries, sectorsize.
_SUPERBLOCK = struct.Struct("<QQQI")
# struct log_write_entry: sector, nr_sectors, flags, data_len.
_ENTRY = struct.Struct("<QQQQ")

SECTOR_SIZES = {512, 4096}


class Flag(IntFlag):
    """LOG_*_FLAG."""

    FLUSH = 1
    """All that stands in the log before it was in the device when this was answered."""
    FUA = 2
    DISCARD = 4
    """The range has no data any more; none is in the log either."""
    MARK = 8
    """Somebody's words, not the device's: the entry's sector holds them, and nothing was written."""
    METADATA = 16


_KNOWN = int(Flag.FLUSH | Flag.FUA | Flag.DISCARD | Flag.MARK | Flag.METADATA)


class BadLog(Exception):
    """The file is no log of writes, or ends in the middle of one."""


@dataclass(frozen=True)
class Entry:
    """One request that the device answered."""

    at_bytes: int
    """Where on the device."""
    len_bytes: int
    """0 for a flush alone."""
    flags: Flag
    data_at: int
    """Where its data is in the log."""

    @property
    def writes(self) -> bool:
        """Whether it has data for the device."""
        return self.len_bytes > 0 and not self.flags & (Flag.DISCARD | Flag.MARK)


class WriteLog:
    """A log in an open file, which may still grow: what counts is what its superblock counts.

    QEMU writes that anew at each flush, so all up to the last flush is there.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        magic, version, self.nr_entries, self.sector_size = _SUPERBLOCK.unpack(self._read(0, _SUPERBLOCK.size, "superblock"))
        if magic == 0:
            raise BadLog("it has no superblock: nothing was flushed yet")
        if magic != MAGIC:
            raise BadLog(f"its magic is {magic:#x}, not {MAGIC:#x}")
        if version != VERSION:
            raise BadLog(f"its version is {version}, not {VERSION}")
        if self.sector_size not in SECTOR_SIZES:
            raise BadLog(f"its sectors have {self.sector_size} bytes")

    def __iter__(self) -> Iterator[Entry]:
        """The entries in order. Raises BadLog where the next one is not whole."""
        at = self.sector_size
        for number in range(self.nr_entries):
            what = f"entry {number}"
            sector, nr_sectors, bits, _ = _ENTRY.unpack(self._read(at, _ENTRY.size, what))
            if bits & ~_KNOWN:
                raise BadLog(f"{what} has flags {bits:#x}")
            at += self.sector_size
            entry = Entry(sector * self.sector_size, nr_sectors * self.sector_size, Flag(bits), at)
            yield entry
            at += entry.len_bytes if entry.writes else 0

    def data(self, entry: Entry) -> bytes:
        """What an entry that writes wrote."""
        return self._read(entry.data_at, entry.len_bytes if entry.writes else 0, "data")

    def _read(self, at: int, len_bytes: int, what: str) -> bytes:
        self._file.seek(at)
        data = self._file.read(len_bytes)
        if len(data) != len_bytes:
            raise BadLog(f"it ends in its {what}: {len(data)} of {len_bytes} bytes at {at}")
        return data
