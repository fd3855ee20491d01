"""How does a command mount without waiting for the engine to load? A child, forked before the command line is parsed,
loads it meanwhile on another processor; the command then gives it the mount to serve.

`fork` is how a process that serves a mount is made: from that child if there is one, else by fork(2).
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence

from overlayfs._typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..tree.syscalls import CLONE_NEWNS, setns

if TYPE_CHECKING:
    import socket  # slow to import: the mount program does without

_PACKET_BYTES: Final = 1 << 18  # 500 layers with long names are less
_PATIENCE_S: Final = 5.0
"""The child waits no longer for its work, as a command may run for days without any."""


class _Loader(NamedTuple):
    """The child, as its parent knows it."""

    pid: int
    requests: socket.socket
    user_namespace: int


_loader: _Loader | None = None


def load() -> None:
    """Start the child, if one can be forked; it ends with this process, unless it has work then."""
    global _loader  # noqa: PLW0603 - a process has one
    import socket

    try:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:
        return
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        its.close()
        return
    if pid:
        its.close()
        _loader = _Loader(pid, ours, _namespace("user"))
        os.register_at_fork(after_in_child=_forget)
        return
    status = 1
    try:
        _leave_command(its.fileno())
        load_engine()
        _do_next(its)
        status = 0
    finally:
        os._exit(status)


def _forget() -> None:
    """The loader is no child of the processes that this one forks, which may close its socket by number."""
    global _loader
    loader, _loader = _loader, None
    if loader is not None:
        loader.requests.close()


def load_engine() -> None:
    """Import what serving a mount takes."""
    from ..overlay import engine  # noqa: F401
    from . import serving  # noqa: F401


def fork(work: Callable[..., None], *arguments: Any, descriptors: Sequence[int]) -> int:
    """Call `work(*arguments, *descriptors)` in a child, and end it; its process id.

    The child has a session of its own and inherits no other descriptors but the standard streams, which may lead
    nowhere. `work` is a function of a module; it and its arguments can be pickled.
    """
    pid = _give_to_loader(work, arguments, descriptors)
    if pid is None:
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        _close_others(descriptors)
        work(*arguments, *descriptors)
        status = 0
    finally:
        os._exit(status)


def _close_others(descriptors: Sequence[int]) -> None:
    first = 3
    for fd in (*sorted(descriptors), os.sysconf("SC_OPEN_MAX")):
        os.closerange(first, fd)
        first = fd + 1


def _give_to_loader(work: Callable[..., None], arguments: tuple[Any, ...], descriptors: Sequence[int]) -> int | None:
    """The process id of the child that does the work; None if there is none, or if it is in another user namespace."""
    global _loader
    loader, _loader = _loader, None
    if loader is None:
        return None
    import pickle
    import socket

    opened: list[int] = []
    try:
        if loader.user_namespace != _namespace("user"):
            return None
        opened += [os.open("/proc/self/ns/mnt", os.O_RDONLY)]
        opened += [os.open(path, os.O_PATH) for path in ("/", ".")]
        packet = pickle.dumps((work, arguments))
        socket.send_fds(loader.requests, [packet], [*descriptors, *opened])
    except OSError:  # it has given up waiting, the packet is too big, or there is no /proc
        return None
    else:
        return loader.pid
    finally:
        for fd in opened:
            os.close(fd)
        loader.requests.close()


# -- in the child


def _leave_command(kept: int) -> None:
    """Neither Ctrl-C, nor the descriptors and the working directory of the command are for the child."""
    os.setsid()
    os.chdir("/")
    _close_others((kept,))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)


def _do_next(requests: socket.socket) -> None:
    """Do the work that comes; none comes if the command ends, or lets the child wait for too long."""
    import pickle
    import socket

    poller = select.poll()
    poller.register(requests, select.POLLIN)
    if not poller.poll(_PATIENCE_S * 1000):
        requests.shutdown(socket.SHUT_RD)  # what has been sent can be read still
    packet, descriptors, _, _ = socket.recv_fds(requests, _PACKET_BYTES, 16, socket.MSG_CMSG_CLOEXEC)
    requests.close()
    if not packet:
        return
    work, arguments = pickle.loads(packet)
    *given, namespace, root, directory = descriptors
    if os.fstat(namespace).st_ino != _namespace("mnt"):
        setns(namespace, CLONE_NEWNS)
        os.fchdir(root)
        os.chroot(".")  # setns(2) has left the root that the command may have been given
    os.fchdir(directory)
    for fd in (namespace, root, directory):
        os.close(fd)
    work(*arguments, *given)


def _namespace(kind: str) -> int:
    """What tells a namespace of this process from others; 0 without /proc."""
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except FileNotFoundError:
        return 0
