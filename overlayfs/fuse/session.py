"""How does a mount live as a process: mount, serve until unmounted, in the foreground or as a daemon?

Imports what serves only when it is needed: a refusal must not wait for it.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..overlay.options import MountError, OverlayOptions
from . import mounting
from .mounting import MountOptions

__all__ = ["MountOptions", "serve_in_background", "serve_in_foreground"]

log = logging.getLogger(__name__)

_LIVE: Final = b"\0"


def serve_in_foreground(
    options: OverlayOptions,
    mount: MountOptions,
    on_live: Callable[[], None] | None = None,
    lifeline_fd: int | None = None,
) -> None:
    """Mount and serve until unmounted or told to end (SIGTERM, SIGINT, SIGHUP, or end of file on `lifeline_fd`).

    Raises MountError while the mount is not live; `on_live` is called when it is.
    """
    from ..overlay.engine import Overlay

    os.umask(0)  # modes are what the engine says
    mounting.check_mountpoint(mount.mountpoint)
    overlay = Overlay.open(options)
    try:
        overlay.refuse_mountpoint(mount.mountpoint)
        fd = mounting.mount(mount)
        from .serving import serve

        serve(overlay, mount, fd, on_live or _do_nothing, lifeline_fd)
    finally:
        overlay.close()


def _do_nothing() -> None:
    pass


# -- daemon


def serve_in_background(options: OverlayOptions, mount: MountOptions) -> None:
    """Mount and serve in a daemon that holds none of the caller's descriptors; returns once the mount is live.

    The daemon's MountError is raised here.
    """
    read_fd, write_fd = os.pipe()
    if os.fork():
        os.close(write_fd)
        _await_daemon(read_fd)
        return
    status = 1
    try:
        os.setsid()
        if os.fork():  # the daemon itself must not be a session leader, lest it gets a terminal
            os._exit(0)
        _run_daemon(options, mount, write_fd)
        status = 0
    finally:
        os._exit(status)


def _await_daemon(read_fd: int) -> None:
    os.wait()
    with os.fdopen(read_fd, "rb") as pipe:
        message = pipe.read()
    if message != _LIVE:
        raise MountError(os.fsdecode(message) or "the daemon died while it was starting")


def _run_daemon(options: OverlayOptions, mount: MountOptions, status_fd: int) -> None:
    status_fd = _leave_everything(status_fd)
    set_up_logging(mount.debug)

    def on_live() -> None:
        os.write(status_fd, _LIVE)
        os.close(status_fd)

    try:
        serve_in_foreground(options, mount, on_live)
    except MountError as error:
        with suppress(OSError):
            os.write(status_fd, os.fsencode(str(error)))
    except Exception as error:
        log.exception("the daemon ends")
        with suppress(OSError):  # before it was live, the caller is told
            os.write(status_fd, os.fsencode(f"cannot serve: {error}"))
        raise


def _leave_everything(status_fd: int) -> int:
    """Keep only the status pipe of the caller's descriptors, and no directory busy."""
    if status_fd != 3:
        os.dup2(status_fd, 3, inheritable=False)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    os.chdir("/")
    return 3


def set_up_logging(debug: bool) -> None:
    """To the file that OVERLAYFS_LOG names, else to the system's log, else to standard error."""
    level = logging.DEBUG if debug else logging.INFO
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    path = os.environ.get("OVERLAYFS_LOG")
    if path:
        handler = logging.FileHandler(path)
    elif os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log")
    handler.setFormatter(logging.Formatter("%(asctime)s overlayfs[%(process)d] %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)
