"""The client of an engine without a mount.

It walks paths as the kernel would, one lookup a component, and gives every lookup back, so that a
case also proves the accounting: when it ends, only the root may still be known.
"""

from __future__ import annotations

import errno
import os
import stat as stat_bits
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.values import AttributeChanges, Attributes, Caller
from overlayfs.tree.fileflags import GETFLAGS, SETFLAGS

from . import libc
from .client import Client, Credentials, Entry, Stat

ROOT = 1
_READ = 1 << 17


@dataclass
class _OpenFile:
    ino: int
    flags: int
    lookups: list[int]


@dataclass
class _OpenDirectory:
    handle: int
    offset: int
    lookups: list[int]


def _stat(found: Attributes) -> Stat:
    return Stat(
        found.ino,
        found.mode,
        found.nlink,
        found.uid,
        found.gid,
        found.rdev,
        found.size,
        found.blocks,
        found.atime_ns,
        found.mtime_ns,
        found.ctime_ns,
    )


class EngineClient(Client):
    """Addresses the engine by paths; single-threaded like the engine itself."""

    def __init__(self, overlay: Overlay) -> None:
        self.overlay = overlay
        self.caller = Credentials()
        self._files: dict[str, _OpenFile] = {}
        self._directories: dict[str, _OpenDirectory] = {}

    @property
    def _caller(self) -> Caller:
        return Caller(self.caller.uid, self.caller.gid, 0, self.caller.umask)

    @contextmanager
    def _inode(self, path: str) -> Iterator[int]:
        lookups = self._resolve(os.fsencode(path))
        try:
            yield lookups[-1] if lookups else ROOT
        finally:
            self._forget(lookups)

    @contextmanager
    def _name(self, path: str) -> Iterator[tuple[int, bytes]]:
        head, _, name = path.rpartition("/")
        with self._inode(head) as parent:
            yield parent, os.fsencode(name)

    def _resolve(self, path: bytes) -> list[int]:
        lookups: list[int] = []
        try:
            for name in path.split(b"/") if path else ():
                parent = lookups[-1] if lookups else ROOT
                lookups.append(self.overlay.lookup(parent, name).ino)
        except BaseException:
            self._forget(lookups)
            raise
        return lookups

    def _forget(self, lookups: list[int]) -> None:
        for ino in reversed(lookups):
            self.overlay.forget(ino, 1)

    def _exists(self, path: str) -> bool:
        try:
            with self._inode(path):
                return True
        except FileNotFoundError:
            return False

    def stat(self, path: str) -> Stat:
        with self._inode(path) as ino:
            return _stat(self.overlay.getattr(ino))

    def readlink(self, path: str) -> bytes:
        with self._inode(path) as ino:
            return self.overlay.readlink(ino)

    def entries(self, path: str) -> list[Entry]:
        with self._inode(path) as ino:
            handle = self.overlay.opendir(ino)
            try:
                return [
                    Entry(found.name, found.attributes.ino, found.offset) for found in self.overlay.readdir(handle, 0)
                ]
            finally:
                self.overlay.releasedir(handle)

    def content(self, path: str) -> bytes:
        with self._inode(path) as ino:
            self.overlay.open_file(ino, os.O_RDONLY)
            try:
                pieces: list[bytes] = []
                at = 0
                while piece := self.overlay.read(ino, at, _READ):
                    pieces.append(piece)
                    at += len(piece)
                return b"".join(pieces)
            finally:
                self.overlay.release(ino)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        with self._name(path) as (parent, name):
            self._forget([self.overlay.mkdir(parent, name, mode, self._caller).ino])

    def rmdir(self, path: str) -> None:
        with self._name(path) as (parent, name):
            self.overlay.rmdir(parent, name)

    def unlink(self, path: str) -> None:
        with self._name(path) as (parent, name):
            self.overlay.unlink(parent, name)

    def symlink(self, target: str, path: str) -> None:
        with self._name(path) as (parent, name):
            made = self.overlay.symlink(parent, name, os.fsencode(target), self._caller)
            self._forget([made.ino])

    def link(self, old: str, new: str) -> None:
        with self._inode(old) as ino, self._name(new) as (parent, name):
            self._forget([self.overlay.link(ino, parent, name).ino])

    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        with self._name(path) as (parent, name):
            self._forget([self.overlay.mknod(parent, name, mode, rdev, self._caller).ino])

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        # the kernel refuses these two itself, before any filesystem is asked
        if (new + "/").startswith(old + "/") and new != old:
            raise OSError(errno.EINVAL, "a directory cannot move into itself")
        if (old + "/").startswith(new + "/") and new != old:
            raise OSError(errno.EINVAL if flags == 2 else errno.ENOTEMPTY, "target holds the source")
        with self._name(old) as (parent, name), self._name(new) as (new_parent, new_name):
            self.overlay.rename(parent, name, new_parent, new_name, flags)

    def _change(self, path: str, changes: AttributeChanges) -> None:
        with self._inode(path) as ino:
            self.overlay.setattr(ino, changes, self._caller)

    def chmod(self, path: str, mode: int) -> None:
        self._change(path, AttributeChanges(mode=mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._change(path, AttributeChanges(uid=None if uid < 0 else uid, gid=None if gid < 0 else gid))

    def utime(self, path: str, atime: int, mtime: int) -> None:
        self._change(path, AttributeChanges(atime_ns=atime, mtime_ns=mtime))

    def truncate(self, path: str, size: int) -> None:
        self._change(path, AttributeChanges(size=size))

    def getxattr(self, path: str, name: str) -> bytes:
        with self._inode(path) as ino:
            return self.overlay.getxattr(ino, os.fsencode(name))

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        with self._inode(path) as ino:
            self.overlay.setxattr(ino, os.fsencode(name), value, flags, self._caller)

    def removexattr(self, path: str, name: str) -> None:
        with self._inode(path) as ino:
            self.overlay.removexattr(ino, os.fsencode(name))

    def listxattr(self, path: str) -> list[str]:
        with self._inode(path) as ino:
            return [os.fsdecode(name) for name in self.overlay.listxattr(ino)]

    def touch(self, path: str) -> None:
        now = time.time_ns()
        self._change(path, AttributeChanges(atime_ns=now, mtime_ns=now, by_writing=True))

    def flags(self, path: str) -> str:
        with self._inode(path) as ino:
            (bits,) = struct.unpack("I", self.overlay.file_flags(ino, GETFLAGS, bytes(4)))
        return "".join(letter for letter, bit in libc.FLAGS.items() if bits & bit)

    def set_flags(self, path: str, letters: str) -> None:
        bits = struct.pack("I", sum(libc.FLAGS[letter] for letter in letters))
        with self._inode(path) as ino:
            self.overlay.file_flags(ino, SETFLAGS, bits)

    def longest_name(self) -> int:
        return self.overlay.statfs().f_namemax

    def open(self, key: str, path: str, flags: int, mode: int = 0o644) -> None:
        if not self._exists(path) and flags & os.O_CREAT:
            self._create(key, path, flags, mode)
            return
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        lookups = self._resolve(os.fsencode(path))
        try:
            self._refuse_unopenable(lookups[-1], flags)
            self.overlay.open_file(lookups[-1], flags)
        except BaseException:
            self._forget(lookups)
            raise
        self._files[key] = _OpenFile(lookups[-1], flags, lookups)

    def _refuse_unopenable(self, ino: int, flags: int) -> None:
        """What may_open() of the kernel refuses before a filesystem hears of it."""
        mode = self.overlay.getattr(ino).mode
        if stat_bits.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "a symbolic link")
        if stat_bits.S_ISDIR(mode) and flags & (os.O_ACCMODE | os.O_CREAT):
            raise IsADirectoryError(errno.EISDIR, "a directory")

    def _create(self, key: str, path: str, flags: int, mode: int) -> None:
        head, _, name = path.rpartition("/")
        lookups = self._resolve(os.fsencode(head))
        try:
            parent = lookups[-1] if lookups else ROOT
            made = self.overlay.create(parent, os.fsencode(name), mode, flags, self._caller)
        except BaseException:
            self._forget(lookups)
            raise
        self._files[key] = _OpenFile(made.ino, flags, [*lookups, made.ino])

    def tmpfile(self, key: str, path: str, mode: int) -> None:
        lookups = self._resolve(os.fsencode(path))
        parent = lookups[-1] if lookups else ROOT
        try:
            made = self.overlay.tmpfile(parent, mode, os.O_RDWR, self._caller)
        except BaseException:
            self._forget(lookups)
            raise
        self._files[key] = _OpenFile(made.ino, os.O_RDWR, [*lookups, made.ino])

    def linkfd(self, key: str, path: str) -> None:
        with self._name(path) as (parent, name):
            self._forget([self.overlay.link(self._files[key].ino, parent, name).ino])

    def close(self, key: str) -> None:
        if key in self._directories:
            directory = self._directories.pop(key)
            self.overlay.releasedir(directory.handle)
            self._forget(directory.lookups)
            return
        opened = self._files.pop(key)
        self.overlay.release(opened.ino)
        self._forget(opened.lookups)

    def pread(self, key: str, size: int, offset: int) -> bytes:
        return self.overlay.read(self._files[key].ino, offset, size)

    def pwrite(self, key: str, data: bytes, offset: int) -> int:
        return self.overlay.write(self._files[key].ino, offset, data)

    def append(self, key: str, data: bytes) -> int:
        ino = self._files[key].ino
        return self.overlay.write(ino, self.overlay.getattr(ino).size, data)

    def fstat(self, key: str) -> Stat:
        return _stat(self.overlay.getattr(self._files[key].ino))

    def ftruncate(self, key: str, size: int) -> None:
        self.overlay.setattr(self._files[key].ino, AttributeChanges(size=size), self._caller)

    def fsync(self, key: str) -> None:
        self.overlay.fsync(self._files[key].ino, False)

    def opendir(self, key: str, path: str) -> None:
        lookups = self._resolve(os.fsencode(path))
        ino = lookups[-1] if lookups else ROOT
        self._directories[key] = _OpenDirectory(self.overlay.opendir(ino), 0, lookups)

    def readdir(self, key: str, count: int) -> list[Entry]:
        opened = self._directories[key]
        found = [
            Entry(entry.name, entry.attributes.ino, entry.offset)
            for entry in islice(self.overlay.readdir(opened.handle, opened.offset), count)
        ]
        if found:
            opened.offset = found[-1].offset
        return found

    def seekdir(self, key: str, offset: int) -> None:
        self._directories[key].offset = offset

    def finish(self) -> None:
        for key in [*self._files, *self._directories]:
            self.close(key)
