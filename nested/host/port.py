"""dom0's second serial port as the host sees it: the runner's events, and the answers that it waits for."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.05


class Port:
    """One boot's port. QEMU begins to run when it is connected, so that no event is lost."""

    def __init__(self, path: Path, log: Path, starting: Callable[[], bool]):
        """Waits for QEMU to make the socket, as long as it is `starting`."""
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if not starting():
                    self._socket.close()
                    raise RuntimeError(f"QEMU ended before it began; see {log.parent}") from None
                time.sleep(POLL_SECONDS)
        self._socket.setblocking(False)
        self._log = log.open("wb")

    def events(self) -> list[dict]:
        """What arrived since the last call, as far as its lines are whole."""
        *lines, self._rest = (self._rest + self._received()).split(b"\n")
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    def answer(self, **fields: object) -> None:
        """Tells the runner, which waits for it."""
        self._socket.setblocking(True)
        self._socket.sendall(json.dumps(fields).encode() + b"\n")
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()
        self._log.close()

    def _received(self) -> bytes:
        parts = []
        try:
            while part := self._socket.recv(1 << 16):
                parts.append(part)
        except (BlockingIOError, ConnectionResetError):
            pass
        data = b"".join(parts)
        self._log.write(data)
        self._log.flush()
        return data
