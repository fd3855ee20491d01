"""How are copied files put into the tree of a container? Beneath its root, whatever symlinks the image has there.

A path is resolved with the root of the container as `/`; the last name is made by calls that follow no symlink. The
tree is a mount that only this process uses.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterable
from typing import Final

from msgspec.structs import replace

from ...container.root_paths import Inside
from ...container.users import no_such_ids
from ...image.oci.errors import InvalidError, named
from ...image.oci.limits import Limits
from ...image.tar.file_data import write_data
from ...image.tar.reader import Entry
from ...image.tar.tally import Room
from ...tree.syscalls import descriptor_path

_OPEN_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER_ALONE: Final = 0o700
_CLEARED: Final = stat.S_ISUID | stat.S_ISGID
"""Bits of a mode that a change of owner or content takes away."""

Edit = Callable[[Entry], Entry]


class TreeWriter:
    """Writes entries below directories of one container. Directories get their times last (`finish`)."""

    def __init__(
        self, inside: Inside, limits: Limits, edit: Edit = lambda entry: entry, *, keeps_owners: bool = True
    ) -> None:
        """`edit` changes owner and mode of what is copied. Without `keeps_owners` all is the caller's."""
        self._keeps_owners = keeps_owners
        self._inside, self.edited, self.limits = inside, edit, limits
        self._room = Room(limits, "what is copied", inside.fd)
        self._times: dict[bytes, int] = {}
        self._resolved: tuple[bytes, bytes] = (b"/", b"/")  # the last directory: most entries follow one of the same

    def is_directory(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(self._inside.stat(os.fsencode(path)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def make_directories(self, path: bytes, like: Entry | None = None) -> bytes:
        """The path of a directory without symlinks; those that are missing are made, 0755 and root's, or as `like`."""
        path = posixpath.normpath(b"/" + path.lstrip(b"/"))
        if path == self._resolved[0]:
            return self._resolved[1]
        try:
            resolved = self._inside.resolve(path)
        except FileNotFoundError:
            above = self.make_directories(posixpath.dirname(path), like)
            return self._make_directory(above, posixpath.basename(path), like)
        if not stat.S_ISDIR(self._inside.stat(resolved).st_mode):
            raise InvalidError(f"{named(path)} in the image is no directory")
        self._resolved = (path, resolved)
        return resolved

    def _make_directory(self, above: bytes, name: bytes, like: Entry | None) -> bytes:
        path = posixpath.join(above, name)
        with self._inside.directory(above) as fd:
            try:
                os.mkdir(name, 0o755, dir_fd=fd)
            except FileExistsError:
                raise InvalidError(f"{named(path)} in the image is a symlink that leads nowhere") from None
            os.chmod(name, 0o755, dir_fd=fd)  # whatever the umask
            self._own(like or Entry(path, "d", 0o755), fd, name)
        return path

    def put(self, directory: bytes, entry: Entry, data: Iterable[memoryview]) -> None:
        """Make one entry, whose path is below the directory. A file replaces what is there; a directory joins one."""
        entry = self.edited(entry)
        above, name = posixpath.split(entry.path)
        place = self.make_directories(posixpath.join(directory, above) if above else directory)
        if entry.kind == "d":
            self._put_directory(place, name, entry)
            return
        with self._inside.directory(place) as fd:
            self._clear(fd, name, posixpath.join(place, name))
            self._create(fd, name, directory, entry, data)

    def _put_directory(self, place: bytes, name: bytes, entry: Entry) -> None:
        with self._inside.directory(place) as fd:
            try:
                os.mkdir(name, _OWNER_ALONE, dir_fd=fd)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    self.make_directories(posixpath.join(place, name))  # a symlink to a directory is one
                    return
            made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                self._describe(made, entry, os.fstat(made))
            finally:
                os.close(made)
        self._times[posixpath.join(place, name)] = entry.mtime_ns

    def _clear(self, fd: int, name: bytes, path: bytes) -> None:
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            raise InvalidError(f"{named(path)} in the image is a directory, and a file is to be there") from None
        self._resolved = (b"/", b"/")  # it may have been a symlink on the way there

    def _create(self, fd: int, name: bytes, directory: bytes, entry: Entry, data: Iterable[memoryview]) -> None:
        if entry.kind == "f":
            made = os.open(name, _OPEN_NEW, entry.mode & 0o777, dir_fd=fd)
            try:
                found = os.fstat(made)
                write_data(made, entry, data, self._room)
                self._describe(made, entry, found)
                os.utime(made, ns=(entry.mtime_ns, entry.mtime_ns))
            finally:
                os.close(made)
            return
        if entry.kind == "h":
            self._link(fd, name, directory, entry)
            return
        if entry.kind == "l":
            os.symlink(entry.target, name, dir_fd=fd)
        elif entry.kind == "p":
            os.mkfifo(name, entry.mode, dir_fd=fd)
        else:
            kind = stat.S_IFCHR if entry.kind == "c" else stat.S_IFBLK
            os.mknod(name, kind | entry.mode, os.makedev(*entry.device), dir_fd=fd)
        self._own(entry, fd, name)
        if entry.kind != "l":
            os.chmod(name, entry.mode, dir_fd=fd)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=fd, follow_symlinks=False)

    def _link(self, fd: int, name: bytes, directory: bytes, entry: Entry) -> None:
        """A hard link to a member of the same archive."""
        above, target = posixpath.split(entry.target)
        place = self.make_directories(posixpath.join(directory, above) if above else directory)
        with self._inside.directory(place) as source:
            os.link(target, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)

    def _describe(self, fd: int, entry: Entry, found: os.stat_result) -> None:
        """Set what is not as `found`, as each change is a request to the filesystem."""
        if (entry.uid, entry.gid) != (found.st_uid, found.st_gid):
            self._own(entry, fd)
        for name, value in entry.xattrs.items():  # after the owner: chown clears capabilities
            os.setxattr(fd, name, value)
        if entry.mode != stat.S_IMODE(found.st_mode) or entry.mode & _CLEARED:
            os.fchmod(fd, entry.mode)

    def _own(self, entry: Entry, fd: int, name: bytes = b"") -> None:
        """Set the owner of an open file, or of `name` in an open directory. Raises InvalidError, OSError."""
        if not self._keeps_owners:
            return
        try:
            if name:
                os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
            else:
                os.fchown(fd, entry.uid, entry.gid)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise no_such_ids(entry.uid, entry.gid) from None

    def finish(self) -> None:
        """Give the directories their times, the innermost first."""
        for path, mtime_ns in sorted(self._times.items(), reverse=True):
            with self._inside.directory(path) as fd:
                os.utime(descriptor_path(fd), ns=(mtime_ns, mtime_ns))


def write_tree(
    inside: Inside,
    name: str,
    items: Iterable[tuple[Entry, Iterable[memoryview]]],
    limits: Limits,
    *,
    keeps_owners: bool = True,
) -> None:
    """Write what a source gives as a new file or directory `name`."""
    writer = TreeWriter(inside, limits, keeps_owners=keeps_owners)
    for entry, data in items:
        writer.put(b"/", renamed(entry, os.fsencode(name)), data)
    writer.finish()


def renamed(entry: Entry, prefix: bytes) -> Entry:
    """The entry of a source, placed at `prefix`."""
    path = posixpath.join(prefix, entry.path) if entry.path else prefix
    target = posixpath.join(prefix, entry.target) if entry.kind == "h" else entry.target
    return replace(entry, path=path, target=target)
