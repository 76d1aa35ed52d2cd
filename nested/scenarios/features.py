"""What Linux can use of the block protocol: each feature on a real disk."""

from ..dom0 import disks
from ..dom0.domain import Guest, devid
from ..dom0.lab import Lab
from ..dom0.scenario import scenario
from ..dom0.xen import eventually, expect, xenstore


def connected(lab: Lab, guest: Guest, vdev: str) -> str:
    """How Granary says that this disk is connected."""
    line = lab.granary.console.wait(rf"^granary: vbd {guest.domid}/{devid(vdev)}: connected, (.*)")
    return line.group(1)


@scenario(limit=60)
def blocks_of_4096_bytes(lab: Lab):
    """A disk with a logical block size of 4096 bytes is used in such blocks."""
    guest = lab.guest()
    guest.attach(disks.granary("xvdb", "ram,size=32M,block=4096"))
    expect("its logical block size", guest.sh("cat /sys/block/xvdb/queue/logical_block_size"), "4096")
    expect("its size in sectors", guest.sh("cat /sys/block/xvdb/size"), str(32 << 11))
    guest.verify("/dev/xvdb", 16)
    guest.detach("xvdb")


@scenario(limit=60)
def read_only(lab: Lab):
    """A disk with access=ro can be read and not written."""
    guest = lab.guest()
    guest.attach(disks.granary("xvdb", "ram,size=8M", access="ro"))
    expect("Linux knows", guest.sh("cat /sys/block/xvdb/ro"), "1")
    guest.sh("dd if=/dev/xvdb of=/dev/null bs=1M count=8 iflag=direct")
    guest.sh("dd if=/dev/zero of=/dev/xvdb bs=1M count=1 conv=notrunc", rc=1)
    guest.detach("xvdb")


@scenario(limit=90)
def discard(lab: Lab):
    """blkdiscard and fstrim give memory back, and what was discarded reads as zeroes."""
    guest = lab.guest()

    def free_pages() -> int:
        # Granary tells what is free whenever a disk comes or goes.
        guest.attach(disks.ram("xvdp", "1M"))
        guest.detach("xvdp")
        return lab.granary.usage().free_pages

    guest.attach(disks.ram("xvdb", "64M"))
    empty = free_pages()
    guest.verify("/dev/xvdb", 48)
    expect("pages that 48 MiB take, tables not counted", empty - free_pages() >= 48 << 8, True)
    guest.sh("blkdiscard /dev/xvdb")
    expect("free pages after blkdiscard", free_pages(), empty)
    guest.sh("dd if=/dev/xvdb bs=1M count=48 iflag=direct | tr -d '\\000' | wc -c | grep -qx 0")
    guest.sh("blkdiscard -s /dev/xvdb")

    guest.sh("mkfs.ext4 -q /dev/xvdb && mount -t ext4 /dev/xvdb /mnt")
    guest.fill("/mnt/file", 32)
    full = free_pages()
    guest.sh("rm /mnt/file && sync && fstrim /mnt && umount /mnt && e2fsck -fn /dev/xvdb")
    expect("fstrim gave at least 30 MiB back", free_pages() - full >= 30 << 8, True)
    guest.detach("xvdb")


@scenario(limit=60)
def resize(lab: Lab):
    """A disk in use grows, and the guest sees it at once."""
    guest = lab.guest()
    guest.attach(disks.ram("xvdb", "16M"))
    written = guest.fill("/dev/xvdb", 16)
    xenstore.write(f"{lab.granary.device(guest, 'xvdb')}/params", "ram,size=24M")
    eventually("the guest sees 24 MiB", lambda: guest.sh("cat /sys/block/xvdb/size") == str(24 << 11))
    expect("what was there", guest.checksum("/dev/xvdb", 16), written)
    guest.verify("/dev/xvdb", 24)
    guest.detach("xvdb")


@scenario(limit=60)
def a_ring_of_16_pages(lab: Lab):
    """A guest uses a ring of 16 pages."""
    guest = Guest.create("large-ring", disks.ram("xvda", "48M"), cmdline="xen_blkfront.max_ring_page_order=4")
    expect("connected", connected(lab, guest, "xvda"), "x86_64-abi, 1 ring of 512 requests, persistent grants")
    guest.verify("/dev/xvda", 40)
    guest.shutdown()


@scenario(limit=60, group="all")
def two_queues(lab: Lab):
    """A guest with two vCPUs uses a queue for each."""
    # Its second processor comes up when the kernel has booted: two that boot together spin on each
    # other for minutes on the emulator's one. blkfront has a queue a processor that is up when it loads.
    guest = Guest.create("two-queues", vcpus=2, cmdline="maxcpus=1")
    guest.sh("echo 1 > /sys/devices/system/cpu/cpu1/online")
    guest.sh("rmmod xen_blkfront && insmod /modules/xen-blkfront.ko max_queues=4")
    guest.attach(disks.ram("xvda", "48M"))
    expect("connected", connected(lab, guest, "xvda"), "x86_64-abi, 2 rings of 32 requests, persistent grants")
    halves = [
        guest.start(f"taskset {1 << half} dd if=/dev/zero of=/dev/xvda bs=64k count=256 seek={half * 256} oflag=direct")
        for half in range(2)
    ]
    for half in halves:
        half.wait()
    guest.verify("/dev/xvda", 40)
    guest.shutdown()


@scenario(limit=90)
def grants_that_are_not_persistent(lab: Lab):
    """A guest that grants each page anew is served by the hypervisor's copies."""
    guest = Guest.create("no-persistent", disks.ram("xvda", "48M"), cmdline="xen_blkfront.feature_persistent=0")
    expect("connected", connected(lab, guest, "xvda"), "x86_64-abi, 1 ring of 32 requests, grants a request")
    guest.verify("/dev/xvda", 40)
    # Granary tells what it has in use whenever a disk comes or goes.
    other = lab.guest()
    other.attach(disks.ram("xvdp", "1M"))
    other.detach("xvdp")
    eventually("only the ring's page is mapped", lambda: lab.granary.usage().handles == 1)
    guest.shutdown()
