"""What a guest was told is durable, and whether it was.

After each fsync the guest writes a *promise* to a part of its disk that nothing else uses: the name of
the file and its checksum. The promise can only be in the log if the fsync had been answered, so all
that the fsync stands for must be in the log before it, followed by a flush. That needs no clock, and
nobody who looks at the log at the right moment.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .log import Entry, Flag, WriteLog

_PROMISE = re.compile(rb"promised (\S+)/(\S+) ([0-9a-f]{32})\n")

PROMISE_BYTES = 512
"""Where a guest writes them is a multiple of it."""


def promise(series: str, name: str, md5: str) -> str:
    """What the guest writes, to be filled up with zeroes. A series is of one file system."""
    return f"promised {series}/{name} {md5}\n"


@dataclass(frozen=True)
class Promise:
    """A file that a guest was told is on the disk."""

    name: str
    md5: str
    number: int
    """Of the entry that says so."""
    durable: int
    """How many entries are durable by then: the last of them is a flush. 0 if there was none."""


def promises(log: WriteLog, series: str, at_bytes: int) -> Iterator[Promise]:
    """The promises of a series in a log, each once, in order. They stand at `at_bytes` and behind it."""
    durable = 0
    seen: set[bytes] = set()
    for number, entry in enumerate(log):
        # A flush with data comes before its data.
        if entry.flags & Flag.FLUSH:
            durable = number + (0 if entry.writes else 1)
        for found in _found(log, entry, at_bytes):
            # Linux writes a whole page for a sector, and so the sectors beside it again.
            if found[1] == series.encode() and found[0] not in seen:
                seen.add(found[0])
                yield Promise(found[2].decode(), found[3].decode(), number, durable)


def _found(log: WriteLog, entry: Entry, at_bytes: int) -> Iterator[re.Match[bytes]]:
    if not entry.writes or entry.at_bytes + entry.len_bytes <= at_bytes:
        return
    data = log.data(entry)
    for offset in range(max(at_bytes - entry.at_bytes, 0), len(data), PROMISE_BYTES):
        if found := _PROMISE.match(data, offset):
            yield found
