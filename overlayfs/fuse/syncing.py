"""How is something synced while others are served? In a worker thread, whoever took the request."""

from __future__ import annotations

import os

import trio

from ..overlay.engine import Overlay


async def sync_file(overlay: Overlay, inode: int, datasync: bool) -> None:
    """fsync(2) or fdatasync(2) of a file; once it failed, it stays failed."""
    pinned = overlay.pin_to_sync(inode, datasync)
    if pinned is None:
        return
    opened, call = pinned
    try:
        await trio.to_thread.run_sync(call, opened.fd)
    except OSError as error:
        overlay.note_sync(inode, opened, error)
        raise
    finally:
        opened.unpin()
    overlay.note_sync(inode, opened, None)


async def sync_directory(overlay: Overlay, inode: int) -> None:
    """fsync(2) of a directory."""
    fd = overlay.open_to_sync(inode)
    if fd is not None:
        try:
            await trio.to_thread.run_sync(os.fsync, fd)
        finally:
            os.close(fd)
