"""What a device would hold if its power had gone: a log replayed into a file."""

from typing import BinaryIO

from .log import Entry, Flag, WriteLog


class Replay:
    """A file that is brought from entry to entry. It must hold what the device held before the first."""

    def __init__(self, log: WriteLog, image: BinaryIO):
        self._log = log
        self._image = image
        self._entries = iter(log)
        self._next = 0

    def up_to(self, number: int) -> None:
        """Applies all entries before this number that were not applied yet."""
        while self._next < number:
            self._apply(next(self._entries))
            self._next += 1
        self._image.flush()

    def _apply(self, entry: Entry) -> None:
        data = self._log.data(entry)
        if entry.flags & Flag.DISCARD and not entry.flags & Flag.MARK:
            # What a device holds there is its own affair: zeroes are what a Granary promises.
            data = bytes(entry.len_bytes)
        if data:
            self._image.seek(entry.at_bytes)
            self._image.write(data)
