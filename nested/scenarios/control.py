"""dom0 asks a running Granary for disks, with the real granaryctl."""

import json
import threading
from collections.abc import Callable

from ..dom0 import disks
from ..dom0.domain import Guest, devid
from ..dom0.granaryctl import granaryctl as ctl
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, Outcome, eventually, expect

NR_DISKS = 32
# granaryctl's exit code.
REFUSED = 1
# enum xsd_sockmsg_type of io/xs_wire.h.
READ, WRITE = 2, 11


def refused(what: Outcome, *words: str) -> None:
    """It was refused with a sentence that has all of these in it."""
    what.expect(REFUSED)
    missing = [word for word in words if word not in what.output]
    if missing:
        raise Mismatch(f"`{what.command}` should speak of {', '.join(missing)}; it said: {what.output.strip()}")


def vbd(guest: Guest, vdev: str) -> str:
    return f"{guest.domid}/{devid(vdev)}"


def sectors(guest: Guest, vdev: str) -> int:
    return int(guest.sh(f"cat /sys/block/{vdev}/size"))


@scenario(limit=180)
def a_disk_is_made_used_and_removed(lab: Lab):
    """A disk with a name keeps its data from attach to attach, grows while used, and goes when told to."""
    guest, granary = lab.guest(), lab.granary
    granary.control("create", "kept", "ram,size=16M").expect(0)
    refused(granary.control("create", "kept", "ram,size=16M"), "kept already")
    guest.attach(disks.granary("xvdb", "kept"))
    written = guest.fill("/dev/xvdb", 8)
    listed = granary.disk("kept")
    expect("who holds it", listed["vbds"], [{"frontend": guest.domid, "devid": devid("xvdb")}])
    expect("its size", (listed["type"], listed["sectors"], listed["cap_pages"]), ("ram", 16 << 11, 16 << 8))
    expect("its pages hold what was written", listed["pages"] >= 8 << 8, True)

    for verb in (["remove", "kept"], ["discard-all", "kept"], ["resize", "kept", "8M"]):
        refused(granary.control(*verb), "kept is in use", f"vbd {vbd(guest, 'xvdb')}")
    granary.control("resize", "kept", "24M").expect(0)
    eventually("the guest sees 24 MiB", lambda: sectors(guest, "xvdb") == 24 << 11)
    expect("what was there", guest.checksum("/dev/xvdb", 8), written)
    guest.sh("dd if=/dev/urandom of=/dev/xvdb bs=1M seek=20 count=4 oflag=direct")
    guest.detach("xvdb")

    guest.attach(disks.granary("xvdb", "kept"))
    expect("what was there before", guest.checksum("/dev/xvdb", 8), written)
    guest.detach("xvdb")
    granary.control("discard-all", "kept").expect(0)
    eventually("its pages are given back", lambda: granary.disk("kept")["pages"] == 0)
    granary.control("resize", "kept", "4M").expect(0)
    guest.attach(disks.granary("xvdb", "kept"))
    expect("its sectors", sectors(guest, "xvdb"), 4 << 11)
    guest.sh("dd if=/dev/xvdb bs=1M iflag=direct | tr -d '\\000' | wc -c | grep -qx 0")
    guest.detach("xvdb")
    granary.control("remove", "kept").expect(0)
    refused(granary.control("remove", "kept"), "no disk or image called kept")


@scenario(limit=180)
def a_clone_and_a_snapshot(lab: Lab):
    """A clone and a snapshot hold what was there; the clone is written to, the snapshot is not."""
    guest, granary = lab.guest(), lab.granary
    granary.control("create", "origin", "ram,size=16M").expect(0)
    guest.attach(disks.granary("xvdb", "origin"))
    written = guest.fill("/dev/xvdb", 8)
    free = granary.listing()["pool"]["free_pages"]
    granary.control("snapshot", "origin", "monday").expect(0)
    granary.control("clone", "origin", "fork").expect(0)
    expect("pages that both took at once, at most 16", free - granary.listing()["pool"]["free_pages"] <= 16, True)
    guest.fill("/dev/xvdb", 8)

    refused(granary.control("clone", "origin", "fork"), "fork already")
    device = guest.try_attach(disks.granary("xvdc", "monday")).expect_failure()
    lab.note(f"a snapshot attached to be written: xl failed after {device.seconds:.1f} s")
    guest.detach("xvdc")
    guest.attach(disks.granary("xvdc", "monday", access="ro"))
    guest.attach(disks.granary("xvdd", "fork"))
    expect("the clone", guest.checksum("/dev/xvdd", 8), written)
    guest.fill("/dev/xvdd", 8)
    expect("the snapshot", guest.checksum("/dev/xvdc", 8), written)
    for vdev in ("xvdb", "xvdc", "xvdd"):
        guest.detach(vdev)
    for name in ("origin", "monday", "fork"):
        granary.control("remove", name).expect(0)


@scenario(limit=180)
def two_clients_and_32_disks(lab: Lab):
    """Two clients at once make 32 disks, list them in several parts, and remove them."""
    granary = lab.granary

    def each(client: int, verb: Callable[[str], str]) -> None:
        with ctl.Xenstore(ctl.Deadline(120)) as store:
            control = ctl.Control(store, granary.domid)
            for number in range(client, NR_DISKS, 2):
                control.run(verb(f"a-disk-with-a-rather-long-name-{number:02}"))

    _both(lambda client: each(client, lambda name: f"create {name} null,size=1T,block=4096"))
    lists = [granary.start_control("list", "--json") for _ in range(2)]
    expected = [f"a-disk-with-a-rather-long-name-{number:02}" for number in range(NR_DISKS)]
    for text in [running.wait().expect(0).output for running in lists]:
        found = sorted(disk["name"] for disk in json.loads(text)["disks"])
        expect("the disks that are listed", found, expected)
    _both(lambda client: each(client, lambda name: f"remove {name}"))
    expect("the disks that are left", granary.listing()["disks"], [])


@scenario(limit=90)
def guests_are_kept_out(lab: Lab):
    """A guest can neither read nor write the nodes that dom0 controls Granary by."""
    guest, granary = lab.guest(), lab.granary
    expect("what a guest reads of its own", guest.sh(_xenstore(READ, "name")), guest.name)
    for node in ("data", "data/request", "data/response", "data/usage"):
        expect(f"reading {node}", guest.sh(_xenstore(READ, f"{granary.home}/{node}")), "EACCES")
    for node in ("data/request", "data/response", "data/other"):
        path = f"{granary.home}/{node}"
        expect(f"writing {node}", guest.sh(_xenstore(WRITE, path, "evil create evil ram,size=1M")), "EACCES")
    expect("the disks", granary.listing()["disks"], [])


def _xenstore(kind: int, path: str, value: str = "") -> str:
    """A guest's command line that sends one request to xenstored and prints the answer's payload."""
    length = len(path) + 1 + len(value)
    header = "".join(f"\\{byte:03o}" for number in (kind, 0, 0, length) for byte in number.to_bytes(4, "little"))
    return f"exec 3<> /dev/xen/xenbus; printf '{header}{path}\\000{value}' >&3; dd bs=4k count=1 <&3 2> /dev/null | tail -c +17 | tr -d '\\000'"


def _both(work: Callable[[int], None]) -> None:
    """Runs two clients at once; the first one's failure, if there is one."""
    failures: list[BaseException] = []

    def guarded(client: int) -> None:
        try:
            work(client)
        except Exception as failure:
            failures.append(failure)

    clients = [threading.Thread(target=guarded, args=(client,)) for client in range(2)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    for failure in failures:
        raise failure
