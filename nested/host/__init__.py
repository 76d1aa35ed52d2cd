"""The half of the lab that runs on the developer's machine: archives, QEMU, the report."""
