"""How does a mount run: mount, serve until unmounted, in the foreground or as a daemon?

pyfuse3 serves the kernel's descriptor. Only the INIT handshake passes through our hands, because the reply needs
flags that pyfuse3 has no setting for; it is exchanged over a socket pair, one end of which then becomes the kernel's
descriptor itself (libfuse takes `/dev/fd/N` for a mountpoint).
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final

from ..overlay.options import MountError, OverlayOptions
from . import abi, mounting
from .mounting import MountOptions

__all__ = ["MountOptions", "serve_in_background", "serve_in_foreground"]

log = logging.getLogger(__name__)

_LIVE: Final = b"\0"
# The kernel then clears suid bits and capabilities by SETATTR and REMOVEXATTR, knowing the caller's capabilities;
# truncates by SETATTR; and leaves the umask to us, who know the default ACL.
_CLEARED_FLAGS: Final = abi.FUSE_HANDLE_KILLPRIV | abi.FUSE_ATOMIC_O_TRUNC
_ADDED_FLAGS: Final = abi.FUSE_DONT_MASK | abi.FUSE_CACHE_SYMLINKS


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
        _serve(overlay, mount, mounting.mount(mount), on_live or _do_nothing, lifeline_fd)
    finally:
        overlay.close()


def _do_nothing() -> None:
    pass


def _serve(overlay: object, mount: MountOptions, fd: int, on_live: Callable[[], None], lifeline_fd: int | None) -> None:
    import pyfuse3
    import trio

    from ..overlay.engine import Overlay
    from .handlers import Handlers

    assert isinstance(overlay, Overlay)
    device = ExitStack()
    device.callback(os.close, fd)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, buffer, 1 << 16)
    unmounted = False
    try:
        ours.send(os.read(fd, abi.LONGEST_REQUEST))
        pyfuse3.init(Handlers(overlay, mount.source), f"/dev/fd/{theirs.fileno()}", set())
        try:
            unmounted = trio.run(_run, fd, device, ours, theirs.fileno(), on_live, lifeline_fd)
        finally:
            pyfuse3.close(unmount=False)
    finally:
        if not unmounted:
            mounting.unmount(mount.mountpoint)
        device.close()
        ours.close()
        theirs.detach()  # closed by libfuse with its session


async def _run(
    fd: int,
    device: ExitStack,
    ours: socket.socket,
    session_fd: int,
    on_live: Callable[[], None],
    lifeline_fd: int | None,
) -> bool:
    """Serve; True when the kernel ended the session, so nothing is left to unmount."""
    import pyfuse3
    import trio

    await _shake_hands(fd, ours)
    os.dup2(fd, session_fd, inheritable=False)
    device.close()  # two descriptors would keep the connection alive after the session's end
    on_live()
    ended = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        if lifeline_fd is not None:
            nursery.start_soon(_end_with_parent, lifeline_fd, nursery.cancel_scope)
        await pyfuse3.main()
        ended = True
        nursery.cancel_scope.cancel()
    return ended


async def _shake_hands(fd: int, ours: socket.socket) -> None:
    """Let pyfuse3 answer INIT, and pass its answer on with our flags."""
    import pyfuse3
    import trio

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        await trio.lowlevel.wait_readable(ours)
        nursery.cancel_scope.cancel()
    reply = ours.recv(abi.LONGEST_REQUEST)
    os.write(fd, abi.edit_init_reply(reply, _CLEARED_FLAGS, _ADDED_FLAGS))


async def _end_on_signal(scope: object) -> None:
    import trio

    assert isinstance(scope, trio.CancelScope)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            log.info("ending on %s", signal.Signals(number).name)
            scope.cancel()
            return


async def _end_with_parent(lifeline_fd: int, scope: object) -> None:
    import trio

    assert isinstance(scope, trio.CancelScope)
    while True:
        await trio.lowlevel.wait_readable(lifeline_fd)
        if not os.read(lifeline_fd, 4096):
            scope.cancel()
            return


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
