"""One boot of the lab: the run's own archive, the events that come back, and the hang guards."""

import io
import json
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from . import cpio, qemu, tools
from .faults import emulator_fault
from .report import Report
from .roots import CACHE, REPOSITORY, Boot, Suite, boot_files

LOGS = CACHE / "logs"
GRANARY_IMAGE = REPOSITORY / "target" / "granary"
PARTS = ["nested", "images", "scripts"]

# A hang guard in seconds without any event. It is for a machine that is stuck as a whole: dom0's
# runner guards each scenario by its own clock, which is not this one (qemu.CLOCKS).
SILENCE_LIMIT = 600
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """What one boot is to do."""

    scenarios: list[str]
    machine: qemu.Machine
    shell: bool
    settings: dict[str, str]


def run(job: Job, suite: Suite) -> Report:
    """Boots once no other QEMU runs, and once more if the emulator failed; the report of the boot that counts."""
    report = Report()
    if not GRANARY_IMAGE.exists():
        report.say(f"{GRANARY_IMAGE.relative_to(REPOSITORY)} does not exist; scripts/build makes it")
    # A terminated run must not leave its QEMU behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The archives and the logs belong to whoever holds the lock, as the machine does.
    with qemu.exclusive(report.say):
        boot = boot_files(suite, report.say)
        if fault := _boot_and_run(job, boot, report):
            report.say(f"THE EMULATOR FAILED: {fault}. Trying the whole boot once more.")
            report = Report(start=report.start)
            if fault := _boot_and_run(job, boot, report):
                report.fail("lab", f"the emulator failed twice: {fault}")
    return report


def _boot_and_run(job: Job, boot: Boot, report: Report) -> str | None:
    """Boots the lab, runs the scenarios, and leaves their verdicts in `report`. The lock must be held.

    Returns the emulator's fault if that ended the run, which is no verdict on anything.
    """
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    archive = LOGS.parent / "run.cpio"
    _write_archive(archive, boot, job)
    console, events = LOGS / "console.log", LOGS / "events.log"
    serial = "mon:stdio" if job.shell else f"file:{console}"
    command = qemu.command(job.machine, boot, archive, serial, events)
    report.say(f"starting QEMU; logs are in {LOGS.relative_to(REPOSITORY)}")
    with qemu.running(command, LOGS / "qemu.log", interactive=job.shell) as process:
        guard = _Guard(events, console, report)
        while process.poll() is None and not guard.ran_out and not guard.fault:
            time.sleep(POLL_SECONDS)
            guard.take(patient=job.shell)
        guard.take(patient=job.shell)
    if guard.fault:
        return guard.fault
    missing = [name for name in job.scenarios if name not in report.passed and name not in report.failed]
    if missing or not guard.ended:
        _say_end_of_console(console, report)
        why = "a hang guard ran out" if guard.ran_out else "dom0 ended before its runner did"
        report.fail(missing[0] if missing else "lab", f"{why}; see {LOGS.relative_to(REPOSITORY)}")
        for name in missing[1:]:
            report.fail(name, "not run")
    return None


class _Guard:
    """Reads the events as they come, and knows when the next one is overdue.

    Once something failed it looks for the emulator's faults: then nothing further counts.
    """

    def __init__(self, events: Path, console: Path, report: Report):
        self.ended = False
        self.ran_out = False
        self.fault: str | None = None
        self._events = events
        self._console = console
        self._report = report
        self._offset = 0
        self._due = time.monotonic() + SILENCE_LIMIT

    def take(self, patient: bool) -> None:
        """Handles what arrived. Who works in a shell is not hurried."""
        data = self._events.read_bytes()[self._offset :] if self._events.exists() else b""
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            if line.startswith(b"{"):
                self._event(json.loads(line))
        self.ran_out = time.monotonic() > self._due and not patient
        if self.ran_out:
            self._look_for_fault()

    def _look_for_fault(self) -> None:
        """In Xen's console, which the host has whole, and in the domains' tails."""
        logs = [self._console, *sorted(LOGS.glob("tail-*.log"))]
        for text in (log.read_text(errors="replace") for log in logs if log.exists()):
            self.fault = self.fault or emulator_fault(text)

    def _event(self, event: dict) -> None:
        self._due = time.monotonic() + SILENCE_LIMIT
        match event["event"]:
            case "log":
                (LOGS / f"{event['of']}.log").write_text(event["text"])
            case "end":
                self.ended = True
            case _:
                if event["event"] == "tail":
                    (LOGS / f"tail-{event['of']}.log").write_text("\n".join(event["lines"]))
                self._report.event(event)
                if event["event"] == "fail":
                    self._look_for_fault()


def _write_archive(path: Path, boot: Boot, job: Job) -> None:
    """dom0's cached archive, and behind it this run's files, which replace equal names."""
    with path.open("wb") as out:
        with boot.dom0.open("rb") as base:
            shutil.copyfileobj(base, out)
        own = cpio.Archive(out)
        own.file("init", (REPOSITORY / "nested/dom0/init").read_bytes(), 0o755)
        own.file("etc/xen/xl.conf", b'autoballoon="off"\n')
        for part in PARTS:
            own.tree(REPOSITORY / part, f"lab/{part}", lambda found: "__pycache__" in found.parts)
        if GRANARY_IMAGE.exists():
            own.file("lab/granary", GRANARY_IMAGE.read_bytes())
        own.file("lab/guest/initramfs", boot.guest.read_bytes() + _guest_archive())
        own.file("lab/run.json", json.dumps({"scenarios": job.scenarios, "shell": job.shell, "settings": job.settings}).encode())
        own.close()


def _guest_archive() -> bytes:
    """What a guest has beside Debian's programs."""
    out = io.BytesIO()
    own = cpio.Archive(out)
    own.file("bin/lab-io", tools.lab_io().read_bytes(), 0o755)
    own.close()
    return out.getvalue()


def _say_end_of_console(console: Path, report: Report) -> None:
    if console.exists():
        report.say("--- the end of dom0's console ---")
        for line in console.read_text(errors="replace").splitlines()[-60:]:
            report.say(f"| {line}")
