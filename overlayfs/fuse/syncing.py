"""How is something synced while others are served?

By threads of the kernel where it has some for that, else by one of ours. As with reads, the lane waits a moment for a
fast disk: waking a sleeping processor for the answer can take longer than the sync.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from ..overlay.engine import Overlay
from ..tree.syscalls import SyncQueue
from .patience import Patience

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.05

Note = Callable[[BaseException | None], None]


class Sync(NamedTuple):
    """One fsync of a descriptor that is held for it; `note` is to be told how it ended, on the engine's thread."""

    fd: int
    data_only: bool
    note: Note

    def run(self) -> None:
        """In any thread."""
        (os.fdatasync if self.data_only else os.fsync)(self.fd)


def sync_of_file(overlay: Overlay, inode: int, datasync: bool) -> Sync | None:
    """fsync(2) or fdatasync(2) of a file, which stays failed once it failed; None where nothing can be dirty."""
    pinned = overlay.pin_to_sync(inode, datasync)
    if pinned is None:
        return None
    opened, data_only = pinned

    def note(failure: BaseException | None) -> None:
        try:
            overlay.note_sync(inode, opened, failure)
        finally:
            opened.unpin()

    return Sync(opened.fd, data_only, note)


def sync_of_directory(overlay: Overlay, inode: int) -> Sync | None:
    """fsync(2) of a directory; None where nothing can be dirty."""
    fd = overlay.open_to_sync(inode)
    return None if fd is None else Sync(fd, False, lambda _: os.close(fd))


async def wait_for(sync: Sync | None) -> None:
    """Have it done in a thread; raises what it raises."""
    if sync is None:
        return
    try:
        await trio.to_thread.run_sync(sync.run)
    except BaseException as failure:
        sync.note(failure)
        raise
    sync.note(None)


class Syncs:
    """The syncs that the kernel's threads do for one lane; `answer` is told how each ended: its errno, or 0."""

    def __init__(self, patience: Patience, answer: Callable[[int, int], None]) -> None:
        self._patience = patience
        self._answer = answer
        self._queue: Final = SyncQueue()
        self._waiting: dict[int, Sync] = {}

    def begin(self, unique: int, sync: Sync) -> None:
        """Begin the sync that a request asks for, and wait a moment for its end. OSError where it cannot begin."""
        self._queue.submit(sync.fd, sync.data_only, unique)
        self._waiting[unique] = sync
        if self._patience.is_left():
            self._end(self._patience.longest_ns)
            self._patience.note(in_time=unique not in self._waiting)

    def _end(self, wait_ns: int = 0) -> bool:
        """Answer those that have ended; False where that cannot be told now."""
        try:
            ended = self._queue.ended(wait_ns)
        except OSError as error:
            log.error("cannot ask which syncs have ended yet: %s", error)
            return False
        for unique, code in ended:
            try:
                self._waiting.pop(unique).note(OSError(code, os.strerror(code)) if code else None)
            except Exception:
                log.exception("what was synced cannot be noted")
            self._answer(unique, code)
        return True

    async def serve(self) -> None:
        """Answer what takes longer, for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._queue.event_fd)
            if not self._end():
                await trio.sleep(_RETRY_S)

    def close(self) -> None:
        """Waits for what is under way."""
        self._queue.close()
