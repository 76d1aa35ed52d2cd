"""The lab's command line: `python3 -m nested --help`."""

import argparse
import os
import signal
import sys
from fnmatch import fnmatch

from .dom0.scenario import Scenario, known
from .host import qemu, roots
from .host.report import Report
from .host.session import GRANARY_IMAGE, Job, boot_and_run

_SUITES = ", ".join(sorted(roots.SUITES))


def main() -> int:
    options = _arguments()
    chosen = _choose(options)
    if options.list:
        for scenario in chosen:
            print(f"{scenario.name:40} {scenario.group:5} {scenario.says}")
        return 0
    if not chosen and not options.shell:
        print(f"no scenario matches {' '.join(options.only)}", file=sys.stderr)
        return 2
    report = Report()
    if not GRANARY_IMAGE.exists():
        report.say(f"{GRANARY_IMAGE.relative_to(roots.REPOSITORY)} does not exist; scripts/build makes it")
    # A terminated run must not leave its QEMU behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The archives and the logs belong to whoever holds the lock, as the machine does.
    with qemu.exclusive(report.say):
        report = _run(options, chosen, report)
    report.summary()
    return 1 if report.failed else 0


def _run(options: argparse.Namespace, chosen: list[Scenario], report: Report) -> Report:
    """Boots, and once more if the emulator failed; the report of the boot that counts."""
    boot = roots.boot_files(roots.SUITES[options.suite], report.say)
    job = Job([scenario.name for scenario in chosen], qemu.Machine(options.memory, options.clock), options.shell, dict(options.set))
    if fault := boot_and_run(job, boot, report):
        report.say(f"THE EMULATOR FAILED: {fault}. Trying the whole boot once more.")
        report = Report(start=report.start)
        if fault := boot_and_run(job, boot, report):
            report.fail("lab", f"the emulator failed twice: {fault}")
    return report


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nested", description="Runs scenarios against Granary under nested Xen.")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="only scenarios whose name matches, of any group")
    parser.add_argument("--all", action="store_true", help="also the scenarios of the group 'all'")
    parser.add_argument("--list", action="store_true", help="list the scenarios and end")
    parser.add_argument("--shell", action="store_true", help="leave a shell on dom0's console at the end (ends with Ctrl-A x)")
    parser.add_argument("--suite", default=os.environ.get("XEN_SUITE", "bookworm"), help=f"the Debian release that Xen and dom0 come from: {_SUITES} (default: XEN_SUITE, or bookworm)")
    parser.add_argument("--memory", type=int, default=qemu.Machine.memory_mib, metavar="MIB", help="the emulated machine's memory (default: %(default)s)")
    parser.add_argument("--clock", choices=sorted(qemu.CLOCKS), default=qemu.Machine.clock, help="what its clock counts (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], type=_setting, metavar="NAME=VALUE", help="what a scenario can be told, as its docstring has it")
    options = parser.parse_args()
    # Not by argparse's choices, which do not look at a default.
    if options.suite not in roots.SUITES:
        parser.error(f"no suite is called {options.suite!r} (--suite or XEN_SUITE): there are {_SUITES}")
    return options


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _choose(options: argparse.Namespace) -> list[Scenario]:
    """The scenarios to run, in order. A shell alone runs none."""
    scenarios = known().values()
    if options.only:
        return [s for s in scenarios if any(fnmatch(s.name, pattern) for pattern in options.only)]
    if options.shell:
        return []
    groups = {"test", "all"} if options.all else {"test"}
    return [s for s in scenarios if s.group in groups]


sys.exit(main())
