"""What the runner tells the host half: one JSON object a line on a serial port of its own.

The console would do, but there Xen's messages break into the lines of others.
"""

import json
import sys
from pathlib import Path
from typing import Any


class Events:
    """Writes events to the host, or to standard output where there is no such port."""

    def __init__(self, port: Path):
        self._out = port.open("wb", buffering=0) if port.exists() else sys.stdout.buffer

    def send(self, event: str, **fields: Any) -> None:
        self._out.write(json.dumps({"event": event, **fields}).encode() + b"\n")
