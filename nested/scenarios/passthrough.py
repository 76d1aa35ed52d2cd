"""An NVMe controller that is passed through to Granary: its namespaces are disks, and dom0 never touches it."""

from ..dom0 import disks, files, names, pci
from ..dom0.domain import Granary, Guest, NvmeGranary, Work
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import Mismatch, eventually, expect, xl
from .upstream import Load, check_as_before, fails

MIB = 1 << 20
FIRST, SECOND = "nvme0n1", "nvme0n2"


# Promises are behind the file system.
FILE_SYSTEM_MIB, NR_PROMISES = 96, 8


def controller() -> pci.Device:
    """The machine's NVMe controller, to be given to a domain."""
    nvme = pci.nvme()
    if not nvme.assignable():
        nvme.give_up()
    return nvme


def served(granary: Granary, vdev: str, target: str) -> disks.Disk:
    return disks.granary(vdev, target, backend=granary.name)


def keeps_promises(lab: Lab, guest: Guest, vdev: str, series: str) -> None:
    """What the guest was promised on its disk, which is the first namespace, was durable in time."""
    files.promised(guest, vdev, series, FILE_SYSTEM_MIB, NR_PROMISES)
    kept = lab.ask("promises", series=series, at_bytes=FILE_SYSTEM_MIB * MIB)
    expect("promises", kept["promises"], NR_PROMISES)
    lab.figure("entries of the log", kept["entries"], "")


def waits_for_a_flush(lab: Lab, guest: Guest, vdev: str, beside: Work) -> None:
    """While the first namespace holds flushes up, an fsync of the guest is not answered, and work on another disk goes on."""
    lab.ask("hold flushes")
    try:
        synced = guest.start(f"[ -b /dev/{vdev} ] && dd if=/dev/urandom of=/dev/{vdev} bs=64k count=4 conv=fsync 2> /dev/null")
        for _ in range(3):
            beside.goes_on()
        expect("it is answered while the device holds it up", synced.ended(), False)
    finally:
        lab.ask("let flushes go")
    synced.wait()


@scenario(limit=120, group="all", machine="passthrough")
def a_controller_and_an_iommu(lab: Lab):
    """The machine itself: Xen uses its IOMMU, and its controller can be made assignable and dom0's again."""
    info = xl("info").expect(0).output
    capabilities = next(line for line in info.splitlines() if line.startswith("virt_caps"))
    if "hvm_directio" not in capabilities:
        raise Mismatch(f"Xen does not pass devices through: {capabilities}")
    nvme = pci.nvme()
    lab.note(f"the controller is {nvme.address}")
    for _ in range(2):
        nvme.give_up()
        expect("it is assignable", nvme.assignable(), True)
        nvme.take_back()
        expect("it is assignable", nvme.assignable(), False)


@scenario(limit=600, group="all", machine="passthrough")
def durability_on_blkback(lab: Lab):
    """The machine itself: with dom0's own driver and blkback on the controller promises are kept, and flushes waited for."""
    guest, nvme = lab.guest(), pci.nvme()
    if nvme.assignable():
        nvme.take_back()
    with pci.dom0s_own_driver(FIRST) as device:
        guest.attach(disks.blkback("xvdb", str(device)))
        guest.attach(disks.ram("xvdc", "16M"))
        keeps_promises(lab, guest, "xvdb", "blkback")
        work = Work(guest, "/dev/xvdc", 4)
        waits_for_a_flush(lab, guest, "xvdb", work)
        work.end()
        for vdev in ("xvdb", "xvdc"):
            guest.detach(vdev)


@scenario(limit=600, group="all", machine="passthrough")
def a_namespace_is_a_disk(lab: Lab):
    """What a guest wrote to a namespace is in its image; the controller comes back, and is taken again, five times."""
    guest, nvme = lab.guest(), controller()
    for turn in range(1, 6):
        granary = NvmeGranary.create()
        if turn == 1:
            for line in granary.console.matching("nvme"):
                lab.note(f"console: {line}")
        guest.attach(served(granary, "xvdb", FIRST))
        expect("its sectors", guest.sh("cat /sys/block/xvdb/size"), str(names.NVME_MIB[0] << 11))
        sums = files.write(guest, "xvdb", 1, 4 + turn)
        guest.detach("xvdb")
        lab.ask("files", namespace=1, sums=sums)
        granary.destroy()
        expect("the controller is back", nvme.assignable(), True)
        nvme.take_back()
        nvme.give_up()


@scenario(limit=300, group="all", machine="passthrough")
def two_namespaces(lab: Lab):
    """Two namespaces are two disks, with blocks of their own size, and an overlay of one leaves it alone."""
    guest = lab.guest()
    controller()
    granary = NvmeGranary.create()
    vdevs = ["xvdb", "xvdc"]
    for vdev, target in zip(vdevs, (FIRST, SECOND)):
        guest.attach(served(granary, vdev, target))
    expect("their blocks", guest.sh("cat /sys/block/xvd[bc]/queue/logical_block_size").split(), ["512", "4096"])
    for work in [guest.start_verify(f"/dev/{vdev}", 24) for vdev in vdevs]:
        work.wait()
    for vdev in vdevs:
        guest.detach(vdev)
    guest.attach(served(granary, "xvdb", FIRST))
    sums = files.write(guest, "xvdb", 4)
    guest.detach("xvdb")
    guest.attach(served(granary, "xvdb", f"{FIRST},cow"))
    guest.verify("/dev/xvdb", 8)
    guest.detach("xvdb")
    lab.ask("files", namespace=1, sums=sums)
    granary.shutdown()


@scenario(limit=300, group="all", machine="passthrough")
def told_by_dom0(lab: Lab):
    """Without a command line Granary does what dom0 wrote for it before it began."""
    guest = lab.guest()
    controller()
    granary = NvmeGranary.create(words="disk=here,ram,size=8M")
    guest.attach(served(granary, "xvdb", "here"))
    guest.verify("/dev/xvdb", 8)
    guest.detach("xvdb")
    granary.shutdown()


@scenario(limit=300, group="all", machine="passthrough")
def started_by_hvmloader(lab: Lab):
    """The image boots as `kernel=` too, and reads its command line."""
    guest = lab.guest()
    controller()
    granary = NvmeGranary.create_by_hvmloader(cmdline="disk=here,ram,size=8M")
    guest.attach(served(granary, "xvdb", "here"))
    guest.verify("/dev/xvdb", 8)
    guest.detach("xvdb")
    guest.attach(served(granary, "xvdb", FIRST))
    guest.verify("/dev/xvdb", 8)
    guest.detach("xvdb")
    granary.shutdown()


@scenario(limit=600, group="all", machine="passthrough")
def an_fsync_reaches_the_device(lab: Lab):
    """When a guest's fsync is answered, the device has had its writes, and a flush after them."""
    guest = lab.guest()
    controller()
    granary = NvmeGranary.create()
    guest.attach(served(granary, "xvdb", FIRST))
    keeps_promises(lab, guest, "xvdb", "granary")
    guest.detach("xvdb")
    granary.shutdown()


@scenario(limit=300, group="all", machine="passthrough")
def an_fsync_waits_for_the_device(lab: Lab):
    """While the device holds a flush up the guest's fsync is not answered, and other disks go on; then it is."""
    guest = lab.guest()
    controller()
    granary = NvmeGranary.create()
    guest.attach(served(granary, "xvdb", FIRST))
    guest.attach(disks.ram("xvdc", "16M", backend=granary.name))
    work = Work(guest, "/dev/xvdc", 4)
    waits_for_a_flush(lab, guest, "xvdb", work)
    work.end()
    for vdev in ("xvdb", "xvdc"):
        guest.detach(vdev)
    granary.shutdown()


@scenario(limit=300, group="all", machine="passthrough")
def its_errors_are_the_guests(lab: Lab):
    """Where the device fails a request it is that guest's error; the disk and the others go on."""
    guest = lab.guest()
    controller()
    granary = NvmeGranary.create()
    before = granary.usage()
    guest.attach(served(granary, "xvdb", SECOND))
    guest.attach(served(granary, "xvdc", FIRST))
    work = Work(guest, "/dev/xvdc", 4)
    bad = names.NVME_BAD_MIB << 4
    for _ in range(20):
        fails(guest, f"dd if=/dev/xvdb of=/dev/null bs=64k skip={bad} count=1 iflag=direct")
        fails(guest, f"dd if=/dev/zero of=/dev/xvdb bs=64k seek={bad} count=1 oflag=direct conv=notrunc")
    guest.sh(f"dd if=/dev/xvdb of=/dev/null bs=64k count={bad} iflag=direct")
    guest.sh(f"dd if=/dev/xvdb of=/dev/null bs=64k skip={bad + 1} iflag=direct")
    guest.verify("/dev/xvdb", 8)
    work.goes_on()
    work.end()
    expect("errors that Granary counts", granary.statistics(guest, "xvdb")["errors"] >= 40, True)
    for vdev in ("xvdb", "xvdc"):
        guest.detach(vdev)
    check_as_before(granary, before)
    granary.shutdown()


@scenario(limit=600, group="all", machine="passthrough")
def the_controller_stops(lab: Lab):
    """A controller that stops under load is reset, and goes on: its guests' disks work again, and others never stopped."""
    other, nvme = lab.guest(), controller()
    granary = NvmeGranary.create()
    before = granary.usage()
    guest = Guest.create("upset", served(granary, "xvdb", FIRST))
    other.attach(disks.ram("xvdc", "16M", backend=granary.name))
    work = Work(other, "/dev/xvdc", 4)
    load = Load(guest)
    work.goes_on()
    nvme.stop()
    work.goes_on()
    read = "dd if=/dev/xvdb of=/dev/null bs=64k count=4 iflag=direct 2> /dev/null && echo yes || :"
    eventually("the disk works again", lambda: guest.sh(read) == "yes", limit=120)
    lab.note(f"the load: {load.end() or 'no error'}")
    guest.verify("/dev/xvdb", 8)
    work.goes_on()
    work.end()
    guest.destroy()
    other.detach("xvdc")
    check_as_before(granary, before)
    granary.destroy()


@scenario(limit=600, group="all", machine="passthrough")
def the_controller_vanishes(lab: Lab):
    """A controller that is gone under load fails its guests' requests, and nothing else; afterwards it can be used anew."""
    other, nvme = lab.guest(), controller()
    granary = NvmeGranary.create()
    guest = Guest.create("bereft", served(granary, "xvdb", FIRST))
    other.attach(disks.ram("xvdc", "16M", backend=granary.name))
    work = Work(other, "/dev/xvdc", 4)
    load = Load(guest)
    work.goes_on()
    expect("it writes", load.goes_on(), True)
    nvme.vanish()
    load.fails()
    work.goes_on()
    work.end()
    guest.destroy()
    other.detach("xvdc")
    granary.destroy()
    expect("the controller is back", nvme.assignable(), True)

    granary = NvmeGranary.create()
    other.attach(served(granary, "xvdb", FIRST))
    other.verify("/dev/xvdb", 8)
    other.detach("xvdb")
    granary.shutdown()
