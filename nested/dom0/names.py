"""Every name, path and console line that the lab takes for granted, in one place."""

from pathlib import Path

LAB = Path("/lab")
"""Where the archives put the lab's files in dom0."""

RUN_OPTIONS = LAB / "run.json"
"""What the host half asks of the runner."""

SHELL_WANTED = Path("/run/lab-shell")
"""dom0's init starts a shell on its console if the runner leaves this file."""

EVENT_PORT = Path("/dev/ttyS1")
"""The serial port that carries events to the host half."""

CONSOLE_LOGS = Path("/var/log/xen/console")
"""xenconsoled --log=guest writes guest-<name>.log here."""

DEVICE_MODEL_LOGS = Path("/var/log/xen")
"""libxl has the device model of an HVM domain write qemu-dm-<name>.log here."""

XENSTORED_PID = Path("/run/xenstored.pid")
XENCONSOLED_PID = Path("/run/xenconsoled.pid")
"""Where dom0's init lets the daemons write their process ids."""

BLOCK_SCRIPT = LAB / "nested" / "dom0" / "block"
"""The hotplug script of disks that dom0's blkback serves."""

GRANARY = "granary"
"""The name of the long-lived Granary, as in `backend=`."""

GRANARY_CONFIG = LAB / "images" / "granary.cfg"
GRANARY_IMAGE = LAB / "granary"
GRANARY_NVME_CONFIG = LAB / "images" / "granary-nvme.cfg"
GRANARY_HVM_IMAGE = LAB / "granary-hvm"
GUEST_CONFIG = LAB / "images" / "guest.cfg"
GUEST_KERNEL = LAB / "guest" / "vmlinux"
GUEST_INITRAMFS = LAB / "guest" / "initramfs"
DRIVER_INITRAMFS = LAB / "guest" / "driver" / "initramfs"
"""Of a Linux that is a driver domain and nothing else, with GUEST_KERNEL."""

STORAGE_INITRAMFS = LAB / "guest" / "driver" / "storage-initramfs"
"""Of one whose disks are other domains' or an NVMe controller's."""

GUEST_BZIMAGE = LAB / "guest" / "vmlinuz"
"""GUEST_KERNEL as HVM domains boot it."""

DRIVER_PACKED_BYTES = LAB / "guest" / "driver" / "packed-bytes"
"""The size of that Linux as distributions ship it, compressed, with its archive."""

OTHER_KERNEL = LAB / "guest" / "other" / "vmlinux"
OTHER_INITRAMFS = LAB / "guest" / "other" / "initramfs"
"""The Linux of another Debian release than dom0's, and the same guest with its modules."""

GRUB = LAB / "guest" / "grub"
"""GRUB as a PVH kernel: a 32-bit frontend."""

GRUB_PV = LAB / "guest" / "grub-pv"
"""GRUB as a 64-bit PV kernel."""

QEMU = Path("/usr/libexec/xen-qemu-system-i386")

GRANARYCTL = LAB / "scripts" / "granaryctl"
PACK = LAB / "scripts" / "pack"
DISK_IMAGES = LAB / "disks.tar"
"""What nested/host/gold.py makes."""

NVME_MIB = (128, 64)
"""The sizes of the NVMe controller's namespaces: of 512-byte blocks the first, of 4096-byte blocks the second."""

NVME_BAD_MIB = 32
"""Of the second namespace: who touches the first byte of this MiB gets an error."""

GUEST_CMDLINE = "console=hvc0 rdinit=/init nokaslr mitigations=off panic=-1"

GUEST_READY = r"^guest: ready"
"""What nested/guest/init prints when it takes commands."""

GRANARY_READY = r"^granary: .*ready"
"""Granary's line when it watches for disks."""

GRANARY_READY_AFTER = r"^granary: .*ready after (\d+) us"
"""The same line; the time is from Granary's first instruction."""

COPIED_BY = r"^granary: data is copied by (\w+)"
"""Says which routine copies."""

CONFIG_NODE = "data/config"
"""Below the home of a Granary that has no command line: its words."""

USAGE_NODE = "data/usage"
"""Below a Granary's xenstore home: "free_pages=<n> handles=<n> disks=<n> heap_peak_bytes=<n>", and more."""


def vbd_line(what: str, domid: int | str = r"\d+", devid: int | str = r"\d+") -> str:
    """A pattern for Granary's line about one vbd."""
    return rf"^granary: vbd {domid}/{devid}: .*{what}"
