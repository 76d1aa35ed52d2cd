"""The command line's words for the emulated machine, for every program that boots it."""

import argparse
import os

from . import qemu, roots
from .nvme import Controller

_SUITES = ", ".join(sorted(roots.SUITES))


def add(parser: argparse.ArgumentParser) -> None:
    """Adds --suite, --memory and --clock."""
    parser.add_argument("--suite", default=os.environ.get("XEN_SUITE", "bookworm"), help=f"the Debian release that Xen and dom0 come from: {_SUITES} (default: XEN_SUITE, or bookworm)")
    parser.add_argument("--memory", type=int, default=qemu.Machine.memory_mib, metavar="MIB", help="the emulated machine's memory (default: %(default)s)")
    parser.add_argument("--clock", choices=sorted(qemu.CLOCKS), default=qemu.Machine.clock, help="what its clock counts (default: %(default)s)")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; ends the program where the suite is none."""
    options = parser.parse_args()
    # Not by argparse's choices, which do not look at a default.
    if options.suite not in roots.SUITES:
        parser.error(f"no suite is called {options.suite!r} (--suite or XEN_SUITE): there are {_SUITES}")
    return options


def machine(name: str, options: argparse.Namespace) -> qemu.Machine:
    """The machine that a scenario names, of the size and with the clock that the arguments say."""
    nvme = Controller(roots.CACHE / "nvme") if name == "passthrough" else None
    return qemu.Machine(options.memory, options.clock, nvme)
