"""`mount -o remount,…`: change the flags of a live mount.

The kernel enforces the flags: it refuses writes to a read-only mount. Layers cannot change, and a mount that was
read-only from the start has no workdir to write with.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from overlayfs.cli.mounts.live import CommandError, is_ours, mount_at, read_status, resolve
from overlayfs.overlay.mount_flags import FLAG_CHANGES, MS_RDONLY, MS_REMOUNT
from overlayfs.overlay.option_parser import changed_flags
from overlayfs.overlay.options import MountError
from overlayfs.tree.mount_table import MountEntry
from overlayfs.tree.syscalls import mount


def remount(target: str, texts: Sequence[str]) -> None:
    """Remount. Raises MountError, after which nothing has changed."""
    try:
        path = resolve(os.fsencode(os.path.abspath(target)))
        entry = mount_at(path)
        if entry is None or not is_ours(entry):
            raise MountError(f"{target}: nothing of overlayfs is mounted here")
        flags = changed_flags(texts, _flags(entry))
        assert flags is not None
        if not flags & MS_RDONLY and read_status(path).read_only:
            raise MountError(f"{target} was mounted read-only: unmount it, and mount it again")
    except CommandError as error:
        raise MountError(f"{target}: {error}") from None
    try:
        mount(entry.source, path, b"", MS_REMOUNT | flags, b"")
    except OSError as error:
        raise MountError(f"{target} cannot be remounted: {_why(error)}") from None


def _flags(entry: MountEntry) -> int:
    """The current MS_* bits of a mount, which a remount must keep, nosuid above all."""
    flags = 0
    for name in (*entry.options, *entry.filesystem_options.split(b",")):
        change = FLAG_CHANGES.get(name)
        flags |= 0 if change is None else change.set
    return flags


def _why(error: OSError) -> str:
    reasons = {errno.EBUSY: "files are open for writing", errno.EPERM: "only root can do that"}
    return reasons.get(error.errno or 0) or os.strerror(error.errno or 0)
