"""How are large files copied up while others are served?

In a worker thread, before the operation that needs the copy; whatever else changes the file waits for it. Small files
are copied by the operation itself where that waits for no disk.
"""

from __future__ import annotations

from typing import Final

import trio

from ..overlay.copyup import Need
from ..overlay.engine import Overlay

INLINE_BYTES: Final = 256 << 10  # below this a thread costs more than it frees


class CopyUps:
    """The long copy-ups of one mount; all on the thread of the engine but for the transfer of data."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._inline_bytes = INLINE_BYTES if overlay.writes_at_once else 0
        self._running: dict[int, trio.Event] = {}

    def must_wait(self, inode: int, need: Need, size: int | None = None) -> bool:
        """True where an operation has to call `finish` first."""
        return inode in self._running or self._overlay.bytes_to_copy(inode, need, size) > self._inline_bytes

    async def finish(self, inode: int, need: Need, size: int | None = None) -> None:
        """Have a large file copied up; returns at once where there is nothing to wait for."""
        while inode in self._running:
            await self._running[inode].wait()
        if self._overlay.bytes_to_copy(inode, need, size) <= self._inline_bytes:
            return
        done = self._running[inode] = trio.Event()
        try:
            work = self._overlay.begin_copy_up(inode, need, size)
            if work is not None:
                with work:
                    await trio.to_thread.run_sync(work.transfer)
                    work.publish()
        finally:
            del self._running[inode]
            done.set()
