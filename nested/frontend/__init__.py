"""Block frontends that are processes in dom0: their pages are granted with gntalloc, their disks are
attached as libxl would, and they keep to the protocol or break it as a scenario likes."""
