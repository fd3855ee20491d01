"""Where are files and directories built before they are published, and how are trees removed?

In the `tmp` of the store. A process that stages something holds the store's lock shared, so everything in `tmp` under
the exclusive lock was left by a crash.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..._log import Log
from ...tree.syscalls import sync_filesystem

_log = Log(__name__)
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MORE_ROUNDS: Final = 20
PARTIAL: Final = "partial-"
"""The prefix of the names of downloads that another process may continue; they stay until `prune`."""


class Staging:
    """Hands out unused names in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def new_name(self) -> Path:
        """A path that does not exist and is given to no other caller."""
        return self.directory / f"{os.getpid()}-{os.urandom(8).hex()}"

    @contextmanager
    def new_directory(self) -> Iterator[Path]:
        """A new directory, 0700; it is removed at the end of the context if it is still there."""
        path = self.new_name()
        path.mkdir(0o700)
        try:
            yield path
        finally:
            remove_tree(path)

    def remove_whole(self, paths: Collection[Path]) -> int:
        """Remove published trees; the bytes that they occupied. A crash leaves each one whole, or without its name."""
        moved = {path: self.new_name() for path in paths}
        for path, away in moved.items():
            path.rename(away)
        for directory in {path.parent for path in paths}:
            sync_directory(directory)  # otherwise a name might come back after its files have gone
        return remove_leftovers(moved.values())


def remove_leftovers(paths: Iterable[Path]) -> int:
    """Remove what nobody needs; the bytes that it occupied. What cannot be removed holds nothing up: it is logged, and
    what is in `tmp` is left to the next `prune`."""
    freed = 0
    for path in paths:
        try:
            freed += remove_tree(path)
        except OSError as error:
            _log.warning("%s cannot be removed: %s", path, error)
    return freed


def write_synced(path: Path, data: bytes) -> None:
    """Make a file whose content a crash leaves whole, wherever the file is moved after this. FileExistsError."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Sync the directory: names made and removed in it survive a crash."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_all(directory: Path) -> None:
    """Sync the file system that the directory is on: a whole tree survives a crash."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_filesystem(fd)
    finally:
        os.close(fd)


def occupied(path: Path) -> int:
    """The bytes that `remove_tree` would free, however deep the tree is."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return found.st_blocks * 512
    size, seen = 0, set[tuple[int, int]]()
    fd = os.open(path, _OPEN_DIRECTORY)
    try:
        pending = [os.listdir(fd)]  # of each directory on the way down
        while pending:
            if not pending[-1]:
                pending.pop()
                fd = _moved(fd, "..") if pending else fd
                continue
            name = pending[-1].pop()
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                fd = _moved(fd, name)
                pending.append(os.listdir(fd))
            elif (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                size += found.st_blocks * 512
    finally:
        os.close(fd)
    return size


def _moved(fd: int, name: str) -> int:
    """Open the subdirectory `name` and close the descriptor of its parent."""
    there = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
    os.close(fd)
    return there


def remove_tree(path: Path) -> int:
    """Remove a file or a directory tree, however deep, even where modes forbid it; the bytes that it occupied.

    Does nothing if there is nothing. Symlinks are removed, not followed.
    """
    try:
        fd = os.open(path, _OPEN_DIRECTORY)
    except FileNotFoundError:
        return 0
    except OSError as error:
        if error.errno == errno.EACCES and stat.S_ISDIR(path.lstat().st_mode):
            path.chmod(0o700)
            return remove_tree(path)
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        size = path.lstat().st_blocks * 512
        path.unlink()
        return size
    try:
        return _removed(path, fd)
    finally:
        os.close(fd)


def _removed(path: Path, fd: int) -> int:
    """Remove a directory, even while somebody adds and removes files: a runtime that ends. The bytes it occupied."""
    removal = _Removal(fd)
    for is_last in (*(False,) * _MORE_ROUNDS, True):
        try:
            removal.run()
            path.rmdir()
        except OSError as error:
            if is_last or error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
        else:
            break
    return removal.size


class _Removal:
    """Empties one directory.

    Directories within directories are moved up into it first, so that depth costs neither descriptors nor stack.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._count = 0
        self._seen: set[tuple[int, int]] = set()
        self.size = 0

    def run(self) -> int:
        os.fchmod(self._top, 0o700)
        while names := os.listdir(self._top):
            for name in names:
                if not self._unlink(self._top, name):
                    self._take_apart(name)
        return self.size

    def _unlink(self, directory: int, name: str) -> bool:
        """Unlink `name`; False for a directory."""
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            return False
        if (found.st_dev, found.st_ino) not in self._seen:
            self.size += found.st_blocks * 512
        if found.st_nlink > 1:
            self._seen.add((found.st_dev, found.st_ino))
        os.unlink(name, dir_fd=directory)
        return True

    def _take_apart(self, name: str) -> None:
        """Remove a directory of the top after its subdirectories were moved up into the top."""
        os.chmod(name, 0o700, dir_fd=self._top)
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=self._top)
        try:
            for inner in os.listdir(fd):
                if not self._unlink(fd, inner):
                    os.chmod(inner, 0o700, dir_fd=fd)  # a directory must be writable to be moved, as its `..` changes
                    os.rename(inner, self._new_name(), src_dir_fd=fd, dst_dir_fd=self._top)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=self._top)

    def _new_name(self) -> str:
        self._count += 1
        return f".removed-{os.getpid()}-{self._count}-{os.urandom(8).hex()}"
