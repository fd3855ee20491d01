"""Which files does a COPY or ADD take from a tree: the build context, a stage, an image, an archive?

The tree may be anybody's: every path is resolved with its root as `/`, no symlink leads out, and names are opened
without following one. Files are given as the members of a tar, `Entry`, with their data, so the writer and the cache's
digest do not care where they come from.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from msgspec.structs import replace

from ...image.oci.errors import InvalidError, NotFoundError, named
from ...image.tar.file_data import CHUNK, pieces
from ...image.tar.reader import Entry
from ...tree.syscalls import descriptor_path, open_in_root
from .patterns import Ignored, compiled, has_magic

_KINDS: Final = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DEEPEST: Final = 1000
_KEPT_XATTRS: Final = ("user.", "security.capability")
"""Prefixes; other xattrs mean something on this host only."""


Links = dict[tuple[int, int], bytes]
"""The first name of each file that has several, by device and inode number."""


class Item(NamedTuple):
    """One file with its data, without holes as `entry.sparse` says; the data is read before the next item."""

    entry: Entry
    data: Iterable[memoryview]


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory to copy from; `ignored` paths are not there. `what` names it in errors. A tree of the user's files
    gives them to root; another keeps owners."""

    root: int
    what: str
    ignored: Ignored = field(default_factory=Ignored)
    keeps_owners: bool = False

    def find(self, pattern: str) -> list[str]:
        """The paths that a source of COPY means, symlinks unresolved; more than one only for a pattern.

        Raises NotFoundError if there are none, InvalidError for a path that leads out of the tree.
        """
        path = posixpath.normpath(pattern.lstrip("/") or ".")
        if path == ".." or path.startswith("../"):
            raise InvalidError(f"{pattern!r} leads out of {self.what}")
        found = ["" if path == "." else path]
        if has_magic(path):
            found = self._matching("", path.split("/"))
        found = [path for path in found if not self._is_left_out(path)]
        if not found:
            raise NotFoundError(f"{pattern!r} is not in {self.what}" + (" (or ignored)" if self.ignored.rules else ""))
        return found

    def _is_left_out(self, path: str) -> bool:
        try:
            os.close(open_in_root(self.root, os.fsencode(path or "."), os.O_PATH))
        except (FileNotFoundError, NotADirectoryError):
            return True
        if not self.ignored.covers(path):
            return False
        return not (self.ignored.takes_back and self.is_directory(path))

    def _matching(self, above: str, parts: list[str]) -> list[str]:
        part, rest = parts[0], parts[1:]
        if part == "**":
            here = self._matching(above, rest) if rest else []
            return here + [path for name in self._directories(above) for path in self._matching(name, parts)]
        names = [part]
        if has_magic(part):
            names = [name for name in self._names(above) if compiled(part).fullmatch(name)]
        paths = [posixpath.join(above, name) for name in names]
        return [found for path in paths for found in self._matching(path, rest)] if rest else paths

    def _names(self, path: str) -> list[str]:
        try:
            fd = open_in_root(self.root, os.fsencode(path or "."), os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def _directories(self, path: str) -> list[str]:
        inner = [posixpath.join(path, name) for name in self._names(path)]
        return [name for name in inner if self.is_directory(name) and not self._is_symlink(name)]

    def _is_symlink(self, path: str) -> bool:
        fd = open_in_root(self.root, os.fsencode(path), os.O_PATH | os.O_NOFOLLOW)
        try:
            return stat.S_ISLNK(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def is_directory(self, path: str) -> bool:
        """Symlinks are followed within the tree. Raises OSError."""
        fd = open_in_root(self.root, os.fsencode(path or "."), os.O_PATH)
        try:
            return stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def read(self, path: str, *, excluded: Ignored | None = None) -> Iterator[Item]:
        """A file as one item without a path; of a directory the root and everything in it, in byte order. Of a file
        with several names there the later ones are hard links to the first.

        `excluded` are patterns for paths relative to the source, as of COPY --exclude.
        """
        with ExitStack() as stack:
            fd = open_in_root(self.root, os.fsencode(path or "."), os.O_PATH)
            stack.callback(os.close, fd)
            resolved = os.readlink(descriptor_path(fd))[len(os.readlink(descriptor_path(self.root))) :].lstrip(b"/")
            found = os.fstat(fd)
            excluded = excluded or Ignored()
            if not stat.S_ISDIR(found.st_mode):
                if not excluded.covers(posixpath.basename(path)):
                    above = open_in_root(self.root, os.path.dirname(resolved) or b".", os.O_RDONLY | os.O_DIRECTORY)
                    stack.callback(os.close, above)
                    yield self._item(above, os.path.basename(resolved), b"", {})
                return
            top = open_in_root(self.root, resolved or b".", os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, top)
            yield Item(self._entry(b"", top, os.fstat(top)), ())
            yield from self._walk(top, resolved, b"", excluded, {})

    def _walk(self, directory: int, path: bytes, below: bytes, excluded: Ignored, links: Links) -> Iterator[Item]:
        """`path` is that of the directory in the tree, `below` that in the source; `links` grows."""
        if below.count(b"/") > _DEEPEST:
            raise InvalidError(f"{named(below)} in {self.what} is too deep")
        for name in sorted(map(os.fsencode, os.listdir(directory))):
            inner, shown = os.path.join(path, name), os.path.join(below, name)
            is_out = self.ignored.covers(os.fsdecode(inner)) or excluded.covers(os.fsdecode(shown))
            try:
                fd = os.open(name, _OPEN_DIRECTORY, dir_fd=directory)
            except OSError:
                if not is_out:
                    yield self._item(directory, name, shown, links)
                continue
            try:
                if not is_out:
                    yield Item(self._entry(shown, fd, os.fstat(fd)), ())
                if not is_out or self.ignored.takes_back or excluded.takes_back:
                    yield from self._walk(fd, inner, shown, excluded, links)
            finally:
                os.close(fd)

    def _item(self, directory: int, name: bytes, path: bytes, links: Links) -> Item:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        first = links.setdefault((found.st_dev, found.st_ino), path) if found.st_nlink > 1 else path
        if first != path:
            return Item(replace(self._entry(path, None, found), kind="h", size=0, device=(0, 0), target=first), ())
        if stat.S_ISREG(found.st_mode):
            fd = os.open(name, _OPEN_FILE, dir_fd=directory)
            found = os.fstat(fd)
            return Item(self._entry(path, fd, found), _data(fd, found))
        entry = self._entry(path, None, found)
        if entry.kind == "l":
            entry = replace(entry, target=os.readlink(name, dir_fd=directory))
        return Item(entry, ())

    def _entry(self, path: bytes, fd: int | None, found: os.stat_result) -> Entry:
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:
            raise InvalidError(f"{named(path)} in {self.what} is a socket, which no image can hold")
        uid, gid = (found.st_uid, found.st_gid) if self.keeps_owners else (0, 0)
        names = os.listxattr(fd) if fd is not None else []
        return Entry(
            path=path,
            kind=kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=uid,
            gid=gid,
            size=found.st_size if kind == "f" else 0,
            mtime_ns=found.st_mtime_ns,
            device=(os.major(found.st_rdev), os.minor(found.st_rdev)) if kind in "cb" else (0, 0),
            xattrs={os.fsencode(name): os.getxattr(fd, name) for name in names if name.startswith(_KEPT_XATTRS)}
            if fd is not None
            else {},
        )


def _data(fd: int, found: os.stat_result) -> Iterator[memoryview]:
    """The data of a file, whose descriptor is closed at the end; holes are read as zeros."""
    try:
        if found.st_size <= CHUNK:
            data = os.read(fd, found.st_size)
            if data:
                yield memoryview(data)
            return
        for piece in pieces(fd, found):
            if not piece.data:
                return
            yield memoryview(piece.data)
    finally:
        os.close(fd)


def digest_items(items: Iterable[Item]) -> str:
    """A digest of names, types, modes, owners, targets and content; times do not count."""
    whole = hashlib.sha256()
    for entry, data in items:
        facts = (entry.path, entry.kind, entry.mode, entry.uid, entry.gid, entry.target, entry.device, entry.xattrs)
        whole.update(repr(facts).encode())
        content = hashlib.sha256()
        for piece in data:
            content.update(piece)
        whole.update(content.digest())
    return whole.hexdigest()
