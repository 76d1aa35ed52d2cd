"""The half of the lab that runs in dom0, with nothing but Python's library and Xen's own tools.

Nothing here knows of QEMU: on a real Xen host it works as well.
"""
