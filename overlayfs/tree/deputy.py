"""How does an unprivileged daemon make system calls on its user's own files that the permission bits deny?

Through a deputy: a child in a user namespace of its own, in which the user's uid and primary gid are mapped to
themselves. There it has CAP_DAC_OVERRIDE over files that have both (user_namespaces(7); the kernel's
privileged_wrt_inode_uidgid), and over nobody else's. It makes one system call at a time, for its parent alone, and
hands opened descriptors back (SCM_RIGHTS): the parent's own credentials stay as they are, and no permission bits change
on disk, so that a crash leaves nothing to restore.

The child is forked and not executed: a program on disk may lie below the very mount that the parent serves. One
deputy serves all threads, one after the other. Neighbour: access, which decides when a deputy is asked.
"""

from __future__ import annotations

import _socket
import array
import errno
import gc
import marshal
import os
import signal
from _thread import allocate_lock
from collections.abc import Callable
from contextlib import closing, suppress

from overlayfs._typing import Any, Final, NamedTuple

from . import syscalls
from .syscalls import descriptor_path

_MOST_BYTES: Final = 160 << 10  # of a message: an xattr of 64 KiB, or two paths
_MOST_DESCRIPTORS: Final = 2
_PATIENCE_S: Final = 10.0
_INT_SIZE: Final = array.array("i").itemsize


class Opened(NamedTuple):
    """An answer of the deputy that is a descriptor."""

    fd: int


def _open(dir_fd: int, path: bytes, flags: int, mode: int) -> Opened:
    return Opened(os.open(path, flags, mode, dir_fd=dir_fd))


def _reopen(fd: int, flags: int) -> Opened:
    return Opened(os.open(descriptor_path(fd), flags))


def _open_beneath(dir_fd: int, path: bytes, flags: int) -> Opened:
    return Opened(syscalls.open_beneath(dir_fd, path, flags))


def _unlink(dir_fd: int, name: bytes) -> None:
    os.unlink(name, dir_fd=dir_fd)


def _rmdir(dir_fd: int, name: bytes) -> None:
    os.rmdir(name, dir_fd=dir_fd)


def _mknod(dir_fd: int, name: bytes, mode: int, device: int) -> None:
    os.mknod(name, mode, device, dir_fd=dir_fd)


def _link(src_dir_fd: int, dst_dir_fd: int, src: bytes, dst: bytes) -> None:
    os.link(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=False)


def _rename(src_dir_fd: int, dst_dir_fd: int, src: bytes, dst: bytes, flags: int) -> None:
    syscalls.renameat2(src_dir_fd, src, dst_dir_fd, dst, flags)


def _getxattr(fd: int, name: bytes) -> bytes:
    return os.getxattr(descriptor_path(fd), name)


def _setxattr(fd: int, name: bytes, value: bytes, flags: int) -> None:
    os.setxattr(descriptor_path(fd), name, value, flags)


def _removexattr(fd: int, name: bytes) -> None:
    os.removexattr(descriptor_path(fd), name)


# What a deputy does, by name; the descriptors of a request are the first arguments.
CALLS: Final[dict[str, Callable[..., object]]] = {
    "open": _open,
    "reopen": _reopen,
    "open_beneath": _open_beneath,
    "unlink": _unlink,
    "rmdir": _rmdir,
    "mknod": _mknod,
    "link": _link,
    "link_descriptor": syscalls.link_descriptor,
    "rename": _rename,
    "getxattr": _getxattr,
    "setxattr": _setxattr,
    "removexattr": _removexattr,
}


# -- messages: a marshalled tuple, with descriptors beside it


def _send(channel: _socket.socket, message: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
    beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([marshal.dumps(message)], beside)


def _receive(channel: _socket.socket) -> tuple[tuple[Any, ...], list[int]] | None:
    """The next message, None where the other end is gone. EMFILE where there is no room for its descriptors."""
    room = _socket.CMSG_SPACE(_MOST_DESCRIPTORS * _INT_SIZE)
    data, beside, flags, _ = channel.recvmsg(_MOST_BYTES, room, _socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for _level, _kind, content in beside:
        fds.frombytes(content[: len(content) - len(content) % _INT_SIZE])
    if flags & _socket.MSG_CTRUNC:
        _close(fds.tolist())
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return (marshal.loads(data), fds.tolist()) if data else None


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


# -- in the child


def _serve(channel: _socket.socket) -> None:
    """Answer until the parent is gone: an errno or 0, and what the call returned."""
    while True:
        try:
            request = _receive(channel)
        except OSError as error:
            _send(channel, (error.errno, None))
            continue
        if request is None:
            return
        (call, arguments), fds = request
        try:
            _answer(channel, CALLS[call](*fds, *arguments))
        except OSError as error:
            _send(channel, (error.errno or errno.EIO, None))
        finally:
            _close(fds)


def _answer(channel: _socket.socket, result: object) -> None:
    if not isinstance(result, Opened):
        _send(channel, (0, result))
        return
    try:
        _send(channel, (0, None), (result.fd,))
    finally:
        os.close(result.fd)


def _become_deputy(channel: _socket.socket, locked: frozenset[int]) -> None:
    """Keep nothing of the parent, whose /dev/fuse must close when it ends, but the socket and the locks: nobody else
    may have them before what is under way here has ended."""
    gc.disable()  # what the parent's objects would close has other numbers here
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # it ends with its parent, which may need it until then
    for fd in set(map(int, os.listdir("/proc/self/fd"))) - locked - {channel.fileno()}:
        with suppress(OSError):  # that of the listing is closed
            os.close(fd)
    os.chdir("/")
    _enter_namespace()


def _enter_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    syscalls.let_be_inspected()  # or /proc/self/uid_map would be root's
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    # user_namespaces(7): without privileges groups can only be mapped once setgroups(2) is given up
    _write(b"/proc/self/setgroups", b"deny")
    _write(b"/proc/self/uid_map", b"%d %d 1" % (uid, uid))
    _write(b"/proc/self/gid_map", b"%d %d 1" % (gid, gid))


def _write(path: bytes, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def _run(channel: _socket.socket, locked: frozenset[int]) -> None:
    """The whole life of the child; never returns."""
    try:
        _become_deputy(channel, locked)
        _send(channel, (0, os.getpid()))
        _serve(channel)
    except OSError as error:  # the deputy could not be set up, or the parent is gone
        with suppress(OSError):
            _send(channel, (error.errno or errno.EIO, None))
    finally:
        with suppress(OSError):
            _close(list(locked))  # before the socket, whose end the parent may wait for
        os._exit(0)


# -- in the parent


class GoneError(Exception):
    """The deputy ended before it was asked: nothing was done."""


class Deputy:
    """The parent's end. `locked` are the descriptors with the locks that its work is done under.

    Raises OSError if no child with more privileges than this process can be started.
    """

    def __init__(self, locked: frozenset[int] = frozenset()) -> None:
        self.identity = identity()
        self._lock = allocate_lock()
        self._channel, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            with closing(theirs):
                _fork_twice(theirs, locked)
            self._channel.settimeout(_PATIENCE_S)
            self.pid = int(_result(_receive(self._channel)))
            self._channel.settimeout(None)
        except BaseException:
            self._channel.close()
            raise

    def ask(self, call: str, fds: tuple[int, ...], *arguments: object) -> object:
        """Have the deputy make one of CALLS; the caller owns a descriptor that this returns.

        Raises the OSError of the call; GoneError if the deputy could not be asked; EIO if the deputy ended during the
        call, which may or may not have been done.
        """
        with self._lock:
            if not self.is_ours:
                raise GoneError
            try:
                _send(self._channel, (call, arguments), fds)
            except (BrokenPipeError, ConnectionResetError):
                self._channel.close()
                raise GoneError from None
            try:
                answer = _receive(self._channel)
            except ConnectionResetError:
                answer = None
            if answer is None:
                self._channel.close()
        return _result(answer)

    @property
    def is_ours(self) -> bool:
        """False where it is gone, or acts for another process or user than this one is now."""
        return self._channel.fileno() >= 0 and self.identity == identity()

    def close(self) -> None:
        """Let the child go, and wait until it has let go of the locks."""
        if not self.is_ours:
            self._channel.close()
            return
        with self._lock, closing(self._channel), suppress(OSError):
            self._channel.settimeout(_PATIENCE_S)
            self._channel.shutdown(_socket.SHUT_WR)
            self._channel.recv(1)


def _result(answer: tuple[tuple[Any, ...], list[int]] | None) -> Any:
    if answer is None:
        raise OSError(errno.EIO, "the process that acts for the mount in its user namespace is gone")
    (code, value), fds = answer
    if code:
        raise OSError(code, os.strerror(code))
    return fds[0] if fds else value


def identity() -> tuple[int, int, int]:
    """Whom a deputy acts for: a forked child must not share the socket, and a namespace belongs to one user."""
    return os.getpid(), os.geteuid(), os.getegid()


def _fork_twice(theirs: _socket.socket, locked: frozenset[int]) -> None:
    """Fork twice, so the deputy is an orphan that init or a subreaper reaps."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: the child needs nothing of theirs
        child = os.fork()
    if child:
        with suppress(ChildProcessError):
            os.waitpid(child, 0)
        return
    try:
        if not os.fork():
            _run(theirs, locked)
    finally:
        os._exit(0)
