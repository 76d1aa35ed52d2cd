"""dom0's second serial port as the host sees it: the runner's events, and the answers that it waits for."""

import contextlib
import fcntl
import json
import os
from pathlib import Path

PIPE_BYTES = 1 << 20
"""What fits into a pipe. A port that cannot go on would make the machine idle, and its clock leap.

A socket does not do: each byte that a serial port writes to one takes a kilobyte of it.
"""


class Port:
    """One boot's port: two pipes that QEMU opens as PATH.in and PATH.out."""

    def __init__(self, path: Path, log: Path):
        self._rest = b""
        self._log = log.open("wb")
        self._in, self._out = (self._pipe(path.with_suffix(suffix)) for suffix in (".in", ".out"))
        fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def events(self) -> list[dict]:
        """What arrived since the last call, as far as its lines are whole."""
        *lines, self._rest = (self._rest + self._received()).split(b"\n")
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    def answer(self, **fields: object) -> None:
        """Tells the runner, which waits for it."""
        os.write(self._in, json.dumps(fields).encode() + b"\n")

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)
        self._log.close()

    @staticmethod
    def _pipe(path: Path) -> int:
        os.mkfifo(path)
        # For both, so that neither opening it nor the other side's end is anything to wait for.
        return os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def _received(self) -> bytes:
        parts = []
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._out, 1 << 16):
                parts.append(part)
        data = b"".join(parts)
        self._log.write(data)
        self._log.flush()
        return data
