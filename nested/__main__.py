"""The lab's command line: `python3 -m nested --help`."""

import argparse
import sys
from fnmatch import fnmatch

from .dom0.scenario import Scenario, known
from .host import machine_arguments, roots
from .host.session import Job, run


def main() -> int:
    options = _arguments()
    chosen = _choose(options)
    if options.list:
        for scenario in chosen:
            print(f"{scenario.name:40} {scenario.group:5} {scenario.says}")
        return 0
    if unmatched := [pattern for pattern in options.only if not any(fnmatch(s.name, pattern) for s in chosen)]:
        print(f"no scenario matches {' '.join(unmatched)}", file=sys.stderr)
        return 2
    failed = False
    # Each machine is a boot. A shell alone is on the plain one.
    for machine in dict.fromkeys([scenario.machine for scenario in chosen] or ["plain"]):
        scenarios = [scenario.name for scenario in chosen if scenario.machine == machine]
        job = Job(scenarios, machine_arguments.machine(machine, options), options.shell, dict(options.set))
        report = run(job, roots.SUITES[options.suite])
        report.summary()
        failed = failed or bool(report.failed)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nested", description="Runs scenarios against Granary under nested Xen.")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="only scenarios whose name matches, of any group")
    parser.add_argument("--all", action="store_true", help="also the scenarios of the group 'all'")
    parser.add_argument("--list", action="store_true", help="list the scenarios and end")
    parser.add_argument("--shell", action="store_true", help="leave a shell on dom0's console at the end (ends with Ctrl-A x)")
    machine_arguments.add(parser)
    parser.add_argument("--set", action="append", default=[], type=_setting, metavar="NAME=VALUE", help="what a scenario can be told, as its docstring has it")
    return machine_arguments.parse(parser)


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
