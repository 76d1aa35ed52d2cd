"""Runs scenarios in dom0 and reports to the host half. dom0's init starts it."""

import json
import re
import signal
import time
import traceback
from pathlib import Path

from . import names
from .events import Events
from .lab import Lab
from .scenario import Scenario, known
from .xen import Mismatch, Stuck, domains, run, xl

TAIL_LINES = 60


def main() -> None:
    options = json.loads(names.RUN_OPTIONS.read_text())
    events = Events(names.EVENT_PORT)
    events.send("ready")
    lab = Lab(events, options["settings"])
    signal.signal(signal.SIGALRM, _out_of_time)
    for name in options["scenarios"]:
        _run(lab, known()[name])
    if options["shell"]:
        names.SHELL_WANTED.touch()
    _send_logs(events)
    events.send("end")


def _run(lab: Lab, scenario: Scenario) -> None:
    """Runs one scenario with its hang guard, and compares what it left with what it found."""
    lab.events.send("start", name=scenario.name, says=scenario.says, limit=scenario.limit)
    start = time.monotonic()
    logs = _log_sizes()
    signal.setitimer(signal.ITIMER_REAL, scenario.limit)
    try:
        before = lab.snapshot()
        scenario.body(lab)
        lab.check_unchanged(before)
        reason = None
    except (Mismatch, Stuck) as failure:
        reason = str(failure)
    except Exception:
        reason = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.monotonic() - start
    if reason is None:
        lab.events.send("pass", name=scenario.name, seconds=seconds)
        return
    _send_tails(lab.events, logs)
    lab.events.send("fail", name=scenario.name, seconds=seconds, reason=reason)
    lab.start_afresh()


def _out_of_time(_signal, _frame):
    raise Stuck("the scenario's hang guard ran out")


def _log_sizes() -> dict[Path, int]:
    return {log: log.stat().st_size for log in sorted(names.CONSOLE_LOGS.glob("guest-*.log"))}


def _send_tails(events: Events, before: dict[Path, int]) -> None:
    """The end of every console that said something since, or still can, and of Xen's own."""
    alive = {domain.name for domain in domains()}
    for log, size in _log_sizes().items():
        if size == before.get(log) and log.stem.removeprefix("guest-") not in alive:
            continue
        events.send("tail", of=log.stem.removeprefix("guest-"), lines=log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
    for log in sorted(names.DEVICE_MODEL_LOGS.glob("qemu-dm-*.log")):
        events.send("tail", of=log.stem, lines=log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
    # Building a guest logs 30 lines of saved state that say nothing.
    dmesg = [line for line in xl("dmesg").output.splitlines() if not re.search(r"HVM ?d?\d+(v\d+)? (save|restore):", line)]
    events.send("tail", of="xl dmesg", lines=dmesg[-20:])
    events.send("tail", of="dom0 dmesg", lines=run("dmesg").output.splitlines()[-10:])
    events.send("tail", of="xl list", lines=xl("list").output.splitlines())


def _send_logs(events: Events) -> None:
    """Every console as a whole, for the host's log folder."""
    for log in sorted(names.CONSOLE_LOGS.glob("guest-*.log")):
        events.send("log", of=log.stem.removeprefix("guest-"), text=log.read_text(errors="replace")[-200_000:])


main()
