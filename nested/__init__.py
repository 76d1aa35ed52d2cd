"""The nested lab: Xen, a Debian dom0 and Linux guests in QEMU, without hardware virtualisation.

`host` runs on the developer's machine, `dom0` and `scenarios` run in dom0, `guest` in the guests.
docs/testing.md is the manual.
"""
