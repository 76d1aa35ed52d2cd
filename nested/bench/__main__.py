"""scripts/bench: boots the lab, has dom0 measure, and shows what came back."""

import argparse
import sys
from pathlib import Path

from ..dom0.scenario import known
from ..host import machine_arguments, roots
from ..host.session import Job, run
from . import compare, document, tables
from .results import Results

RUNS = roots.CACHE / "bench"

# What bench.side_by_side is told.
WHOLE = {"repetitions": "3"}
QUICK = {
    "repetitions": "3",
    "only-backends": "Granary;Linux driver domain",
    "only-grants": "persistent",
}


def main() -> int:
    options = _arguments()
    if options.update or options.render:
        document.need_gnuplot()
    if options.render:
        if not document.RESULTS.exists():
            sys.exit(f"bench: there is no {document.RESULTS.relative_to(roots.REPOSITORY)} yet: scripts/bench --update makes it")
        document.update(Results.load(document.RESULTS))
        return 0
    results, failed = Results(options.clock), False
    chosen = [s for s in known().values() if s.group == "bench" and (s.name == "bench.side_by_side" or not options.quick)]
    for machine in dict.fromkeys(scenario.machine for scenario in chosen):
        scenarios = [scenario.name for scenario in chosen if scenario.machine == machine]
        job = Job(scenarios, machine_arguments.machine(machine, options), False, QUICK if options.quick else WHOLE)
        report = run(job, roots.SUITES[options.suite])
        report.summary()
        results.add(report.results)
        failed = failed or bool(report.failed)
    kept = RUNS / f"{'quick' if options.quick else 'results'}-{options.clock}.json"
    print(f"\n{_beside_the_last(kept, results) if options.quick else document.report(results)}", end="")
    if failed:
        print("bench: a scenario failed, so that these results are not kept", file=sys.stderr)
        return 1
    results.save(kept)
    print(f"\nThe results are in {kept.relative_to(roots.REPOSITORY)}.")
    if options.update:
        document.update(results)
    return 0


def _beside_the_last(kept: Path, results: Results) -> str:
    """The figures of a quick run, with those of the one before."""
    noisy = f"{tables.NOISY}\n" if results.clock != "instructions" else ""
    if not kept.exists():
        return f"{noisy}{tables.figures(results)}\nThere was no quick run before to compare with; the next one will be compared with this.\n"
    return noisy + compare.difference(Results.load(kept), results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures Granary beside Linux' backends under nested Xen.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--update", action="store_true", help="also write docs/benchmarks.md, its plots and its results")
    action.add_argument("--quick", action="store_true", help="fewer requests on fewer backends, compared with the quick run before")
    action.add_argument("--render", action="store_true", help="run nothing; write docs/benchmarks.md again from its results")
    machine_arguments.add(parser)
    options = machine_arguments.parse(parser)
    if options.update and options.clock != "instructions":
        parser.error("--update is for exact figures, which --clock real does not give")
    return options


if __name__ == "__main__":
    sys.exit(main())
