"""The client of a mounted tree: plain system calls below a mountpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from . import libc
from .client import Client, Credentials, Entry, Stat


def stat_of(result: os.stat_result) -> Stat:
    """The fields of `Stat`."""
    return Stat(
        result.st_ino,
        result.st_mode,
        result.st_nlink,
        result.st_uid,
        result.st_gid,
        result.st_rdev,
        result.st_size,
        result.st_blocks,
        result.st_atime_ns,
        result.st_mtime_ns,
        result.st_ctime_ns,
    )


@contextmanager
def acting_as(caller: Credentials) -> Iterator[None]:
    """Effective ids and umask of `caller`: without capabilities when the uid is not root's."""
    umask = os.umask(caller.umask)
    try:
        if caller.uid or caller.gid:
            with _ids_of(caller):
                yield
        else:
            yield
    finally:
        os.umask(umask)


@contextmanager
def _ids_of(caller: Credentials) -> Iterator[None]:
    groups = os.getgroups()
    try:
        os.setgroups([])
        os.setegid(caller.gid)
        os.seteuid(caller.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


class PosixClient(Client):
    """Calls the kernel; all descriptors belong to the client until `close` or `finish`."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.caller = Credentials()
        self._files: dict[str, int] = {}
        self._pending: dict[str, list[Entry]] = {}

    @contextmanager
    def _at(self, path: str) -> Iterator[bytes]:
        with libc.short_path(self.root, os.fsencode(path)) as place, acting_as(self.caller):
            yield place

    def stat(self, path: str) -> Stat:
        with self._at(path) as place:
            return stat_of(os.lstat(place))

    def readlink(self, path: str) -> bytes:
        with self._at(path) as place:
            return os.readlink(place)

    def entries(self, path: str) -> list[Entry]:
        with self._at(path) as place:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found: list[Entry] = []
            while records := libc.read_directory(fd):
                found += [Entry(record.name, record.ino, record.offset) for record in records]
            return found
        finally:
            os.close(fd)

    def content(self, path: str) -> bytes:
        with self._at(path) as place:
            fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
        with open(fd, "rb") as stream:
            return stream.read()

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        with self._at(path) as place:
            os.mkdir(place, mode)

    def rmdir(self, path: str) -> None:
        with self._at(path) as place:
            os.rmdir(place)

    def unlink(self, path: str) -> None:
        with self._at(path) as place:
            os.unlink(place)

    def symlink(self, target: str, path: str) -> None:
        with self._at(path) as place:
            os.symlink(os.fsencode(target), place)

    def link(self, old: str, new: str) -> None:
        with self._at(old) as source, self._at(new) as place:
            os.link(source, place, follow_symlinks=False)

    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        with self._at(path) as place:
            os.mknod(place, mode, rdev)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        with self._at(old) as source, self._at(new) as place:
            libc.rename(source, place, flags)

    def chmod(self, path: str, mode: int) -> None:
        with self._at(path) as place:
            os.chmod(place, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        with self._at(path) as place:
            os.lchown(place, uid, gid)

    def utime(self, path: str, atime: int, mtime: int) -> None:
        with self._at(path) as place:
            os.utime(place, ns=(atime, mtime), follow_symlinks=False)

    def truncate(self, path: str, size: int) -> None:
        with self._at(path) as place:
            os.truncate(place, size)

    def getxattr(self, path: str, name: str) -> bytes:
        with self._at(path) as place:
            return os.getxattr(place, name, follow_symlinks=False)

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        with self._at(path) as place:
            os.setxattr(place, name, value, flags, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        with self._at(path) as place:
            os.removexattr(place, name, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        with self._at(path) as place:
            return os.listxattr(place, follow_symlinks=False)

    def touch(self, path: str) -> None:
        with self._at(path) as place:
            os.utime(place)

    def flags(self, path: str) -> str:
        with self._at(path) as place:
            return libc.flags(place)

    def set_flags(self, path: str, letters: str) -> None:
        with self._at(path) as place:
            libc.set_flags(place, letters)

    def longest_name(self) -> int:
        return os.statvfs(self.root).f_namemax

    def open(self, key: str, path: str, flags: int, mode: int = 0o644) -> None:
        with self._at(path) as place:
            self._files[key] = os.open(place, flags | os.O_NOFOLLOW, mode)

    def tmpfile(self, key: str, path: str, mode: int) -> None:
        with self._at(path) as place:
            self._files[key] = os.open(place, os.O_TMPFILE | os.O_RDWR, mode)

    def linkfd(self, key: str, path: str) -> None:
        with self._at(path) as place:
            libc.link_descriptor(self._files[key], place)

    def close(self, key: str) -> None:
        self._pending.pop(key, None)
        os.close(self._files.pop(key))

    def pread(self, key: str, size: int, offset: int) -> bytes:
        return os.pread(self._files[key], size, offset)

    def pwrite(self, key: str, data: bytes, offset: int) -> int:
        with acting_as(self.caller):
            return os.pwrite(self._files[key], data, offset)

    def append(self, key: str, data: bytes) -> int:
        with acting_as(self.caller):
            return os.write(self._files[key], data)

    def fstat(self, key: str) -> Stat:
        return stat_of(os.fstat(self._files[key]))

    def ftruncate(self, key: str, size: int) -> None:
        with acting_as(self.caller):
            os.ftruncate(self._files[key], size)

    def fsync(self, key: str) -> None:
        os.fsync(self._files[key])

    def opendir(self, key: str, path: str) -> None:
        self.open(key, path, os.O_RDONLY | os.O_DIRECTORY)
        self._pending[key] = []

    def readdir(self, key: str, count: int) -> list[Entry]:
        """The next entries, at most `count`; the kernel is asked for few at a time."""
        pending = self._pending[key]
        while len(pending) < count and (records := libc.read_directory(self._files[key], 320)):
            pending += [Entry(record.name, record.ino, record.offset) for record in records]
        taken, self._pending[key] = pending[:count], pending[count:]
        return taken

    def seekdir(self, key: str, offset: int) -> None:
        self._pending[key] = []
        os.lseek(self._files[key], offset, os.SEEK_SET)

    def finish(self) -> None:
        for key in list(self._files):
            self.close(key)
