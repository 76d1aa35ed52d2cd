"""QEMU's monitor: what can be done to the machine from outside (QEMU's docs/interop/qmp-spec.txt)."""

import json
import socket
from pathlib import Path


class Monitor:
    """A connection to it."""

    def __init__(self, path: Path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self._execute("qmp_capabilities")

    def qemu_io(self, node: str, command: str) -> None:
        """Runs a command of qemu-io's on a block node of the machine."""
        if said := self._execute("human-monitor-command", **{"command-line": f'qemu-io {node} "{command}"'}):
            raise RuntimeError(f"qemu-io {node} {command}: {said}")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def _execute(self, command: str, **arguments: str) -> object:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        # Events come whenever they like.
        while "event" in (answer := json.loads(self._lines.readline())):
            pass
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']['desc']}")
        return answer["return"]
