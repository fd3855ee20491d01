"""`overlayfs fork`: a second mount that starts from a snapshot of a live one."""

from __future__ import annotations

import os

from overlayfs.cli.mounts.listing import status_of
from overlayfs.cli.mounts.mount import announce_at, remove_after
from overlayfs.fuse import forking, mounting, throwaway
from overlayfs.fuse.session import serve_in_background
from overlayfs.image.store.mounted import same_layers


def fork(mountpoint: str, new: str, snapshot: str) -> None:
    """Fork a mount; return once the new one is live."""
    entry, status = status_of(mountpoint)
    target = os.path.realpath(os.fsencode(new))
    mounting.check_mountpoint(target)  # before a snapshot is taken
    plan = forking.prepare(entry.mountpoint, snapshot)
    options = mounting.MountOptions(
        mountpoint=target,
        source=status.source,
        flags=mounting.flags_of(entry),
        fuse_options=mounting.fuse_options_of(entry),
        subtype=os.fsdecode(entry.filesystem_type.partition(b".")[2]),
        lane=bool(status.document["lane"]),
    )
    daemon, maker = None, os.getpid()
    with same_layers(plan.options.lowers) as record:
        try:
            daemon = serve_in_background(plan.options, options)
        finally:
            if daemon is None and os.getpid() == maker:  # the daemon was forked from here and unwinds the same stack
                throwaway.remove(plan.scratch)
        record(daemon, target)
    remove_after(daemon, plan.scratch)
    announce_at(new, "; what is written is thrown away at the unmount")
