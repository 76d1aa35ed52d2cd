"""A xenstored for tests: the wire protocol on a socket, transactions, and nothing else of it."""

import contextlib
import enum
import errno
import socketserver
import struct
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path


class Kind(enum.IntEnum):
    DIRECTORY = 1
    READ = 2
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    WRITE = 11
    ERROR = 16


HEADER = struct.Struct("=IIII")


class Xenstored:
    """Serves `socket` while it is entered. `changed` is called after each write or commit, as a watch would."""

    def __init__(self, nodes: dict[str, str]):
        self.lock = threading.RLock()
        self.nodes = {path: value.encode() for path, value in nodes.items()}
        self.changed: Callable[[], None] = lambda: None
        # Commits to fail with EAGAIN before one succeeds.
        self.conflicts = 0
        # Writes in a transaction to fail with EIO before one succeeds.
        self.torn = 0
        # Transactions that wrote nothing: clients that found the domain busy.
        self.nr_idle_transactions = 0
        self._transactions: dict[int, tuple[dict[str, bytes], dict[str, bytes]]] = {}
        self._nr_transactions = 0
        self._directory = tempfile.TemporaryDirectory()
        self.socket = Path(self._directory.name) / "socket"

    def __enter__(self) -> "Xenstored":
        store = self

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                # A client may end at any point.
                with contextlib.suppress(ConnectionError):
                    while header := self.rfile.read(HEADER.size):
                        kind, request, tx, length = HEADER.unpack(header)
                        kind, answer = store._answer_or_error(kind, tx, self.rfile.read(length))
                        # In two pieces, as a stream may come.
                        self.wfile.write(HEADER.pack(kind, request, tx, len(answer)) + answer[:1])
                        self.wfile.write(answer[1:])

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self._server = Server(str(self.socket), Connection)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._directory.cleanup()

    def write(self, path: str, value: bytes) -> None:
        """A write of the domain itself."""
        with self.lock:
            self.nodes[path] = value

    def remove(self, path: str) -> None:
        with self.lock:
            self.nodes.pop(path, None)

    def _answer_or_error(self, kind: int, tx: int, payload: bytes) -> tuple[int, bytes]:
        with self.lock:
            try:
                return kind, self._answer(kind, tx, payload)
            except KeyError:
                return Kind.ERROR, b"ENOENT\0"
            except BlockingIOError:
                return Kind.ERROR, b"EAGAIN\0"
            except OSError as error:
                return Kind.ERROR, errno.errorcode[error.errno].encode() + b"\0"

    def _answer(self, kind: int, tx: int, payload: bytes) -> bytes:
        path, _, value = payload.partition(b"\0")
        begun_with, nodes = self._transactions.get(tx, ({}, self.nodes))
        match kind:
            case Kind.DIRECTORY:
                below = f"{path.decode()}/"
                names = {node.removeprefix(below).split("/")[0] for node in nodes if node.startswith(below)}
                return b"".join(name.encode() + b"\0" for name in sorted(names))
            case Kind.READ:
                return nodes[path.decode()]
            case Kind.TRANSACTION_START:
                self._nr_transactions += 1
                self._transactions[self._nr_transactions] = (dict(self.nodes), dict(self.nodes))
                return b"%d\0" % self._nr_transactions
            case Kind.TRANSACTION_END:
                del self._transactions[tx]
                if nodes == begun_with:
                    self.nr_idle_transactions += 1
                elif self.conflicts or begun_with != self.nodes:
                    self.conflicts -= 1 if self.conflicts else 0
                    raise BlockingIOError
                else:
                    self.nodes = nodes
                    self.changed()
                return b"OK\0"
            case Kind.WRITE:
                if tx and self.torn:
                    self.torn -= 1
                    raise OSError(errno.EIO, "torn")
                nodes[path.decode()] = value
                if not tx:
                    self.changed()
                return b"OK\0"
            case _:
                raise AssertionError(f"message {kind}")
