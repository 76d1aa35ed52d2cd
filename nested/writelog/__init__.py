"""What reached a disk, in which order: logs of writes and flushes, and what they prove.

Pure: it reads and writes files, and runs e2fsprogs on them. dom0 uses it as the host half does.
"""
