"""Which daemon may use an upper and its workdir, and when does it release them for another mount?

Locks on both directories (flock(2), held as long as the descriptors) keep out a second writer. The daemon that holds
them listens on a socket in the workdir, which the kernel lets only the owner and root reach. A new mount asks there
where the present one is mounted. If neither process finds it in its mount table, the daemon only serves files that
stayed open at a lazy unmount, or a copy of the mount in another namespace: then the new mount asks it to release the
directories. The new mount believes the answer only if the kernel's mount tables agree, and goes on once it holds the
locks.

The protocol: the daemon sends its `Standing` as a line of JSON; the new mount sends `LET_GO`; the daemon closes the
connection once it has released the locks, or sends a line that says why it keeps them.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from overlayfs._log import Log
from overlayfs._typing import TYPE_CHECKING, Final, NamedTuple

from ..tree import deputies
from ..tree.mount_table import mount_entries
from ..tree.syscalls import descriptor_path
from .layer import Layer
from .options import MountError

if TYPE_CHECKING:
    import socket

log = Log(__name__)

SOCKET: Final = b"overlayfs-socket"
LET_GO: Final = b"let go\n"
_LONGEST_LINE: Final = 8192
_PATIENCE_S: Final = 3.0  # with whoever cannot be asked: a daemon that starts or ends just now, another program
_ANSWER_WITHIN_S: Final = 30.0
_TRUSTED_UIDS: Final = (0,)
_PEER: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Option(NamedTuple):
    """One of the two directories, under the name that its user knows."""

    name: str
    layer: Layer


class Standing(NamedTuple):
    """Where a daemon's mount stands: `device` is its MAJOR:MINOR, `mountpoint` a place in the daemon's own mount
    namespace, None where it has none there any more."""

    device: bytes
    mountpoint: bytes | None

    def to_line(self) -> bytes:
        import json  # slow, and few ask

        where = None if self.mountpoint is None else os.fsdecode(self.mountpoint)
        return json.dumps({"device": self.device.decode(), "mountpoint": where}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Standing:
        """Raises ValueError for anything else, KeyError and TypeError included."""
        import json

        try:
            members = json.loads(line)
            where = members["mountpoint"]
            return cls(os.fsencode(members["device"]), None if where is None else os.fsencode(where))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError("not a standing") from error


class Claim:
    """The locks of an upper and its workdir, which belong to the descriptors of the layers, and the socket."""

    def __init__(self, options: Sequence[Option]) -> None:
        self._options = options
        self._work_fd = options[-1].layer.root_fd
        self._waiting: list[socket.socket] = []
        self.listener: _socket.socket | None = None
        self.before_closing: Callable[[_socket.socket], object] = lambda _: None  # told of the listener

    def listen(self) -> None:
        """Listen for other mounts that want the directories. If the workdir can hold no socket, they are refused."""
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            with suppress(FileNotFoundError):
                os.unlink(SOCKET, dir_fd=self._work_fd)  # of a daemon that was killed
            os.fchmod(listener.fileno(), 0o600)  # before there is a file: bind gives it this mode
            listener.bind(_address(self._work_fd))
            listener.listen()
        except OSError as error:
            log.info("no socket in the workdir: %s", error)
            listener.close()
            return
        self.listener = listener

    def stop_listening(self) -> bool:
        """Do without the socket, so that others are refused; False where there is none."""
        if self.listener is None:
            return False
        with suppress(OSError):
            os.unlink(SOCKET, dir_fd=self._work_fd)
        self.before_closing(self.listener)
        self.listener.close()
        self.listener = None
        return True

    def accept(self) -> socket.socket:
        """The next connection with one of those. OSError where there is none yet."""
        import socket

        assert self.listener is not None
        with socket.socket(fileno=os.dup(self.listener.fileno())) as listener:
            return listener.accept()[0]

    def keep_waiting(self, connection: socket.socket) -> None:
        """Keep the connection of a peer that waits until the locks are released."""
        self._waiting.append(connection)

    def release(self) -> None:
        """Release the directories for other mounts, after the last write. May be called twice."""
        listener, self.listener = self.listener, None
        if listener is not None:
            with suppress(OSError):  # before the next owner of the locks makes its own
                os.unlink(SOCKET, dir_fd=self._work_fd)
        deputies.dismiss(*(layer.root_fd for _, layer in self._options))  # a deputy holds the locks too
        for _, layer in self._options:
            with suppress(OSError):
                fcntl.flock(layer.root_fd, fcntl.LOCK_UN)
        for held in (*self._waiting, *([listener] if listener else [])):  # a waiting peer tries the locks then
            held.close()
        self._options = ()
        self._waiting.clear()


def claim(upper: Layer, work: Layer, *, takes_over: bool = True) -> Claim:
    """Lock both directories; MountError where another mount has them.

    Without `takes_over` a daemon whose mount stands nowhere is left alone, too.
    """
    options = (Option("upperdir", upper), Option("workdir", work))
    deadline = time.monotonic() + _PATIENCE_S
    while (busy := _lock(options)) is not None:
        holder = _holder(work)
        if holder is not None:
            with holder:
                has_let_go = _ask(holder, busy, takes_over)
            deadline = time.monotonic() + _PATIENCE_S if has_let_go else deadline
        if time.monotonic() > deadline:
            raise MountError(f"{_said(busy)} is in use by another mount")
        time.sleep(0.02)
    return Claim(options)


def _said(option: Option) -> str:
    return f"{option.name}: {os.fsdecode(option.layer.path)}"


def _lock(options: Sequence[Option]) -> Option | None:
    """Lock all or none; the one that another has."""
    for position, option in enumerate(options):
        try:
            fcntl.flock(option.layer.root_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            for _, layer in options[:position]:
                fcntl.flock(layer.root_fd, fcntl.LOCK_UN)
            return option
    for _, layer in options:
        deputies.note_lock(layer.root_fd)
    return None


def _address(work_fd: int) -> bytes:
    """Short, however long the path of the workdir is: unix(7) has room for 108 bytes."""
    return os.fsencode(descriptor_path(work_fd)) + b"/" + SOCKET


def _holder(work: Layer) -> socket.socket | None:
    """A connection with the daemon that has the workdir; None where nobody listens."""
    try:
        found = os.stat(SOCKET, dir_fd=work.root_fd, follow_symlinks=False)
    except OSError:
        return None
    if not stat.S_ISSOCK(found.st_mode):
        return None
    import socket

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_ANSWER_WITHIN_S)
    try:
        connection.connect(_address(work.root_fd))
    except OSError:  # left behind by one that was killed
        connection.close()
        return None
    return connection


def _ask(holder: socket.socket, wanted: Option, takes_over: bool) -> bool:
    """True once the holder has let go, False where it ended by itself; MountError where it keeps what is wanted."""
    pid, uid, _gid = _PEER.unpack(holder.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _PEER.size))
    process = f"process {pid}" if pid else "a process of another pid namespace"
    if uid not in (*_TRUSTED_UIDS, os.geteuid()):  # it may say anything, or nothing for ever
        raise MountError(f"{_said(wanted)} is in use by {process} of the user {uid}")
    try:
        line = _line(holder)
        if not line:
            return False
        standing = Standing.from_line(line)
        _refuse_where_it_stands(standing, wanted, process)
        if not takes_over:
            raise MountError(f"{_said(wanted)} is in use by {process}, which serves what is open of a former mount")
        log.info("%s is asked to let go of %s", process, _said(wanted))
        holder.sendall(LET_GO)
        holder.settimeout(None)  # it writes back what the kernel has gathered, however much that is
        reason = _line(holder)
    except TimeoutError:
        raise MountError(f"{_said(wanted)} is in use by {process}, which does not answer") from None
    except ValueError:
        raise MountError(f"{_said(wanted)} is in use by {process}, which is of another version") from None
    except OSError:  # it ended
        return False
    if reason:
        raise MountError(f"{_said(wanted)} is in use by {process}: {reason.decode(errors='replace').strip()}")
    return True


def _refuse_where_it_stands(standing: Standing, wanted: Option, process: str) -> None:
    for entry in mount_entries():
        if entry.device == standing.device:
            raise MountError(f"{_said(wanted)} is in use by the mount at {os.fsdecode(entry.mountpoint)}")
    if standing.mountpoint is not None:
        where = os.fsdecode(standing.mountpoint)
        raise MountError(f"{_said(wanted)} is in use by the mount at {where} in the mount namespace of {process}")


def _line(connection: socket.socket) -> bytes:
    """One line; empty where the other end is closed."""
    received = b""
    deadline = time.monotonic() + _ANSWER_WITHIN_S
    limited = connection.gettimeout() is not None
    while not received.endswith(b"\n") and len(received) < _LONGEST_LINE:
        if limited:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        part = connection.recv(_LONGEST_LINE)
        if not part:
            return b""
        received += part
    return received
