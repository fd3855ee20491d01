"""How are files copied up while others are served?

A file is copied up before the operation that needs the copy; other changes of the file wait for the copy-up. A worker
thread copies large files: one of trio's or, before there is a loop (see `bare`), one that is started for the file. The
operation itself copies small files that are in memory; if only their fsync waits for a disk, they are copied here.
"""

from __future__ import annotations

import os
import signal
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable

from overlayfs._log import Log
from overlayfs._typing import TYPE_CHECKING, Final, NamedTuple

from ..overlay.copyup import Need
from ..overlay.copyup_file import CopyUp
from ..overlay.engine import Overlay
from .mounting import HANDLED_SIGNALS
from .syncing import Syncs
from .tasks import in_thread

if TYPE_CHECKING:
    import trio

log = Log(__name__)

INLINE_BYTES: Final = 256 << 10  # below this a thread costs more than it frees
_MOST_THREADS: Final = 4  # of those without a loop; that many copy-ups at once are worth one

Done = Callable[[Exception | None], None]


class _Running:
    """One copy-up that others wait for."""

    def __init__(self) -> None:
        self._over: trio.Event | None = None  # made when it is waited for: a copy-up may do without trio

    async def wait(self) -> None:
        import trio  # slow, and a mount may do without: see `bare`

        if self._over is None:
            self._over = trio.Event()
        await self._over.wait()

    def end(self) -> None:
        if self._over is not None:
            self._over.set()


class _Transferred(NamedTuple):
    """What a thread of `CopyUps.begin` leaves."""

    inode: int
    work: CopyUp
    failure: Exception | None
    done: Done


class CopyUps:
    """The copy-ups of one mount that may block. All run on the engine's thread, except the transfer of large files."""

    def __init__(self, overlay: Overlay, syncs: Syncs) -> None:
        self._overlay, self._syncs = overlay, syncs
        self._inline_bytes = INLINE_BYTES if overlay.writes_at_once else 0
        self._running: dict[int, _Running] = {}
        self._threads = 0  # of `begin`, whose copy-ups have not ended
        self._transferred: deque[_Transferred] = deque()  # filled by those threads
        self.event_fd: int | None = None  # readable when something is in there; None before the first of the threads

    @property
    def are_running(self) -> bool:
        return bool(self._running)

    def must_wait(self, inode: int, need: Need, size: int | None = None) -> bool:
        """True where an operation has to call `finish` first; never where `copyup.is_whole_in_upper` says so."""
        return inode in self._running or self._overlay.bytes_to_copy(inode, need, size) > self._inline_bytes

    async def finish(self, inode: int, need: Need, size: int | None = None) -> None:
        """Copy a file up; returns at once if nothing blocks."""
        while inode in self._running:
            await self._running[inode].wait()
        to_copy = self._overlay.bytes_to_copy(inode, need, size)
        if to_copy <= self._inline_bytes:
            return
        running = self._running[inode] = _Running()
        try:
            work = self._overlay.begin_copy_up(inode, need, size)
            if work is not None:
                with work:
                    await self._transfer(work, to_copy)
                    work.publish()
        finally:
            del self._running[inode]
            running.end()

    async def _transfer(self, work: CopyUp, to_copy: int) -> None:
        if to_copy <= INLINE_BYTES and work.has_at_hand(to_copy):
            work.fill()
            if work.fd_to_sync is not None:
                await self._syncs.sync(work.fd_to_sync)
        else:
            await in_thread(work.transfer)

    # -- without a loop

    def begin(self, inode: int, need: Need, size: int | None, done: Done) -> bool:
        """Begin to copy a large file up in a thread. False where that is for `finish`.

        `done` is told on the engine's thread how the copy-up ended, maybe before this returns.
        """
        if inode in self._running or self._threads >= _MOST_THREADS:
            return False
        if self._overlay.bytes_to_copy(inode, need, size) <= INLINE_BYTES:
            return False
        try:
            if self.event_fd is None:
                self.event_fd = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError:  # there are too few descriptors
            return False
        try:
            work = self._overlay.begin_copy_up(inode, need, size)
            if work is not None:
                work.begin()
        except Exception as failure:  # noqa: BLE001 - whoever waits is answered
            done(failure)
            return True
        if work is None:
            done(None)
            return True
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)  # the thread must not take them
        try:
            start_new_thread(self._transfer_in_thread, (inode, work, done))
        except RuntimeError:  # there can be no more threads
            work.end()
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        self._threads += 1
        self._running[inode] = _Running()
        return True

    def _transfer_in_thread(self, inode: int, work: CopyUp, done: Done) -> None:
        failure = None
        try:
            work.transfer()
        except Exception as error:  # noqa: BLE001 - it is raised where the copy-up ends
            failure = error
        assert self.event_fd is not None
        self._transferred.append(_Transferred(inode, work, failure, done))
        os.eventfd_write(self.event_fd, 1)

    def take_transferred(self) -> None:
        """Publish what the threads have copied; waits where nothing is."""
        assert self.event_fd is not None
        for _ in range(os.eventfd_read(self.event_fd)):  # no more: a thread may be about to write for its own
            self._end(self._transferred.popleft())

    def _end(self, transferred: _Transferred) -> None:
        inode, work, failure, done = transferred
        try:
            if failure is None:
                work.publish()
        except Exception as error:  # noqa: BLE001 - whoever waits is answered
            failure = error
        finally:
            work.end()
            self._threads -= 1
            self._running.pop(inode).end()
        try:
            done(failure)
        except Exception:
            log.exception("the end of a copy-up could not be reported")

    async def serve(self) -> None:
        """The trio loop has started, which begins no more of these: publish those that are left."""
        import trio

        with trio.CancelScope(shield=True):  # as trio's own threads, which are awaited too
            while self._threads and self.event_fd is not None:
                await trio.lowlevel.wait_readable(self.event_fd)
                self.take_transferred()

    def finish_all(self) -> None:
        """Wait for the threads, and publish what they have copied: the upper is about to be given up."""
        while self._threads:
            self.take_transferred()

    def close(self) -> None:
        """Nothing runs any more."""
        if self.event_fd is not None:
            os.close(self.event_fd)
