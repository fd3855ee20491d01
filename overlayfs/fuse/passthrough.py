"""Which opens does the kernel serve itself, from the file in the upper layer (FUSE passthrough, Linux 6.9)?

Only files that are already in the upper: a lower file can be copied up while it is open, and then its readers must see
the copy. The kernel requires all opens of an inode to use the same mode, so a file with an earlier normal open is
served by the daemon until that open is closed. Once a file was passed through to a writer, its attributes are asked for
whenever they are wanted: it is written without us, by a mapping even after it is closed.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable

from overlayfs._log import Log

from ..overlay.engine import Overlay
from . import abi

log = Log(__name__)


class _Opens:
    """How an inode is open now; `backing` is the kernel's id of the file that it is passed through to."""

    __slots__ = ("backing", "count")

    def __init__(self, backing: int) -> None:
        self.count = 0
        self.backing = backing


class Passthrough:
    """The opens of one mount. With `device_fd` None nothing is passed through, but opens are counted.

    `forget_attributes` has the kernel forget what it knows of an inode's.
    """

    def __init__(self, overlay: Overlay, device_fd: int | None, forget_attributes: Callable[[int], None]) -> None:
        self._overlay = overlay
        self._forget_attributes = forget_attributes
        self._device_fd = device_fd
        self._opens: dict[int, _Opens] = {}

    def opened(self, ino: int, *, writable: bool) -> int:
        """One more open; the id to pass it through to, 0 where we serve it."""
        opens = self._opens.get(ino)
        if opens is None:
            opens = self._opens[ino] = _Opens(self._register(ino))
        opens.count += 1
        if opens.backing and writable and ino not in self._overlay.written_unseen:
            self._overlay.note_written_unseen(ino)
            self._forget_attributes(ino)
        return opens.backing

    def closed(self, ino: int) -> None:
        """One open less."""
        opens = self._opens.get(ino)
        if opens is None:
            return
        opens.count -= 1
        if not opens.count:
            del self._opens[ino]
            if opens.backing:
                self._give_back(ino, opens.backing)

    def _register(self, ino: int) -> int:
        if self._device_fd is None:
            return 0
        try:
            opened = self._overlay.pass_through(ino)
        except OSError as error:  # it is open all the same, and we serve it
            log.debug("not passed through: %s", error)
            return 0
        if opened is None:
            return 0
        request = bytearray(abi.BACKING_MAP.pack(opened.fd, 0, 0))  # what ioctl returns for bytes is not the id
        try:
            return int(fcntl.ioctl(self._device_fd, abi.FUSE_DEV_IOC_BACKING_OPEN, request))
        except OSError as error:
            log.debug("not passed through: %s", error)
            self._overlay.end_passing_through(ino)
            return 0
        finally:
            opened.unpin()

    def _give_back(self, ino: int, backing: int) -> None:
        self._overlay.end_passing_through(ino)
        assert self._device_fd is not None
        try:
            fcntl.ioctl(self._device_fd, abi.FUSE_DEV_IOC_BACKING_CLOSE, backing.to_bytes(4, "little"))
        except OSError as error:
            log.debug("a backing file cannot be closed: %s", error)
