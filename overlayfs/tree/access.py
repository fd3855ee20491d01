"""How is a file of the user's own used, whatever its permission bits say?

The callers of a mount are checked by the kernel (default_permissions); what it lets through is to be done. A daemon of
root does it. An ordinary user's is refused on disk what root is not: to make a file's copy in a directory of mode
0555, or to read a file of mode 0200 that is to be copied up. Each function here is the system call of its name; where
that is refused with EACCES, a deputy makes it. Nothing is paid where it is not refused. Where no deputy can be had
(user namespaces are switched off), or where it is refused as well (the file is another user's, or has another group
than the user's primary one), the error stays EACCES.

Callable from any thread.
"""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from overlayfs._log import Log

from . import syscalls
from .deputy import Deputy, GoneError, identity
from .syscalls import OPEN_NODE, descriptor_path

log = Log(__name__)

_TRIES = 2
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
# Errors that say nothing of whether there may be a user namespace.
_PASSING = (errno.EAGAIN, errno.ENOMEM)
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _Deputies:
    """The one of this process. `refused` is who cannot have any, so that it is not tried again; `locked` are the
    descriptors with the locks of the writable layers."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._present: Deputy | None = None
        self._refused: tuple[int, int, int] | None = None
        self.locked: set[int] = set()

    def present(self) -> Deputy | None:
        with self._lock:
            if self._present is not None and not self._present.is_ours:
                self._forget()
            if self._present is None and self._refused != identity():
                self._start()
            return self._present

    def _start(self) -> None:
        try:
            self._present = Deputy(frozenset(self.locked))
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:  # whoever asks may make room for some
                raise
            if error.errno not in _PASSING:
                self._refused = identity()
            log.info("no user namespace to act in where permission bits are in the way: %s", error.strerror)

    def dismiss(self) -> None:
        with self._lock:
            self._forget()
            self._refused = None

    def _forget(self) -> None:
        if self._present is not None:
            self._present.close()
        self._present = None


_deputies = _Deputies()


def present() -> Deputy | None:
    """The deputy of this process, started where there is none; None where none can be had."""
    return _deputies.present()


def note_lock(fd: int) -> None:
    """The descriptor holds a lock that a deputy's work is done under, until `dismiss` is told of it. A deputy that is
    there already does not hold it, so the next call gets another one."""
    _deputies.dismiss()
    _deputies.locked.add(fd)


def dismiss(*locked: int) -> None:
    """Let the deputy go, and with it these locks; the next call that needs one starts another."""
    _deputies.locked.difference_update(locked)
    _deputies.dismiss()


def _by_deputy(error: PermissionError, call: str, fds: tuple[int, ...], *arguments: object) -> object:
    """The result of a system call that was refused to us; raises `error` where nobody can do it for us."""
    for _ in range(_TRIES if error.errno == errno.EACCES and os.geteuid() != 0 else 0):
        deputy = present()
        if deputy is None:
            break
        with suppress(GoneError):  # the next one is to be asked
            return deputy.ask(call, fds, *arguments)
    raise error


def _opened(answer: object) -> int:
    assert isinstance(answer, int)
    return answer


# -- opening and reading


# Reading `quietly` moves no access time where we may ask for that: of our own files, or with CAP_FOWNER. Where we may
# not, it moves as the mount says.


def open_at(dir_fd: int, name: bytes, flags: int, mode: int = 0o777, *, quietly: bool = False) -> int:
    """openat(2). The caller owns the descriptor."""
    if quietly:
        with suppress(PermissionError):
            return open_at(dir_fd, name, flags | os.O_NOATIME, mode)
    try:
        return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    except PermissionError as error:
        return _opened(_by_deputy(error, "open", (dir_fd,), name, flags | os.O_CLOEXEC, mode))


def reopen(fd: int, flags: int, *, quietly: bool = False) -> int:
    """Open what `fd` (O_PATH is enough) refers to once more. The caller owns the descriptor."""
    if quietly:
        with suppress(PermissionError):
            return reopen(fd, flags | os.O_NOATIME)
    try:
        return os.open(descriptor_path(fd), flags | os.O_CLOEXEC)
    except PermissionError as error:
        return _opened(_by_deputy(error, "reopen", (fd,), flags | os.O_CLOEXEC))


def open_directory(path: bytes) -> int:
    """Open a directory for reading, through symlinks. The caller owns the descriptor."""
    try:
        return os.open(path, _READ_DIRECTORY)
    except PermissionError:
        fd = os.open(path, _READ_DIRECTORY | os.O_PATH)  # it is only asked for once more where the way there is free
    try:
        return reopen(fd, _READ_DIRECTORY)
    finally:
        os.close(fd)


def open_beneath(root_fd: int, path: bytes, flags: int) -> int:
    """As `syscalls.open_beneath`."""
    try:
        return syscalls.open_beneath(root_fd, path, flags)
    except PermissionError as error:
        return _opened(_by_deputy(error, "open_beneath", (root_fd,), path, flags))


def stat_at(dir_fd: int, name: bytes) -> os.stat_result:
    """fstatat(2), never through a symlink."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except PermissionError as error:
        fd = _opened(_by_deputy(error, "open", (dir_fd,), name, OPEN_NODE, 0))
    try:  # a stat of the deputy's would show the ids of its namespace
        return os.fstat(fd)
    finally:
        os.close(fd)


@contextmanager
def node(dir_fd: int, name: bytes) -> Iterator[int]:
    """A descriptor of `name` itself (O_PATH) for the length of a `with` block."""
    fd = open_at(dir_fd, name, OPEN_NODE)
    try:
        yield fd
    finally:
        os.close(fd)


class Entry:
    """What os.DirEntry says, with a name in bytes, of a directory that is read through a descriptor."""

    __slots__ = ("_found", "name")

    def __init__(self, found: os.DirEntry[str]) -> None:
        self._found = found
        self.name = os.fsencode(found.name)

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        return self._found.is_dir(follow_symlinks=follow_symlinks)

    def is_file(self, *, follow_symlinks: bool) -> bool:
        return self._found.is_file(follow_symlinks=follow_symlinks)

    def is_symlink(self) -> bool:
        return self._found.is_symlink()


def scan(dir_fd: int, *, quietly: bool = False) -> AbstractContextManager[Iterator[os.DirEntry[bytes] | Entry]]:
    """The entries, in a `with` block, of a directory of which `dir_fd` (O_PATH) is a descriptor."""
    if quietly:
        return _scan_opened(reopen(dir_fd, _READ_DIRECTORY, quietly=True))
    try:
        return os.scandir(descriptor_path(dir_fd))
    except PermissionError as error:
        return _scan_opened(_opened(_by_deputy(error, "reopen", (dir_fd,), _READ_DIRECTORY)))


@contextmanager
def _scan_opened(fd: int) -> Iterator[Iterator[Entry]]:
    """The same of a readable descriptor, which this closes."""
    try:
        with os.scandir(fd) as found:
            yield map(Entry, found)
    finally:
        os.close(fd)


def list_names(dir_fd: int) -> list[bytes]:
    """The names in a directory of which `dir_fd` (O_PATH) is a descriptor."""
    with scan(dir_fd) as entries:
        return [entry.name for entry in entries]


# -- names


def unlink(dir_fd: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except PermissionError as error:
        _by_deputy(error, "unlink", (dir_fd,), name)


def rmdir(dir_fd: int, name: bytes) -> None:
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except PermissionError as error:
        _by_deputy(error, "rmdir", (dir_fd,), name)


def mknod(dir_fd: int, name: bytes, mode: int, device: int = 0) -> None:
    try:
        os.mknod(name, mode, device, dir_fd=dir_fd)
    except PermissionError as error:
        _by_deputy(error, "mknod", (dir_fd,), name, mode, device)


def link(src_dir_fd: int, src: bytes, dst_dir_fd: int, dst: bytes) -> None:
    """linkat(2), never through a symlink."""
    try:
        os.link(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=False)
    except PermissionError as error:
        _by_deputy(error, "link", (src_dir_fd, dst_dir_fd), src, dst)


def link_descriptor(fd: int, dst_dir_fd: int, dst: bytes) -> None:
    """As `syscalls.link_descriptor`."""
    try:
        syscalls.link_descriptor(fd, dst_dir_fd, dst)
    except PermissionError as error:
        _by_deputy(error, "link_descriptor", (fd, dst_dir_fd), dst)


def rename(src_dir_fd: int, src: bytes, dst_dir_fd: int, dst: bytes, flags: int = 0) -> None:
    """renameat2(2)."""
    try:
        if flags:
            syscalls.renameat2(src_dir_fd, src, dst_dir_fd, dst, flags)
        else:
            os.rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    except PermissionError as error:
        _by_deputy(error, "rename", (src_dir_fd, dst_dir_fd), src, dst, flags)


# -- extended attributes of what a descriptor (O_PATH is enough) refers to


def getxattr(fd: int, name: bytes) -> bytes:
    try:
        return os.getxattr(descriptor_path(fd), name)
    except PermissionError as error:
        value = _by_deputy(error, "getxattr", (fd,), name)
    assert isinstance(value, bytes)
    return value


def setxattr(fd: int, name: bytes, value: bytes, flags: int = 0) -> None:
    try:
        os.setxattr(descriptor_path(fd), name, value, flags)
    except PermissionError as error:
        _by_deputy(error, "setxattr", (fd,), name, bytes(value), flags)


def removexattr(fd: int, name: bytes) -> None:
    try:
        os.removexattr(descriptor_path(fd), name)
    except PermissionError as error:
        _by_deputy(error, "removexattr", (fd,), name)
