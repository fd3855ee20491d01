"""How does a command mount an overlay for as long as it runs?

A child process serves the mount, with the engine that it may have loaded ahead. It ends with its parent, however that
ends, as the kernel closes the lifeline pipe. It is for a parent with one thread; `overlayfs.mount` is for others.
"""

from __future__ import annotations

import os
import signal
from typing import Final, Self

from overlayfs.fuse import ahead, mounting
from overlayfs.fuse.session import MountOptions, serve_for_parent
from overlayfs.overlay.options import MountError, OverlayOptions

_LIVE: Final = b"\0"


class ChildMount:
    """A live mount; a context manager that unmounts and waits for the child."""

    def __init__(self, options: OverlayOptions, mount: MountOptions) -> None:
        """Raises MountError."""
        answer_fd, told_fd = os.pipe()
        lifeline_fd, self._lifeline_fd = os.pipe()
        self.pid = ahead.fork(_serve, options, mount, descriptors=(lifeline_fd, told_fd))
        os.close(told_fd)
        os.close(lifeline_fd)
        with os.fdopen(answer_fd, "rb") as answer:
            said = answer.read()
        if said != _LIVE:
            self.end()
            raise MountError(os.fsdecode(said) or "the serving process died while it was starting")
        self._mountpoint = mount.mountpoint
        self._number = mounting.mount_number(mount.mountpoint)

    def end(self) -> None:
        """Unmount, even if busy. All written data is in the upper when this returns."""
        if self._lifeline_fd < 0:
            return
        os.close(self._lifeline_fd)
        self._lifeline_fd = -1
        os.waitpid(self.pid, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        mounting.unmount(self._mountpoint, self._number)  # if the child was killed


def _serve(options: OverlayOptions, mount: MountOptions, lifeline_fd: int, told_fd: int) -> None:
    def tell(what: bytes) -> None:
        os.write(told_fd, what)
        os.close(told_fd)

    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _let_go_of_terminal()
        serve_for_parent(options, mount, lambda: tell(_LIVE), lifeline_fd)
    except (MountError, OSError) as error:
        tell(os.fsencode(str(error)))


def _let_go_of_terminal() -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)
