"""How do images come from files and go to files?

`load` and `save` for docker archives, OCI archives and OCI layout directories; `rootfs` for whole root file systems.
One thread reads or writes one archive; blobs are published first and names last.
"""
