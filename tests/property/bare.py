"""The engine as a target, without a mount: does what the kernel's VFS does before it asks a filesystem."""

import errno
import os
import stat
from typing import NoReturn

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import OverlayOptions
from overlayfs.overlay.values import AttributeChanges, Attributes, Caller

from .steps import RENAME_EXCHANGE, RENAME_NOREPLACE, UMASK, Entry, Snapshot, now_of_files_ns
from .trees import parent_of

ROOT_INO = 1
MOST_LINKS_FOLLOWED = 40


def fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


class EngineTarget:
    """`Overlay` driven by paths; holds one lookup count for each number in hand, as the kernel would."""

    name = "ours"

    def __init__(self, options: OverlayOptions) -> None:
        self.options = options
        self.caller = Caller(uid=0, gid=0, pid=os.getpid(), umask=UMASK)
        self.started_ns = now_of_files_ns()
        self.held: dict[int, int] = {}
        self.borrowed: list[int] = []
        self.overlay = Overlay.open(options)

    # Finding: every number that lookup gave is given back at the end of the step

    def _give_back(self) -> None:
        for ino in self.borrowed:
            self.overlay.forget(ino, 1)
        self.borrowed.clear()

    def _child(self, parent: int, name: bytes) -> Attributes:
        found = self.overlay.lookup(parent, name)
        self.borrowed.append(found.ino)
        return found

    def _keep(self, made: Attributes) -> Attributes:
        self.borrowed.append(made.ino)
        return made

    def _find(self, path: bytes, *, follow: bool = False) -> Attributes:
        """The file at `path`; ENOENT, ENOTDIR or ELOOP as the kernel's own walk."""
        self._give_back()
        return self._walk(path, follow=follow)

    def _walk(self, path: bytes, *, follow: bool) -> Attributes:
        trail = [self.overlay.getattr(ROOT_INO)]
        parts = [part for part in path.split(b"/") if part]
        followed = 0
        while parts:
            part = parts.pop(0)
            self._require_directory(trail[-1])
            found = self._child(trail[-1].ino, part)
            if stat.S_ISLNK(found.mode) and (parts or follow):
                followed += 1
                if followed > MOST_LINKS_FOLLOWED:
                    fail(errno.ELOOP)
                parts = [piece for piece in self.overlay.readlink(found.ino).split(b"/") if piece] + parts
                continue
            trail.append(found)
        return trail[-1]

    def _require_directory(self, found: Attributes) -> None:
        if not stat.S_ISDIR(found.mode):
            fail(errno.ENOTDIR)

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        found = self._walk(parent_of(path), follow=True)
        self._require_directory(found)
        return found.ino, path.rpartition(b"/")[2]

    def _place(self, path: bytes) -> tuple[int, bytes]:
        self._give_back()
        return self._parent(path)

    def _exists(self, parent: int, name: bytes) -> Attributes | None:
        try:
            return self._child(parent, name)
        except FileNotFoundError:
            return None

    # Files

    def _open(self, path: bytes, flags: int) -> int:
        found = self._find(path, follow=True)
        if stat.S_ISDIR(found.mode) and flags & os.O_ACCMODE != os.O_RDONLY:
            fail(errno.EISDIR)
        self.overlay.open_file(found.ino, flags)
        return found.ino

    def create(self, path: bytes, flags: int, mode: int, data: bytes, followed: int = 0) -> None:
        parent, name = self._place(path)
        there = self._exists(parent, name)
        if there is not None:
            if flags & os.O_EXCL:
                fail(errno.EEXIST)
            if stat.S_ISLNK(there.mode):
                # a link to what is not there makes the target
                if followed == MOST_LINKS_FOLLOWED:
                    fail(errno.ELOOP)
                directory = parent_of(path)
                target = os.path.join(directory, self.overlay.readlink(there.ino))
                self.create(target, flags, mode, data, followed + 1)
                return
            if stat.S_ISDIR(there.mode):
                fail(errno.EISDIR)
            ino = self._open(path, os.O_WRONLY | flags)
        else:
            flags |= os.O_WRONLY | os.O_CREAT
            ino = self._keep(self.overlay.create(parent, name, stat.S_IFREG | mode, flags, self.caller)).ino
        try:
            self._write(ino, 0, data)
        finally:
            self.overlay.release(ino)

    def _write(self, ino: int, offset: int, data: bytes) -> int:
        return self.overlay.write(ino, offset, data) if data else 0

    def write(self, path: bytes, offset: int, data: bytes) -> int:
        ino = self._open(path, os.O_WRONLY)
        try:
            return self._write(ino, offset, data)
        finally:
            self.overlay.release(ino)

    def append(self, path: bytes, data: bytes) -> int:
        ino = self._open(path, os.O_WRONLY | os.O_APPEND)
        try:
            return self._write(ino, self.overlay.getattr(ino).size, data)
        finally:
            self.overlay.release(ino)

    def truncate(self, path: bytes, size: int) -> None:
        found = self._find(path, follow=True)
        if stat.S_ISDIR(found.mode):
            fail(errno.EISDIR)
        if not stat.S_ISREG(found.mode):
            fail(errno.EINVAL)
        self.overlay.setattr(found.ino, AttributeChanges(size=size), self.caller)

    def read(self, path: bytes) -> bytes:
        ino = self._open(path, os.O_RDONLY)
        try:
            if stat.S_ISDIR(self.overlay.getattr(ino).mode):
                fail(errno.EISDIR)
            return self.overlay.read(ino, 0, 1 << 20)
        finally:
            self.overlay.release(ino)

    def hold(self, number: int, path: bytes, flags: int) -> None:
        ino = self._open(path, flags)
        self.borrowed.remove(ino)  # an open file keeps its inode alive
        self.held[number] = ino

    def held_read(self, number: int) -> bytes:
        return self.overlay.read(self.held[number], 0, 1 << 20)

    def held_write(self, number: int, offset: int, data: bytes) -> int:
        return self._write(self.held[number], offset, data)

    def held_truncate(self, number: int, size: int) -> None:
        self.overlay.setattr(self.held[number], AttributeChanges(size=size), self.caller)

    def held_stat(self, number: int) -> tuple[object, ...]:
        return _compared(self.overlay.getattr(self.held[number]))

    def held_number(self, number: int) -> int:
        return self.overlay.getattr(self.held[number]).ino

    def drop(self, number: int) -> None:
        ino = self.held.pop(number)
        self.overlay.release(ino)
        self.overlay.forget(ino, 1)

    # Names

    def mkdir(self, path: bytes, mode: int) -> None:
        parent, name = self._free_place(path)
        self._keep(self.overlay.mkdir(parent, name, mode & 0o1777, self.caller))

    def _free_place(self, path: bytes) -> tuple[int, bytes]:
        parent, name = self._place(path)
        if self._exists(parent, name) is not None:
            fail(errno.EEXIST)
        return parent, name

    def rmdir(self, path: bytes) -> None:
        self.overlay.rmdir(*self._place(path))

    def unlink(self, path: bytes) -> None:
        self.overlay.unlink(*self._place(path))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self._give_back()
        old_parent, old_name = self._parent(old)
        new_parent, new_name = self._parent(new)
        source = self._child(old_parent, old_name)
        target = self._exists(new_parent, new_name)
        if flags & RENAME_NOREPLACE and target is not None:
            fail(errno.EEXIST)
        if flags & RENAME_EXCHANGE and target is None:
            fail(errno.ENOENT)
        if self._is_above(source.ino, new):
            fail(errno.EINVAL)
        if target is not None and self._is_above(target.ino, old):
            fail(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)
        if target is not None and target.ino == source.ino:
            return
        self.overlay.rename(old_parent, old_name, new_parent, new_name, flags)

    def _is_above(self, ino: int, path: bytes) -> bool:
        """Whether the walk to the directory of `path` passes through `ino`."""
        parts = path.split(b"/")[:-1]
        return any(self._walk(b"/".join(parts[:depth]), follow=True).ino == ino for depth in range(1, len(parts) + 1))

    def link(self, old: bytes, new: bytes) -> None:
        self._give_back()
        source = self._walk(old, follow=False)
        parent, name = self._parent(new)
        if self._exists(parent, name) is not None:
            fail(errno.EEXIST)
        if stat.S_ISDIR(source.mode):
            fail(errno.EPERM)
        self._keep(self.overlay.link(source.ino, parent, name))

    def symlink(self, target: bytes, path: bytes) -> None:
        parent, name = self._free_place(path)
        self._keep(self.overlay.symlink(parent, name, target, self.caller))

    def mkfifo(self, path: bytes, mode: int) -> None:
        parent, name = self._free_place(path)
        self._keep(self.overlay.mknod(parent, name, stat.S_IFIFO | mode, 0, self.caller))

    # Attributes

    def stat(self, path: bytes) -> tuple[object, ...]:
        return _compared(self._find(path))

    def readlink(self, path: bytes) -> bytes:
        found = self._find(path)
        if not stat.S_ISLNK(found.mode):
            fail(errno.EINVAL)
        return self.overlay.readlink(found.ino)

    def chmod(self, path: bytes, mode: int) -> None:
        ino = self._find(path, follow=True).ino
        self.overlay.setattr(ino, AttributeChanges(mode=mode), self.caller)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        found = self._find(path)
        if uid == gid == -1:
            # nobody changes, but set-id bits and capabilities go: the kernel asks for just that
            if b"security.capability" in self.overlay.listxattr(found.ino):
                self.overlay.removexattr(found.ino, b"security.capability")
            kept = found.mode & ~(stat.S_ISUID | (stat.S_ISGID if found.mode & stat.S_IXGRP else 0))
            changes = AttributeChanges(mode=None if stat.S_ISDIR(found.mode) else kept)
        else:
            changes = AttributeChanges(uid=None if uid == -1 else uid, gid=None if gid == -1 else gid)
        self.overlay.setattr(found.ino, changes, self.caller)

    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        changes = AttributeChanges(atime_ns=atime_ns, mtime_ns=mtime_ns)
        self.overlay.setattr(self._find(path).ino, changes, self.caller)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        found = self._find(path)
        self._require_user_xattrs(found, name, errno.EPERM)
        self.overlay.setxattr(found.ino, name, value, flags, self.caller)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        found = self._find(path)
        self._require_user_xattrs(found, name, errno.ENODATA)
        return self.overlay.getxattr(found.ino, name)

    def removexattr(self, path: bytes, name: bytes) -> None:
        found = self._find(path)
        self._require_user_xattrs(found, name, errno.EPERM)
        self.overlay.removexattr(found.ino, name)

    def _require_user_xattrs(self, found: Attributes, name: bytes, otherwise: int) -> None:
        """Only files and directories have attributes in the user namespace: xattr(7)."""
        if name.startswith(b"user.") and not (stat.S_ISREG(found.mode) or stat.S_ISDIR(found.mode)):
            fail(otherwise)

    # Listings

    def listdir(self, path: bytes) -> list[bytes]:
        found = self._find(path, follow=True)
        self._require_directory(found)
        return sorted(self._names(found.ino))

    def _names(self, ino: int) -> list[bytes]:
        """The directory's names, read in pieces as the kernel does."""
        handle = self.overlay.opendir(ino)
        try:
            return [name for name in self._pieces(handle) if name not in (b".", b"..")]
        finally:
            self.overlay.releasedir(handle)

    def _pieces(self, handle: int, size: int = 3) -> list[bytes]:
        names: list[bytes] = []
        offset = 0
        while True:
            piece = [entry for entry, _ in zip(self.overlay.readdir(handle, offset), range(size), strict=False)]
            if not piece:
                return names
            names += [entry.name for entry in piece]
            offset = piece[-1].offset

    def snapshot(self) -> Snapshot:
        self._give_back()
        entries: Snapshot = {}
        first_of: dict[int, bytes] = {}
        for path, found in self._everything():
            entries[path] = self._entry(path, found, first_of)
        return {path: entries[path] for path in sorted(entries)}

    def _everything(self) -> list[tuple[bytes, Attributes]]:
        self._give_back()
        found = [(b"", self.overlay.getattr(ROOT_INO))]
        for path, attributes in found:
            if stat.S_ISDIR(attributes.mode):
                found += [
                    (os.path.join(path, name), self._child(attributes.ino, name))
                    for name in self._names(attributes.ino)
                ]
        return sorted(found)

    def _entry(self, path: bytes, found: Attributes, first_of: dict[int, bytes]) -> Entry:
        directory = stat.S_ISDIR(found.mode)
        sized = stat.S_ISREG(found.mode) or stat.S_ISLNK(found.mode)
        return Entry(
            mode=found.mode,
            uid=found.uid,
            gid=found.gid,
            size=found.size if sized else None,
            rdev=found.rdev,
            nlink=None if directory else found.nlink,
            first_name=None if directory else first_of.setdefault(found.ino, path),
            mtime_ns=found.mtime_ns if found.mtime_ns < self.started_ns else None,
            data=self._data(found),
            xattrs=tuple(
                (name, self.overlay.getxattr(found.ino, name)) for name in sorted(self.overlay.listxattr(found.ino))
            ),
        )

    def _data(self, found: Attributes) -> bytes:
        if stat.S_ISLNK(found.mode):
            return self.overlay.readlink(found.ino)
        if not stat.S_ISREG(found.mode):
            return b""
        self.overlay.open_file(found.ino, os.O_RDONLY)
        try:
            return self.overlay.read(found.ino, 0, found.size + 1)
        finally:
            self.overlay.release(found.ino)

    def numbers(self) -> dict[bytes, int]:
        return {path: found.ino for path, found in self._everything()}

    def remount(self) -> None:
        self._give_back()
        self.overlay.close()
        self.overlay = Overlay.open(self.options)

    def close(self) -> None:
        for number in list(self.held):
            self.drop(number)
        self._give_back()
        self.overlay.close()


def _compared(found: Attributes) -> tuple[object, ...]:
    directory = stat.S_ISDIR(found.mode)
    sized = stat.S_ISREG(found.mode) or stat.S_ISLNK(found.mode)
    return (
        oct(found.mode),
        found.uid,
        found.gid,
        found.size if sized else None,
        None if directory else found.nlink,
    )
