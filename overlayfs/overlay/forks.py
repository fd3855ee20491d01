"""Which layers do forks use, so that nobody may remove or change them?

A fork is a mount of its own. Its lowest layers are those that snapshots made of another mount, and are shared with it.
As long as it lives, however it ends, it holds a shared lock (flock(2)) on a file `overlayfs-forks` in the directory of
each such layer (the workdir for the upperdir, see history), and in both workdirs. Who removes or changes a layer holds
that lock alone.

A fork keeps its changes in overlayfs-snapshots/fork-X/upper, with the workdir beside it, of the workdir of the mount
that it was made from (that was no fork): on the same filesystem, and where the next mount removes what a killed one
left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from overlayfs._typing import Final

from ..tree import syscalls

DIRECTORY: Final = b"overlayfs-snapshots"
FILE: Final = b"overlayfs-forks"
PREFIX: Final = b"fork-"
WORK: Final = b"work"
_OPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_DIRECTORY: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def home_of(directory: bytes) -> bytes:
    """The workdir of the first mount, by the directory of the lowest layer that a fork uses."""
    above, name = os.path.split(directory)
    work, inside = os.path.split(above)
    return work if inside == DIRECTORY and name.isdigit() else directory


def let_share(directory: bytes) -> None:
    """Let forks use the layer in a directory."""
    os.close(os.open(os.path.join(directory, FILE), _OPEN | os.O_CREAT, 0o600))


def forbid(directory: bytes) -> None:
    """Let no fork use the layer in a directory any more, which this process holds alone."""
    from . import drafts  # as in `remove`

    with drafts.afterwards():
        os.unlink(os.path.join(directory, FILE))


def hold(directory: bytes) -> int:
    """A descriptor with the shared lock of a layer that forks were let share. FileNotFoundError where they were not, or
    where it is gone."""
    fd = os.open(os.path.join(directory, FILE), _OPEN)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        if not os.fstat(fd).st_nlink:  # it was removed meanwhile
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
    except OSError:
        os.close(fd)
        raise
    return fd


@contextmanager
def alone(directory: bytes, *, patience_s: float | None = 0) -> Iterator[bool]:
    """A block in which no fork uses the layer in a directory, nor begins to; False where one does. It begins once all
    have ended, or the patience has: None is for ever."""
    directory_fd = os.open(directory, _OPEN_DIRECTORY)
    try:
        fd = os.open(FILE, _OPEN | os.O_CREAT, 0o600, dir_fd=directory_fd)
    finally:
        os.close(directory_fd)
    try:
        if patience_s is None:
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield patience_s is None or _is_alone(fd, patience_s)
    finally:
        with suppress(OSError):  # what was done in the block is done
            os.close(fd)


def _is_alone(fd: int, patience_s: float = 0) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.01)


def is_used(dir_fd: int, name: bytes) -> bool:
    """Whether forks use what is in overlayfs-snapshots under a name, or in a workdir under `.`."""
    fd = _lock_file(dir_fd, name)
    if fd < 0:
        return False
    try:
        return not _is_alone(fd)
    finally:
        os.close(fd)


def remove(dir_fd: int, name: bytes) -> bool:
    """Remove what is there, unless forks use it; whether it is gone. No `stack` names it any more, so that who comes
    to share it now gives up by itself (see forking), and no file is needed that a full disk has no room for."""
    from . import drafts  # slow to import, and who only takes locks does without

    fd = _lock_file(dir_fd, name)
    try:
        if fd >= 0 and not _is_alone(fd):
            return False
        drafts.remove(dir_fd, name)
    finally:
        if fd >= 0:
            os.close(fd)
    return True


def _lock_file(dir_fd: int, name: bytes) -> int:
    """The file with the lock of what is in overlayfs-snapshots under a name; -1 where it has none."""
    path = os.path.join(name, WORK) if name.startswith(PREFIX) else name
    try:
        directory_fd = syscalls.open_beneath(dir_fd, path, _OPEN_DIRECTORY)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY:
            raise
        return -1
    try:
        return os.open(FILE, _OPEN, dir_fd=directory_fd)
    except FileNotFoundError:
        return -1
    finally:
        os.close(directory_fd)
