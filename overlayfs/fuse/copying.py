"""How are files copied up while others are served?

A file is copied up before the operation that needs the copy; other changes of the file wait for the copy-up. A worker
thread copies large files. The operation itself copies small files that are in memory; if only their fsync waits for a
disk, they are copied here.
"""

from __future__ import annotations

from overlayfs._typing import TYPE_CHECKING, Final

from ..overlay.copyup import Need
from ..overlay.copyup_file import CopyUp
from ..overlay.engine import Overlay
from .syncing import Syncs
from .tasks import in_thread

if TYPE_CHECKING:
    import trio

INLINE_BYTES: Final = 256 << 10  # below this a thread costs more than it frees


class CopyUps:
    """The copy-ups of one mount that may block. All run on the engine's thread, except the transfer of large files."""

    def __init__(self, overlay: Overlay, syncs: Syncs) -> None:
        self._overlay, self._syncs = overlay, syncs
        self._inline_bytes = INLINE_BYTES if overlay.writes_at_once else 0
        self._running: dict[int, trio.Event] = {}

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
        import trio  # slow, and a mount may do without: see `bare`

        done = self._running[inode] = trio.Event()
        try:
            work = self._overlay.begin_copy_up(inode, need, size)
            if work is not None:
                with work:
                    await self._transfer(work, to_copy)
                    work.publish()
        finally:
            del self._running[inode]
            done.set()

    async def _transfer(self, work: CopyUp, to_copy: int) -> None:
        if to_copy <= INLINE_BYTES and work.has_at_hand(to_copy):
            work.fill()
            if work.fd_to_sync is not None:
                await self._syncs.sync(work.fd_to_sync)
        else:
            await in_thread(work.transfer)
