"""How are files copied out of an image, as `cp` does?

The image cannot influence where files are written: everything is made beneath one directory that the caller holds open,
by paths without `..`, and no symlink is followed, not even an existing one. A file is made under another name and
renamed into place, so it replaces a symlink instead of being written through it.

Owners, xattrs, devices and set-id bits are kept only on request: a copy that belongs to the caller must not run with
the caller's rights because the image sets a set-id bit.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from ...tree.filedata import copy_data
from ...tree.metadata import set_mode
from ...tree.syscalls import OPEN_DIRECTORY, OPEN_NODE, descriptor_path, open_beneath, set_times
from ..oci.progress import NO_PROGRESS, Progress
from .browse import Node, walk
from .layer_files import Content

_SAFE_MODE: Final = 0o1777
_REFUSED: Final = (errno.EPERM, errno.ENOTSUP, errno.EINVAL)


@dataclass(slots=True)
class Copied:
    """Counts of what was copied and what could not be kept, the latter by kind ("device", "owner", "xattr NAME")."""

    paths: int = 0
    size: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def copy_out(
    source: Node, content: Content, into: int, name: bytes, *, archive: bool = False, progress: Progress = NO_PROGRESS
) -> Copied:
    """Copy a node and its descendants to `name` in the directory `into`; b"" copies its entries into `into` itself.

    Files are added to a directory that exists already, which keeps its mode and times. Raises OSError with the path in
    the image; files copied before that stay.
    """
    copying = _Copying(source, content, into, name, archive)
    task = progress.begin("/" + os.fsdecode(source.path), sum(node.size for node in walk(source)))
    try:
        for node in walk(source):
            before = copying.done.size
            copying.copy(node)
            task.advance(copying.done.size - before)
        copying.finish_directories()
    finally:
        task.done()
    return copying.done


class _Copying:
    def __init__(self, source: Node, content: Content, into: int, name: bytes, archive: bool) -> None:
        self._content, self._into, self._archive = content, into, archive
        self._skipped, self._name = len(source.path), name
        self._places: dict[tuple[int, bytes], bytes] = {}  # where the first name of each file was made
        self._made: list[tuple[bytes, Node]] = []
        self.done = Copied()

    def _place(self, node: Node) -> bytes:
        """The target path of a node, relative to `into`."""
        rest = node.path[self._skipped :].lstrip(b"/")
        return b"/".join(filter(None, (self._name, rest)))

    def copy(self, node: Node) -> None:
        place = self._place(node)
        if not place:
            return
        try:
            if node.is_directory:
                self._make_directory(node, place)
            else:
                self._make_file(node, place)
        except OSError as error:
            raise OSError(error.errno, f"cannot be copied: {error.strerror or error}", b"/" + node.path) from error

    def _make_directory(self, node: Node, place: bytes) -> None:
        above, name = self._open_parent(place)
        try:
            os.mkdir(name, 0o700, dir_fd=above)
            self._made.append((place, node))
            self.done.paths += 1
        except FileExistsError:
            os.close(os.open(name, OPEN_DIRECTORY, dir_fd=above))  # ENOTDIR for a symlink too
        finally:
            os.close(above)

    def _open_parent(self, place: bytes) -> tuple[int, bytes]:
        above, _, name = place.rpartition(b"/")
        return open_beneath(self._into, above, OPEN_DIRECTORY), name

    def _make_file(self, node: Node, place: bytes) -> None:
        make = self._maker(node)
        if make is None:
            return
        above, name = self._open_parent(place)
        draft = b".overlayfs-%s" % os.urandom(8).hex().encode()
        try:
            make(node, above, draft)
            os.rename(draft, name, src_dir_fd=above, dst_dir_fd=above)
        except PermissionError:
            if node.record.kind not in "cb":
                raise
            self.done.left_out["device"] += 1
            return
        finally:
            with suppress(FileNotFoundError):  # a rename over another name of the same file does nothing
                os.unlink(draft, dir_fd=above)
            os.close(above)
        self._places.setdefault(node.origin, place)
        self.done.paths += 1

    def _maker(self, node: Node) -> Callable[[Node, int, bytes], None] | None:
        """The function that makes such a node; None if it is left out."""
        if node.origin in self._places:
            return self._link
        makers = {"f": self._write, "l": self._symlink, "p": self._special, "c": self._special, "b": self._special}
        if node.record.kind in "cb" and not self._archive:
            self.done.left_out["device"] += 1
            return None
        return makers[node.record.kind]

    def _link(self, node: Node, above: int, draft: bytes) -> None:
        first_above, first = self._open_parent(self._places[node.origin])
        try:
            os.link(first, draft, src_dir_fd=first_above, dst_dir_fd=above, follow_symlinks=False)
        finally:
            os.close(first_above)

    def _write(self, node: Node, above: int, draft: bytes) -> None:
        source = self._content.open(node)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(draft, flags, 0o600, dir_fd=above)
            try:
                size = os.fstat(source).st_size
                copy_data(source, target, size, has_holes=True)
                self._describe(node, target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        self.done.size += size

    def _symlink(self, node: Node, above: int, draft: bytes) -> None:
        os.symlink(node.record.target, draft, dir_fd=above)
        self._describe_at(node, above, draft)

    def _special(self, node: Node, above: int, draft: bytes) -> None:
        os.mknod(draft, stat.S_IFMT(node.mode) | 0o600, os.makedev(*node.record.device), dir_fd=above)
        self._describe_at(node, above, draft)

    def _describe_at(self, node: Node, above: int, name: bytes) -> None:
        fd = os.open(name, OPEN_NODE, dir_fd=above)
        try:
            self._describe(node, fd)
        finally:
            os.close(fd)

    def _describe(self, node: Node, fd: int) -> None:
        """Set owner, xattrs, mode, times, in this order: a change of owner clears capabilities and set-id bits."""
        path, record = descriptor_path(fd), node.record
        is_owners = not self._archive or self._give_away(path, node)
        if self._archive:
            self._set_xattrs(path, node)
        set_mode(fd, node.mode if self._archive and is_owners else stat.S_IFMT(node.mode) | record.mode & _SAFE_MODE)
        set_times(fd, record.mtime_ns, record.mtime_ns)

    def _give_away(self, path: bytes, node: Node) -> bool:
        """Change the owner; whether the file has the owner of the image now."""
        try:
            os.chown(path, node.record.uid, node.record.gid)
        except PermissionError:
            self.done.left_out["owner"] += 1
            return False
        return True

    def _set_xattrs(self, path: bytes, node: Node) -> None:
        for name, value in node.record.xattrs.items():
            try:
                os.setxattr(path, name, value)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                self.done.left_out["xattr " + os.fsdecode(name)] += 1

    def finish_directories(self) -> None:
        """Set metadata of directories last, deepest first: a mode may forbid writing, new entries change times."""
        for place, node in reversed(self._made):
            fd = open_beneath(self._into, place, OPEN_DIRECTORY)
            try:
                self._describe(node, fd)
            finally:
                os.close(fd)
