"""Files that a guest writes to a file system on one of its disks, to be looked for from outside."""

from pathlib import Path

from ..writelog import ext4
from ..writelog.promises import PROMISE_BYTES, promise
from .domain import Guest
from .xen import expect


def write(guest: Guest, vdev: str, *mib: int) -> dict[str, str]:
    """Makes an ext4 file system on a disk and files of these sizes in it; their names and checksums."""
    guest.sh(f"mkfs.ext4 -q /dev/{vdev} && mount -t ext4 /dev/{vdev} /mnt")
    sums = {f"file-{number}": guest.fill(f"/mnt/file-{number}", size).split()[0] for number, size in enumerate(mib)}
    guest.sh("umount /mnt")
    return sums


def check(image: Path, sums: dict[str, str]) -> None:
    """Raises unless a file or block device of dom0 holds the file system and the files."""
    ext4.check(image)
    expect("the checksums of the files", {name: ext4.md5(image, name) for name in sums}, sums)


def promised(guest: Guest, vdev: str, series: str, file_system_mib: int, count: int) -> None:
    """Makes a file system on the first MiBs of a disk, and files that are synced one by one.

    Behind it the guest writes after each fsync what it was promised (nested/writelog/promises.py).
    """
    guest.sh(f"mkfs.ext4 -q /dev/{vdev} {file_system_mib}M && mount -t ext4 /dev/{vdev} /mnt")
    page = 4096 // PROMISE_BYTES
    script = _PROMISING.format(
        count=count,
        vdev=vdev,
        promise=promise(series, "$n", "$sum").rstrip("\n"),
        bytes=PROMISE_BYTES,
        first=(file_system_mib << 20) // PROMISE_BYTES,
        page=page,
    )
    guest.sh(script, limit=600)
    guest.sh("umount /mnt")


# The file system has more to do than what is synced: a file that nobody asks to be durable is written
# all the while.
_PROMISING = """
[ -b /dev/{vdev} ] || exit 1
touch /tmp/promising
while [ -e /tmp/promising ]; do dd if=/dev/zero of=/mnt/noise bs=4k count=64 conv=notrunc 2> /dev/null; usleep 50000; done &
trap "rm /tmp/promising; wait" EXIT
for n in $(seq {count}); do
    dd if=/dev/urandom of=/mnt/$n bs=4k count=$((n * 3)) conv=fsync 2> /dev/null || exit 1
    sum=$(md5sum < /mnt/$n) && sum=${{sum%% *}} || exit 1
    echo "{promise}" | dd of=/dev/{vdev} bs={bytes} seek=$(({first} + n * {page})) conv=sync,notrunc,fsync 2> /dev/null || exit 1
done"""
