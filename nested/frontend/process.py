"""A process of its own for a frontend, which does what the scenario asks, when it asks."""

import json
import os
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any, Self

from ..dom0.xen import Mismatch, Stuck


class Process:
    """A fork that calls `serve` with what `ask` is given. A `with` block ends it, in whatever state it is."""

    def __init__(self, name: str, serve: Callable[..., Any]):
        self.name = name
        questions, self._ask = os.pipe()
        self._answers, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _serve(serve, questions, answer)
        os.close(questions)
        os.close(answer)
        self._buffer = b""

    def ask(self, *words: Any) -> None:
        """Has it call `serve(*words)`; `answer` has what came of it."""
        os.write(self._ask, json.dumps(words).encode() + b"\n")

    def answer(self, limit: float = 120) -> Any:
        """What `serve` returned. `limit` is a hang guard in seconds."""
        while b"\n" not in self._buffer:
            if not select.select([self._answers], [], [], limit)[0]:
                raise Stuck(f"{self.name} has not answered after {limit:.0f} s")
            piece = os.read(self._answers, 65536)
            if not piece:
                raise Mismatch(f"{self.name} has ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "failure" in answer:
            raise Mismatch(f"{self.name}: {answer['failure']}")
        return answer["result"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._ask)
        os.close(self._answers)


def _serve(serve: Callable[..., Any], questions: int, answers: int) -> None:
    """The child's whole life: it never returns into what the parent was doing."""
    try:
        with os.fdopen(questions) as lines:
            for line in lines:
                try:
                    answer = {"result": serve(*json.loads(line))}
                except (Mismatch, Stuck) as failure:
                    answer = {"failure": str(failure)}
                except Exception:
                    answer = {"failure": traceback.format_exc()}
                os.write(answers, json.dumps(answer).encode() + b"\n")
    finally:
        os._exit(0)
