"""One boot of the lab: the run's own archive, the events that come back, and the hang guards."""

import contextlib
import io
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import cpio, qemu, tools
from .answers import Answers
from .faults import emulator_fault
from .port import Port
from .report import Report
from .roots import CACHE, REPOSITORY, Boot, Suite, boot_files

IMAGES = [REPOSITORY / "target" / name for name in ("granary", "granary-hvm")]
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

    @property
    def logs(self) -> Path:
        return CACHE / ("logs-passthrough" if self.machine.nvme else "logs")


def run(job: Job, suite: Suite) -> Report:
    """Boots once no other QEMU runs, and once more if the emulator failed; the report of the boot that counts."""
    report = Report()
    for image in IMAGES:
        if not image.exists():
            report.say(f"{image.relative_to(REPOSITORY)} does not exist; scripts/build makes it")
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
    logs = job.logs
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    archive = logs.parent / "run.cpio"
    _write_archive(archive, boot, job)
    if job.machine.nvme:
        job.machine.nvme.make()
    console = logs / "console.log"
    serial = "mon:stdio" if job.shell else f"file:{console}"
    report.say(f"starting QEMU; logs are in {logs.relative_to(REPOSITORY)}")
    # A socket's name is short, and a repository's path may be long.
    with tempfile.TemporaryDirectory() as folder:
        channels = qemu.Channels(Path(folder))
        command = qemu.command(job.machine, boot, archive, serial, channels)
        with (
            contextlib.closing(Port(channels.events, logs / "events.log")) as port,
            qemu.running(command, logs / "qemu.log", interactive=job.shell) as process,
        ):
            guard = _Guard(port, Answers(job.machine.nvme, channels.monitor), logs, report)
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
        report.fail(missing[0] if missing else "lab", f"{why}; see {logs.relative_to(REPOSITORY)}")
        for name in missing[1:]:
            report.fail(name, "not run")
    return None


class _Guard:
    """Reads the events as they come, and knows when the next one is overdue.

    Once something failed it looks for the emulator's faults: then nothing further counts.
    """

    def __init__(self, port: Port, answers: Answers, logs: Path, report: Report):
        self.ended = False
        self.ran_out = False
        self.fault: str | None = None
        self._port = port
        self._answers = answers
        self._logs = logs
        self._report = report
        self._due = time.monotonic() + SILENCE_LIMIT

    def take(self, patient: bool) -> None:
        """Handles what arrived. Who works in a shell is not hurried."""
        for event in self._port.events():
            self._event(event)
        self.ran_out = time.monotonic() > self._due and not patient
        if self.ran_out:
            self._look_for_fault()

    def _look_for_fault(self) -> None:
        """In Xen's console, which the host has whole, and in the domains' tails."""
        logs = [self._logs / "console.log", *sorted(self._logs.glob("tail-*.log"))]
        for text in (log.read_text(errors="replace") for log in logs if log.exists()):
            self.fault = self.fault or emulator_fault(text)

    def _event(self, event: dict) -> None:
        self._due = time.monotonic() + SILENCE_LIMIT
        match event["event"]:
            case "log":
                (self._logs / f"{event['of']}.log").write_text(event["text"])
            case "ask":
                self._port.answer(**self._answers.to(event))
            case "end":
                self.ended = True
            case _:
                if event["event"] == "tail":
                    (self._logs / f"tail-{event['of']}.log").write_text("\n".join(event["lines"]))
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
        for image in filter(Path.exists, IMAGES):
            own.file(f"lab/{image.name}", image.read_bytes())
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
