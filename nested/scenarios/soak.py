"""Guests that come, work, crash and go at random for as long as one likes (scripts/soak)."""

import random
import re
import time
from pathlib import Path

from ..dom0 import disks, images
from ..dom0.domain import PATIENCE, Granary
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, eventually, expect, xl
from ..soak.actor import Actor, Stage
from ..soak.ledger import Ledger
from ..soak.tenant import UPSTREAM, UPSTREAM_MIB, Tenant, TenantUpstream
from ..soak.trouble import Attacker, Daemons, Operator

# One of them upstream: see TenantUpstream.
NR_TENANTS_IN_RAM = 2
ROUND_MINUTES = 10
# Of dom0's clock, which may run ahead of the wall's when the machine idles.
LIMIT = 7 * 24 * 3600


@scenario(limit=LIMIT, group="soak")
def chaos(lab: Lab):
    """Whatever guests do and whatever end they come to, no data is wrong and nothing is left behind.

    `--set minutes=N` is how long, by the wall's clock (10); `--set seed=N` what is done (random).
    """
    minutes = float(lab.settings.get("minutes", 10))
    seed = lab.settings.get("seed") or str(random.SystemRandom().randrange(10**6))
    lab.note(f"seed {seed}, {minutes:g} minutes")
    start = _wall_seconds()
    [image] = images.unpacked("gold.qcow2")
    upstream = images.empty("soak.img", UPSTREAM_MIB)
    disk = disks.blkback("xvdb", str(upstream))
    granary = Granary.create("granary-soak", memory=384, ramdisk=str(image), cmdline=f"disk=gold,module=0 disk=up,{UPSTREAM}", disk=[str(disk)])
    images.remove(image)
    eventually("it has its upstream disk", lambda: granary.disk("up")["sectors"] > 0)
    ledger = Ledger.now(granary)
    stage = Stage(lab, granary)
    number = 0
    while (left := minutes - (_wall_seconds() - start) / 60) > 0:
        number += 1
        _round(stage, f"{seed} {number}", _wall_seconds() + min(left, ROUND_MINUTES) * 60)
        ledger.check(granary)
        lab.note(f"round {number}: everything is as before, after {(_wall_seconds() - start) / 60:.1f} minutes")
    for what, times in sorted(stage.done.items()):
        lab.figure(what, times, "")
    lab.figure("the soak", (_wall_seconds() - start) / 60, "minutes")
    lab.figure("rounds after which nothing was left", number, "rounds")
    expect("how often Granary began", len(granary.console.matching(r"ready after")), 1)
    lab.figure("Granary's uptime, by dom0's clock", _uptime_seconds(granary) / 60, "minutes")
    lab.figure("peak heap", granary.usage().heap_peak_bytes / 1024, "KiB")
    granary.shutdown()
    images.remove(upstream)


def _round(stage: Stage, seed: str, until: float) -> None:
    """Lets everybody act until then; raises if anybody found something wrong."""
    stage.over.clear()
    in_ram = [Tenant(f"tenant{number}", stage, seed) for number in range(1, NR_TENANTS_IN_RAM + 1)]
    tenants = [*in_ram, TenantUpstream("upstream", stage, seed)]
    # A disk that another domain serves is not cloned.
    operator = Operator("operator", stage, seed, [disk for tenant in in_ram for disk in tenant.own])
    actors: list[Actor] = [*tenants, operator, Attacker("attacker", stage, seed), Daemons("daemons", stage, seed)]
    for actor in actors:
        actor.start()
    while _wall_seconds() < until and not stage.over.wait(1):
        pass
    stage.over.set()
    for actor in actors:
        actor.join(2 * PATIENCE)
    if stage.failures:
        raise Mismatch(f"seed {seed}: " + "; ".join(stage.failures))
    operator.leave()
    for tenant in tenants:
        tenant.leave()


def _wall_seconds() -> float:
    """The wall's clock: the emulated machine's real-time clock follows the host's, whatever its processor's clock counts."""
    rtc = Path("/sys/class/rtc/rtc0/since_epoch")
    return float(rtc.read_text()) if rtc.exists() else time.time()


def _uptime_seconds(granary: Granary) -> float:
    """What `xl uptime` says of it: "name  ID  [D days, ]H:MM:SS"."""
    said = xl("uptime", granary.name).expect(0).output
    found = re.search(r"(?:(\d+) days?, +)?(\d+):(\d\d):(\d\d)", said)
    if not found:
        raise Mismatch(f"xl uptime said {said.strip()!r}")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
