"""The changes of a live mount, as its layers on disk tell them: for `diff` and `commit`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from overlayfs.cli.mounts.live import CommandError, Status, in_time, is_ours, mount_at, read_status
from overlayfs.cli.output import printable
from overlayfs.image.store.staging import sync_all
from overlayfs.overlay.changes import Comparison

SYNC_WITHIN_S: Final = 60.0


def writable_status(mountpoint: bytes) -> Status:
    """What the daemon says; CommandError if the mount has no upper."""
    status = read_status(mountpoint)
    if status.upper is None:
        raise CommandError(f"{printable(mountpoint)}: mounted without an upper, so there are no changes")
    return status


def compare_mount(mountpoint: bytes, status: Status, since: str | None, until: str | None) -> Comparison:
    """The changes of all that the mount has written, or those after one snapshot, or up to another; the caller closes
    the result. MountError for a snapshot that is not there."""
    assert status.upper is not None
    write_back(mountpoint)
    return Comparison.open(
        status.upper,
        status.lowers,
        status.data_lowers,
        status.work,
        prefix=status.xattr_prefix,
        since=since,
        until=until,
    )


def write_back(mountpoint: bytes) -> None:
    """Make the kernel write its dirty pages to the daemon, as the upper lags behind them; nothing if no overlayfs is
    mounted there."""
    entry = mount_at(mountpoint) if mountpoint else None
    if entry is not None and is_ours(entry):
        in_time(lambda: sync_all(Path(os.fsdecode(mountpoint))), SYNC_WITHIN_S)
