"""What the runner tells the host half, or asks of it: one JSON object a line on a serial port of its own.

The console would do, but there Xen's messages break into the lines of others.
"""

import json
import os
import sys
import tty
from pathlib import Path
from typing import Any, BinaryIO

from .xen import Mismatch


class Events:
    """Writes events to the host, or to standard output where there is no such port."""

    def __init__(self, port: Path):
        self._port: BinaryIO | None = None
        if port.exists():
            self._port = port.open("r+b", buffering=0)
            # Or what the host says would come back to it.
            tty.setraw(self._port)
        self._out = self._port or sys.stdout.buffer

    def send(self, event: str, **fields: Any) -> None:
        self._out.write(json.dumps({"event": event, **fields}).encode() + b"\n")

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        """Asks the host half for something, and waits for its answer."""
        if not self._port:
            raise Mismatch(f"there is no host half to be asked for {what!r}")
        self.send("ask", what=what, **fields)
        line = b""
        # Not by sleeping: an idle machine's clock leaps from timer to timer, past every hang guard.
        os.set_blocking(self._port.fileno(), False)
        while not line.endswith(b"\n"):
            line += self._port.read(1) or b""
        os.set_blocking(self._port.fileno(), True)
        return json.loads(line)
