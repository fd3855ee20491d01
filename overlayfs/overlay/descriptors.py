# cython: language_level=3, annotation_typing=False
"""Which descriptors of files and directories does the mount keep open, and which are given up when there are too few?

Belongs to the thread that owns the `State`. Compiled; C types are in descriptors.pxd.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Container

from overlayfs._log import Log
from overlayfs._typing import TypeVar

from ..tree import access, syscalls
from .layer import Location

log = Log(__name__)

_DIRECTORY_DESCRIPTORS = 512
_FILE_DESCRIPTORS = 1024
_FEWEST = 8  # of each
_DROPPED = -1  # in the place of an inode number, and below it
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_Result = TypeVar("_Result")


def close_quietly(fd: int) -> None:
    """close(2), which lets the descriptor go even where it fails: filesystems on a network, and those of FUSE, tell so
    of data that they could not write. What closes it is something else, and has happened or is to go on."""
    try:
        os.close(fd)
    except OSError as error:
        log.warning("a descriptor was closed with an error: %s", error)


class OpenFile:
    """A descriptor of a file. One of the pool is closed when it was evicted and is no longer pinned; a `with` block
    pins it and gives the descriptor.

    `may_wait` is False where it is known that reading waits for no disk. `stale` says that it closes with its last pin.
    """

    def __init__(self, fd: int, writable: bool = False, stale: bool = False) -> None:
        self.fd = fd
        self.writable = writable
        self.may_wait = True
        self.pins = 0
        self.stale = stale

    def __enter__(self) -> int:
        self.pins += 1
        return self.fd

    def __exit__(self, *exc: object) -> None:
        self.unpin()

    def retire(self) -> None:
        """No longer of the pool."""
        self.stale = True
        if not self.pins:
            close_quietly(self.fd)

    def unpin(self) -> None:
        self.pins -= 1
        if self.stale and not self.pins:
            close_quietly(self.fd)


def unpooled(fd: int) -> OpenFile:
    """A descriptor that closes at the end of a `with` block."""
    return OpenFile(fd, stale=True)


def borrowed(fd: int) -> OpenFile:
    """A descriptor that somebody else closes."""
    return OpenFile(fd)


class HeldDirectory:
    """A descriptor of a directory, the operation that used it last, and whether it was used since it might have been
    evicted."""

    def __init__(self, fd: int, operation: int) -> None:
        self.fd = fd
        self.operation = operation
        self.used = False


class Descriptors:
    """Bounded pools of directory and file descriptors. Of the files the least recently used is evicted first; of the
    directories the oldest that was not used again (clock algorithm).

    A directory descriptor is good until the end of the operation that asked for it (`begin` starts the next). A file
    descriptor that must outlive the current operation is pinned.
    """

    def __init__(self, limit: int) -> None:
        self._directory_limit = max(_FEWEST, min(_DIRECTORY_DESCRIPTORS, limit // 4))
        self._file_limit = max(_FEWEST, min(_FILE_DESCRIPTORS, limit // 4))
        self._directories: dict[object, HeldDirectory] = {}
        self._files: dict[int, OpenFile] = {}
        self.operation = 0  # the number of the one that goes on
        self.last_resort: Callable[[], bool] = lambda: False  # closes what can be done without; False: nothing is left

    def __len__(self) -> int:
        return len(self._directories) + len(self._files)

    def begin(self) -> None:
        """A new operation starts: directory descriptors handed out before may be closed from now on."""
        self.operation += 1

    # -- directories

    def cached_directory(self, key: object) -> int:
        """The descriptor of a directory, -1 where the pool has none."""
        found = self._directories.get(key)
        if found is None:
            return -1
        found.operation = self.operation
        found.used = True
        return found.fd

    def open_directory(self, key: object, start_fd: int, path: bytes) -> int:
        """Open the directory `path` beneath another one; the pool keeps it."""
        fd = self.open_beneath(start_fd, path)
        if len(self._directories) >= self._directory_limit:
            self._evict_directory()
        self._directories[key] = HeldDirectory(fd, self.operation)
        return fd

    def drop_directory(self, key: object) -> None:
        found = self._directories.pop(key, None)
        if found is not None:
            close_quietly(found.fd)

    def _evict_directory(self) -> bool:
        """Close one that is not in use; False where all are."""
        for key in list(self._directories):
            found = self._directories[key]
            if found.operation == self.operation:
                continue
            del self._directories[key]
            if not found.used:
                close_quietly(found.fd)
                return True
            found.used = False
            self._directories[key] = found  # once more round
        return self._evict_oldest_directory()

    def _evict_oldest_directory(self) -> bool:
        for key, found in self._directories.items():
            if found.operation != self.operation:
                del self._directories[key]
                close_quietly(found.fd)
                return True
        return False

    # -- files

    def file(self, number: int) -> OpenFile | None:
        found = self._files.pop(number, None)
        if found is not None:
            self._files[number] = found
        return found

    def add_file(self, number: int, fd: int, writable: bool) -> OpenFile:
        """The pool keeps it from now on."""
        self.drop_file(number)
        if len(self._files) >= self._file_limit:
            self._evict_file()
        opened = self._files[number] = OpenFile(fd, writable)
        return opened

    def drop_file(self, number: int) -> None:
        opened = self._files.pop(number, None)
        if opened is not None:
            opened.retire()

    def _evict_file(self) -> bool:
        for number, opened in self._files.items():
            if not opened.pins:
                del self._files[number]
                opened.retire()
                return True
        return False

    # -- opening where there may be too few

    def open_at(self, dir_fd: int, name: bytes, flags: int, mode: int = 0o777, quietly: bool = False) -> int:
        """As `access.open_at`, giving up pooled descriptors where there are too few."""
        while True:
            try:
                return access.open_at(dir_fd, name, flags, mode, quietly=quietly)
            except OSError as error:
                if not self.may_try_again(error):
                    raise

    def open_beneath(self, root_fd: int, path: bytes) -> int:
        """A descriptor (O_PATH) of a directory, opened as by `access.open_beneath`."""
        while True:
            try:
                return access.open_beneath(root_fd, path, syscalls.OPEN_DIRECTORY)
            except OSError as error:
                if not self.may_try_again(error):
                    raise

    def reopen(self, fd: int, flags: int, quietly: bool = False) -> int:
        """As `access.reopen`."""
        while True:
            try:
                return access.reopen(fd, flags, quietly=quietly)
            except OSError as error:
                if not self.may_try_again(error):
                    raise

    def open(self, opener: Callable[[], _Result]) -> _Result:
        """As `open_at`, for any function that opens descriptors."""
        while True:
            try:
                return opener()
            except OSError as error:
                if not self.may_try_again(error):
                    raise

    def may_try_again(self, error: OSError) -> bool:
        """Whether there was no descriptor left, and some were given up now."""
        return error.errno in _OUT_OF_DESCRIPTORS and self._make_room()

    def _make_room(self) -> bool:
        """Close half of what may be closed: the limit was lowered, or somebody else uses it up. False: nothing may."""
        closed = 0
        for _ in range((len(self._files) + 1) // 2):
            closed += self._evict_file()
        for _ in range((len(self._directories) + 1) // 2):
            closed += self._evict_directory()
        return closed > 0 or self.last_resort()

    # -- when the upper becomes another layer

    def freeze(self, unnamed: Container[int]) -> None:
        """The upper is read-only from now on. Its files go on being read by their descriptors, and those that have no
        name any more are written, too; its directories are opened anew."""
        for number, opened in self._files.items():
            opened.writable = opened.writable and number in unnamed
        for key in [key for key in self._directories if isinstance(key, int)]:
            self.drop_directory(key)

    def drop(self, unchanged: Container[int]) -> None:
        """No file of the pool is that of an inode any more, and of the directories only those of layers that have not
        changed. The files are evicted before all others, at the latest by `close_dropped`: closing a thousand of them
        takes longer than all else that a rollback does while requests wait."""
        self.close_dropped()
        files, directories = self._files, self._directories
        self._files, self._directories = {}, {}
        for opened in files.values():
            if opened.pins:
                opened.stale = True
            else:
                self._files[_DROPPED - len(self._files)] = opened
        unused = []
        for key, found in directories.items():
            if isinstance(key, Location) and key.layer in unchanged:
                self._directories[key] = found
            else:
                unused.append(found.fd)
        _close_all(unused)

    def close_dropped(self) -> None:
        """Close the files that `drop` has left, before their layer is removed. Nobody uses them."""
        numbers = [number for number in self._files if number <= _DROPPED]
        _close_all([self._files.pop(number).fd for number in numbers])

    def close(self) -> None:
        """Empty the pools."""
        files, directories = self._files, self._directories
        self._files, self._directories = {}, {}
        unused = [opened.fd for opened in files.values() if not opened.pins]
        for opened in files.values():
            opened.stale = True
        unused += [found.fd for found in directories.values()]
        _close_all(unused)


def _close_all(descriptors: list[int]) -> None:
    failed = syscalls.close_all(descriptors)  # there may be more than a thousand
    if failed:
        log.warning("a descriptor was closed with an error: %s", os.strerror(failed))
