"""How does a mount live as a process: mount, serve until unmounted, in the foreground, as a daemon, for a parent?

Imports the serving modules only after mounting, so a refusal is reported sooner.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from overlayfs import _log
from overlayfs._typing import Final

from ..overlay.options import MountError, OverlayOptions
from . import ahead, mounting
from .mounting import MountOptions

__all__ = ["MountOptions", "serve_for_parent", "serve_in_background", "serve_in_foreground"]

log = _log.Log(__name__)

_LIVE: Final = b"\0"  # then the daemon's process id


def serve_in_foreground(
    options: OverlayOptions, mount: MountOptions, on_live: Callable[[], None] | None = None
) -> None:
    """Mount and serve until unmounted or told to end by SIGTERM, SIGINT or SIGHUP; what is logged goes to the terminal.

    Raises MountError while the mount is not live; `on_live` is called when it is.
    """
    _set_up_log(_log_file(), to_terminal=True, debug=mount.debug)
    _serve(options, mount, on_live or _do_nothing)


def _do_nothing() -> None:
    pass


def serve_for_parent(
    options: OverlayOptions, mount: MountOptions, on_live: Callable[[], None], lifeline_fd: int
) -> None:
    """As in the foreground, but logging as a daemon does; end of file on `lifeline_fd` ends it too."""
    _set_up_log(_log_file(), to_terminal=False, debug=mount.debug)
    _serve(options, mount, on_live, lifeline_fd)


def _serve(
    options: OverlayOptions, mount: MountOptions, on_live: Callable[[], None], lifeline_fd: int | None = None
) -> None:
    from ..overlay.engine import Overlay

    log.debug("%r", mount)
    log.debug("%r", options)
    os.umask(0)  # modes are what the engine says
    mounting.check_mountpoint(mount.mountpoint)
    overlay = Overlay.open(options)
    try:
        overlay.refuse_mountpoint(mount.mountpoint)
        if overlay.claim is not None:
            overlay.claim.listen()
        gc.disable()  # until `serve`: what is imported is no garbage, and looking takes a tenth of the time
        from .serving import serve

        if mounting.covers_code(mount.mountpoint):
            import json  # noqa: F401 - what is imported late otherwise cannot be read through our own mount

            from ..overlay import dropping  # noqa: F401 - and with it what other commands take
            from . import looping  # noqa: F401

        # until `serve` takes them: one that killed us now would leave a dead mount
        signal.pthread_sigmask(signal.SIG_BLOCK, mounting.HANDLED_SIGNALS)
        with mounting.mount(mount) as live:
            serve(overlay, mount, live, on_live, lifeline_fd)
    finally:
        overlay.close()


# -- daemon


def serve_in_background(options: OverlayOptions, mount: MountOptions) -> int:
    """Mount and serve in a daemon that holds none of the caller's descriptors; its process id once the mount is live.

    The daemon's MountError is raised here.
    """
    log_file = _log_file()
    read_fd, write_fd = os.pipe()
    pid = ahead.fork(_leave_daemon, options, mount, log_file, descriptors=(write_fd,))
    os.close(write_fd)
    os.waitpid(pid, 0)
    return _await_daemon(read_fd)


def _leave_daemon(options: OverlayOptions, mount: MountOptions, log_file: str | None, status_fd: int) -> None:
    if os.fork() == 0:  # the daemon itself must not be a session leader, lest it gets a terminal
        _run_daemon(options, mount, log_file, status_fd)


def _await_daemon(read_fd: int) -> int:
    with os.fdopen(read_fd, "rb") as pipe:
        message = pipe.read()
    if not message.startswith(_LIVE):
        raise MountError(os.fsdecode(message) or "the daemon died while it was starting")
    return int(message.removeprefix(_LIVE))


def _run_daemon(options: OverlayOptions, mount: MountOptions, log_file: str | None, status_fd: int) -> None:
    status_fd = _leave_everything(status_fd)

    def on_live() -> None:
        os.write(status_fd, _LIVE + b"%d" % os.getpid())
        os.close(status_fd)

    try:
        _set_up_log(log_file, to_terminal=False, debug=mount.debug)
        _serve(options, mount, on_live)
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


# -- log


def _log_file() -> str | None:
    """The file that OVERLAYFS_LOG names, absolute: a daemon leaves its working directory."""
    path = os.environ.get("OVERLAYFS_LOG")
    return os.path.abspath(path) if path else None


def _set_up_log(file: str | None, *, to_terminal: bool, debug: bool = False) -> None:
    """To that file, else to the system's log, else to standard error: there only warnings, unless the terminal is to
    show what is done."""
    level = _log.DEBUG if debug else _log.INFO
    if file is not None:
        _log_to_file(file, level)
        return
    if not to_terminal and os.path.exists("/dev/log"):
        with suppress(OSError):  # nobody listens
            _log.to_system_log(level)
            return
    _log.to_terminal(_log.DEBUG if to_terminal and debug else _log.WARNING)


def _log_to_file(file: str, level: int) -> None:
    try:
        _log.to_file(file, level)
    except OSError as error:
        raise MountError(f"OVERLAYFS_LOG: {file}: {error.strerror}") from None
