"""How is something synced while others are served?

fsync requests are submitted to the kernel's AIO (io_submit(2)) where available, else to a worker thread. As for reads,
the lane waits briefly for a fast disk: waking a sleeping processor for the completion can take longer than the sync.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from overlayfs._log import Log
from overlayfs._typing import Final, NamedTuple

from ..overlay.engine import Overlay
from ..tree.syscalls import SyncQueue
from .patience import Patience
from .tasks import Tasks, in_thread

log = Log(__name__)

_RETRY_S: Final = 0.05


class Sync(NamedTuple):
    """One fsync of a descriptor that is held for it; `note` is to be told how it ended, and may know of a failure."""

    fd: int
    data_only: bool
    note: Callable[[OSError | None], None]


def sync_of_file(overlay: Overlay, inode: int, datasync: bool) -> Sync | None:
    """fsync(2) or fdatasync(2) of a file, which stays failed once it failed; None where nothing can be dirty."""
    pinned = overlay.pin_to_sync(inode, datasync)
    if pinned is None:
        return None
    opened, data_only = pinned

    def note(failure: OSError | None) -> None:
        try:
            overlay.note_sync(inode, opened, failure)
        finally:
            opened.unpin()

    return Sync(opened.fd, data_only, note)


def sync_of_directory(overlay: Overlay, inode: int) -> Sync | None:
    """fsync(2) of a directory; None where nothing can be dirty."""
    fd = overlay.open_to_sync(inode)
    return None if fd is None else Sync(fd, False, lambda _: os.close(fd))


class Syncs:
    """The syncs of one mount; all on the thread of the engine but for the syncing itself.

    `waits` says whether a fast disk is waited for; `queues` whether the kernel's threads are wanted: not where nothing
    is ever waited for.
    """

    def __init__(self, tasks: Tasks, *, waits: bool = True, queues: bool = True) -> None:
        self._tasks = tasks
        self._patience = Patience() if waits else Patience(0)
        self._waiting: dict[int, Callable[[OSError | None], None]] = {}
        self._count = 0
        self._queue = SyncQueue() if queues else None

    def begin(self, fd: int, data_only: bool, done: Callable[[OSError | None], None]) -> None:
        """Begin a sync. `done` is told on this thread how it ended, maybe before this returns."""
        self._count += 1
        token = self._count
        self._waiting[token] = done
        if not self._is_queued(fd, data_only, token):
            failure = OSError(errno.EIO, os.strerror(errno.EIO))
            self._tasks.begin(lambda: self._sync_in_thread(fd, data_only, token), lambda: self._end(token, failure))
        elif self._patience.is_left():
            self.take_ended(self._patience.longest_ns)
            self._patience.note(in_time=token not in self._waiting)

    def _is_queued(self, fd: int, data_only: bool, token: int) -> bool:
        """Submit the fsync to the kernel's AIO; False if there is none, or its queue is full."""
        if self._queue is None:
            return False
        try:
            self._queue.submit(fd, data_only, token)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                log.info("the kernel has no thread to sync a file, so one of ours does it: %s", error)
            return False
        return True

    async def wait(self, sync: Sync | None) -> None:
        """Have it done; raises what it raises."""
        if sync is not None:
            try:
                await self.sync(sync.fd, sync.data_only)
            except OSError as failure:
                sync.note(failure)
                raise
            sync.note(None)

    async def sync(self, fd: int, data_only: bool = False) -> None:
        """fsync(2) or fdatasync(2) of a descriptor."""
        import trio

        ended = trio.Event()
        failures: list[OSError | None] = []

        def done(failure: OSError | None) -> None:
            failures.append(failure)
            ended.set()

        self.begin(fd, data_only, done)
        await ended.wait()
        if failures[0] is not None:
            raise failures[0]

    @property
    def event_fd(self) -> int | None:
        """Readable when a sync has ended that took longer; None where none of the kernel's threads is used."""
        return None if self._queue is None else self._queue.event_fd

    async def serve(self) -> None:
        """Report AIO completions, for ever."""
        import trio

        while self._queue is not None:
            await trio.lowlevel.wait_readable(self._queue.event_fd)
            if not self.take_ended():
                await trio.sleep(_RETRY_S)

    def close(self) -> None:
        """Close the AIO context; waits for the syncs in progress."""
        if self._queue is not None:
            self._queue.close()

    def take_ended(self, wait_ns: int = 0) -> bool:
        """Report completed syncs; False if the completions cannot be read."""
        assert self._queue is not None
        try:
            ended = self._queue.ended(wait_ns)
        except OSError as error:
            log.error("cannot ask which syncs have ended yet: %s", error)
            return False
        for token, code in ended:
            self._end(token, OSError(code, os.strerror(code)) if code else None)
        return True

    async def _sync_in_thread(self, fd: int, data_only: bool, token: int) -> None:
        call = os.fdatasync if data_only else os.fsync
        failure = None
        try:
            try:
                await in_thread(call, fd)
            except RuntimeError:  # there can be no more threads, so everybody waits
                call(fd)
        except OSError as error:
            failure = error
        self._end(token, failure)

    def _end(self, token: int, failure: OSError | None) -> None:
        try:
            self._waiting.pop(token)(failure)
        except Exception:
            log.exception("the end of an fsync could not be reported")
