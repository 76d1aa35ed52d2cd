"""What the person at the terminal sees.

Each line begins with real seconds; seconds inside a line are dom0's, by the emulated clock.
"""

import time
from dataclasses import dataclass, field

from ..bench.results import Results


@dataclass
class Report:
    """Prints progress with elapsed seconds, and keeps verdicts and measurements."""

    start: float = field(default_factory=time.monotonic)
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    figures: list[tuple[str, str]] = field(default_factory=list)
    results: Results = field(default_factory=Results)
    _running: str = ""

    def say(self, text: str) -> None:
        for line in text.splitlines() or [""]:
            print(f"[{time.monotonic() - self.start:6.1f}s] {line}", flush=True)

    def event(self, event: dict) -> None:
        """Shows one event of dom0's runner."""
        self.results.take(event)
        match event["event"]:
            case "ready":
                self.say("dom0 is up")
            case "start":
                self._running = event["name"]
                self.say(f"{event['name']}: {event['says']}")
            case "note":
                self.say(f"    {event['text']}")
            case "figure":
                text = f"{event['name']}: {event['value']:.10g} {event['unit']}"
                self.figures.append((self._running, text))
                self.say(f"    {text}")
            case "sample":
                grants = "persistent" if event["persistent"] else "not persistent"
                figures = ", ".join(f"{name} {value:,.10g}" for name, value in event["figures"].items())
                self.say(f"    {event['backend']}, {grants}, {event['case']}: {figures}")
            case "fact":
                self.say(f"    {event['backend']}: {event['name']} {event['value']:,.10g}")
            case "version":
                self.say(f"    {event['name']} {event['text']}")
            case "pass":
                self.passed.append(event["name"])
                self.say(f"  passed ({event['seconds']:.1f} s in dom0)")
            case "tail":
                self.say(f"    --- the end of {event['of']} ---")
                for line in event["lines"]:
                    self.say(f"    | {line}")
            case "fail":
                self.failed[event["name"]] = event["reason"]
                self.say(f"  FAILED ({event['seconds']:.1f} s in dom0): {event['reason']}")

    def fail(self, name: str, reason: str) -> None:
        """A failure that dom0's runner could not tell of itself."""
        self.failed[name] = reason
        self.say(f"FAILED: {name}: {reason}")

    def summary(self) -> None:
        self.say("")
        for name, text in self.figures:
            self.say(f"{name}: {text}")
        for name, reason in self.failed.items():
            lines = reason.strip().splitlines()
            self.say(f"FAILED {name}: {lines[-1 if reason.startswith('Traceback') else 0]}")
        self.say(f"scenarios: {len(self.passed)} passed, {len(self.failed)} failed")
