"""What each backend is asked for. dom0 runs the cases, and the host orders its tables by them."""

from dataclasses import dataclass
from typing import Literal

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Case:
    """One load: a fixed number of requests of one size, so many of them at once."""

    operation: Literal["read", "write"]
    pattern: Literal["random", "sequential"]
    request_bytes: int
    depth: int
    count: int
    """How many requests are measured."""
    by_dd: bool = False
    """With `dd`, as one would by hand, instead of lab-io."""

    @property
    def name(self) -> str:
        """For people and as a key: "4 KiB random read, depth 32"."""
        size = f"{self.request_bytes // MIB} MiB" if self.request_bytes >= MIB else f"{self.request_bytes // KIB} KiB"
        if self.by_dd:
            return f"{size} {self.operation} by dd"
        return f"{size} {self.pattern} {self.operation}, depth {self.depth}"


CASES = [
    Case("read", "random", 4 * KIB, 1, 500),
    Case("write", "random", 4 * KIB, 1, 500),
    Case("read", "random", 4 * KIB, 32, 2000),
    Case("write", "random", 4 * KIB, 32, 2000),
    Case("read", "sequential", 128 * KIB, 4, 250),
    Case("write", "sequential", 128 * KIB, 4, 250),
    Case("read", "sequential", MIB, 4, 50),
    Case("write", "sequential", MIB, 4, 50),
    Case("read", "sequential", MIB, 1, 50, by_dd=True),
]
"""In the order of the tables. More requests give the same figures to a few tenths of a per cent."""
