"""How does the tar of a layer become a directory tree, without ever following a symlink out of it?

The tree is built beneath a descriptor of its root, in a directory that only this process writes to. Every name is made
by a call that follows no symlink, in a directory that was opened without following one. A member whose path leads
through symlinks of the layer is put where they lead within the layer, according to the members seen so far. Metadata of
directories is set last, as every new entry changes it, and so are whiteouts, which hide the layers below and not the
layer's own files. A layer may depend on the layers below for directories that it does not describe and for targets of
hard links.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ...tree import marks
from ..oci.errors import ImageError, InvalidError, LimitError, named
from ..oci.limits import DEFAULT_LIMITS, Limits
from ..tar.file_data import write_data
from ..tar.reader import Entry, TarReader
from ..tar.tally import Room
from .disk_format import Format, storable_times, umask
from .file_index import Record
from .lower_layers import Below
from .open_directories import Directories
from .symlinks import followed

_OPEN_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AUFS_PREFIX: Final = marks.WHITEOUT_PREFIX * 2
_AUFS_LINKS: Final = _AUFS_PREFIX + b"plnk"
"""The directory at the root in which AUFS kept files with several names, which are hard links into it. It is unpacked
for these links, and removed at the end."""
_RESERVED: Final = b"/" + marks.WHITEOUT_PREFIX


class NeedsLowerLayersError(ImageError):
    """The layer cannot be unpacked alone: a hard link refers to a file of a layer below."""


class Unpacked(Struct, frozen=True):
    """`records` are in byte order of their paths; `implied` are directories without a member of their own."""

    records: list[Record]
    implied: list[bytes]
    size: int
    warnings: dict[str, int]


class Unpacker:
    """Writes one layer into the empty directory `root` (a descriptor that the caller keeps); for one thread.

    `below` are the layers beneath it; None if they are not known and the layer must not depend on them.
    """

    def __init__(
        self,
        root: int,
        disk_format: Format,
        below: Below | None = None,
        limits: Limits = DEFAULT_LIMITS,
        what: str = "the layer",
    ) -> None:
        self._root, self._format, self._below = root, disk_format, below
        self._limits, self._what = limits, what
        self._room = Room(limits, what, root)
        self._records: dict[bytes, Record] = {}
        self._implied: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._hidden: set[bytes] = set()  # paths with a whiteout
        self._copied: set[bytes] = set()  # files copied up from the layers below for a hard link
        self._links: dict[bytes, Record] = {}  # for each hard link the record of its first name
        self._directories = Directories(root)
        self._umask = umask()
        self._times = (0, 0)  # the earliest and the latest time that the disk can store

    def run(self, reader: TarReader) -> Unpacked:
        """Unpack all members. Raises InvalidError, LimitError, NeedsLowerLayersError; OSError where the disk fails."""
        self._format.set_up_root(self._root)
        self._times = storable_times(self._root)
        self._add_directory(Entry(b"", "d", 0o755), is_implied=True)
        try:
            for entry in reader:
                self._apply(self._storable(self._placed(entry)), reader)
            reader.drain()
            return self._finish()
        finally:
            self._directories.close()

    # members

    def _placed(self, entry: Entry) -> Entry:
        """The entry with symlinks followed in the directories of its path and of its hard link target."""
        path = self._followed(entry.path)
        target = self._followed(entry.target) if entry.kind == "h" else entry.target
        return entry if (path, target) == (entry.path, entry.target) else replace(entry, path=path, target=target)

    def _storable(self, entry: Entry) -> Entry:
        """The entry with its time clamped to the range that the disk can store."""
        earliest, latest = self._times
        if earliest <= entry.mtime_ns <= latest:
            return entry
        self._format.warnings["time not stored: out of the disk's range"] += 1
        return replace(entry, mtime_ns=min(max(entry.mtime_ns, earliest), latest))

    def _followed(self, path: bytes) -> bytes:
        above = self._records.get(_parent(path))
        if above is not None and above.kind == "d":
            return path  # so that no record has a path through a symlink
        try:
            return followed(path, self._symlink, self._limits)
        except ValueError as error:
            raise self._error(path, str(error)) from None

    def _symlink(self, path: bytes) -> bytes | None:
        record = self._links.get(path) or self._records.get(path)
        return record.target if record is not None and record.kind == "l" else None

    def _apply(self, entry: Entry, reader: TarReader) -> None:
        path = entry.path
        if path.startswith(_AUFS_LINKS + b"/") and entry.kind == "f":
            self._create(entry, reader.read_data())
        elif path.startswith(marks.WHITEOUT_PREFIX) or _RESERVED in path:
            self._mark(entry)
        elif entry.kind == "d":
            self._directory(entry)
        elif entry.kind == "c" and entry.device == (0, 0):
            self._hide(path)  # the kernel's spelling of a whiteout, which every overlay would honour
        elif entry.kind == "h":
            self._link(entry)
        else:
            self._create(entry, reader.read_data())

    def _mark(self, entry: Entry) -> None:
        """Record a whiteout or opaque mark: OCI image specification, layer.md, Whiteouts."""
        *parents, name = entry.path.split(b"/")
        reserved = [parent for parent in parents if marks.is_reserved_name(parent)]
        if any(not parent.startswith(_AUFS_PREFIX) for parent in reserved):
            raise self._error(entry.path, "a whiteout has nothing in it")
        if reserved:
            return  # internal files of AUFS
        if name == marks.OPAQUE_NAME:
            directory = b"/".join(parents)
            self._directory_descriptor(directory)
            self._opaque.add(directory)
        elif not name.startswith(_AUFS_PREFIX):
            hidden = marks.whited_out_name(name)
            if hidden in (None, b".", b".."):
                raise self._error(entry.path, "a whiteout of no name")
            self._hide(b"/".join((*parents, hidden or b"")))

    def _hide(self, path: bytes) -> None:
        self._directory_descriptor(_parent(path))
        self._hidden.add(path)

    def _directory(self, entry: Entry) -> None:
        known = self._records.get(entry.path)
        if known is not None and known.kind == "d":
            self._add_directory(entry)
            return
        dir_fd, name = self._place(entry)
        os.mkdir(name, 0o700, dir_fd=dir_fd)
        self._add_directory(entry)

    def _add_directory(self, entry: Entry, is_implied: bool = False) -> None:
        self._add(entry, entry.xattrs)
        (self._implied.add if is_implied else self._implied.discard)(entry.path)

    def _link(self, entry: Entry) -> None:
        if entry.target == entry.path:
            raise self._error(entry.path, "a hard link to itself")
        self._place(entry)
        if entry.target not in self._records:
            self._copy_up(entry)
        target = self._records[entry.target]
        if target.kind == "d":
            raise self._error(entry.path, f"a hard link to the directory {named(entry.target)}")
        original = self._links.get(entry.target, target)
        target_parent, _, target_name = entry.target.rpartition(b"/")
        parent, _, name = entry.path.rpartition(b"/")
        target_fd, dir_fd = self._directory_descriptor(target_parent), self._directory_descriptor(parent)
        os.link(target_name, name, src_dir_fd=target_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        self._records[entry.path] = replace(original, path=entry.path, kind="h", target=original.path)
        self._links[entry.path] = original

    def _create(self, entry: Entry, data: Iterable[memoryview]) -> None:
        """A file, symlink, fifo or device."""
        dir_fd, name = self._place(entry)
        if entry.kind == "f":
            self._create_file(dir_fd, name, entry, data)
        elif entry.kind == "l":
            os.symlink(entry.target, name, dir_fd=dir_fd)
            self._add(entry, self._format.finish_symlink(dir_fd, name, entry))
        else:
            self._add(entry, self._format.make_special(dir_fd, name, entry))

    def _create_file(self, dir_fd: int, name: bytes, entry: Entry, data: Iterable[memoryview]) -> None:
        mode = self._format.creation_mode(entry) & ~self._umask
        fd = os.open(name, _OPEN_NEW, mode, dir_fd=dir_fd)
        try:
            content = write_data(fd, entry, data, self._room)
            kept = self._format.finish(fd, entry, mode)  # after the data: writing clears security.capability
        finally:
            os.close(fd)
        self._add(entry, kept, content)

    def _add(self, entry: Entry, xattrs: dict[bytes, bytes], content: bytes = b"") -> None:
        if len(self._records) > self._limits.members:  # one more than the tar's: the root is always there
            raise LimitError(f"{self._what} has more than {self._limits.members} files and directories")
        self._records[entry.path] = Record(
            entry.path,
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            entry.mtime_ns,
            entry.target,
            content,
            entry.device,
            xattrs,
        )

    def _copy_up(self, link: Entry) -> None:
        """Copy the target of a hard link from the layers below, so that both names are one file again."""
        if self._below is None:
            raise NeedsLowerLayersError(f"{self._what}: {named(link.path)} is a hard link into a layer below")
        target = self._below.entry(link.target)
        if target is None or target.kind == "d":
            raise self._error(link.path, f"a hard link to {named(link.target)}, which is no file")
        self._create(target, self._below.data(link.target) if target.kind == "f" else ())
        self._copied.add(link.target)

    # places

    def _place(self, entry: Entry) -> tuple[int, bytes]:
        """The directory and the name to make an entry at. An earlier entry there is removed, as the last one counts."""
        parent, _, name = entry.path.rpartition(b"/")
        if entry.path in self._records:
            self._remove(entry.path)
        return self._directory_descriptor(parent), name

    def _remove(self, path: bytes) -> None:
        if not path:
            raise self._error(path, "the root of a layer is a directory")
        pending = [path]
        while pending:
            path = pending[-1]
            is_directory = self._records[path].kind == "d"
            names = os.listdir(self._directory_descriptor(path)) if is_directory else []
            pending += [path + b"/" + os.fsencode(name) for name in names]
            if not names:
                self._remove_one(pending.pop(), is_directory)

    def _remove_one(self, path: bytes, is_directory: bool) -> None:
        if is_directory:
            self._directories.forget(path)
        parent, _, name = path.rpartition(b"/")
        (os.rmdir if is_directory else os.unlink)(name, dir_fd=self._directory_descriptor(parent))
        del self._records[path]
        self._links.pop(path, None)
        self._implied.discard(path)
        self._copied.discard(path)

    def _directory_descriptor(self, path: bytes) -> int:
        """The descriptor of a directory, made if missing; the caller uses it at once and does not close it."""
        fd = self._directories.known(path)
        if fd is not None:
            return fd
        self._ensure_directory(path)
        return self._directories.open(path)

    def _ensure_directory(self, path: bytes) -> None:
        missing = []
        while (record := self._records.get(path)) is None:
            missing.append(path)
            path = _parent(path)
        if record.kind != "d":
            raise self._error(missing[0] if missing else path, f"{named(path)} above it is no directory")
        for path in reversed(missing):
            parent, _, name = path.rpartition(b"/")
            os.mkdir(name, 0o700, dir_fd=self._directory_descriptor(parent))
            self._add_directory(Entry(path, "d", 0o755), is_implied=True)

    # the end

    def _finish(self) -> Unpacked:
        if _AUFS_LINKS in self._records:
            self._remove(_AUFS_LINKS)
        implied = sorted(self._implied)
        unlisted = self._write_whiteouts()
        self._complete_implied()
        self._mend_links()
        directories = [path for path, record in self._records.items() if record.kind == "d"]
        for path in sorted(directories, reverse=True):  # new entries change the times of a directory
            self._finish_directory(path, path in unlisted)
        records = [self._records[path] for path in sorted(self._records)]
        size = sum(record.size for record in records if record.kind == "f")
        return Unpacked(records, implied, size, dict(self._format.warnings))

    def _write_whiteouts(self) -> set[bytes]:
        """Make the whiteouts; the directories that must be marked as holding whiteouts."""
        unlisted = set()
        for path in sorted(self._hidden):
            if path in self._copied:
                self._remove(path)
            record, parent = self._records.get(path), _parent(path)
            if record is not None and record.kind == "d":
                self._opaque.add(path)
            above = self._records.get(parent)
            if record is not None or above is None or above.kind != "d" or self._is_cut_off(parent):
                continue
            if self._format.whiteout(self._directory_descriptor(parent), path.rpartition(b"/")[2]):
                unlisted.add(parent)
            self._records[path] = Record(path, "w")
        return unlisted

    def _is_cut_off(self, path: bytes) -> bool:
        """Whether the directory hides its contents in the layers below."""
        while path not in self._opaque and path not in self._hidden:
            if not path:
                return False
            path = _parent(path)
        return True

    def _is_below(self, path: bytes) -> bool:
        """Whether this may be a directory of the layers below; an opaque one is, as it only hides their contents."""
        return not path or (path not in self._hidden and not self._is_cut_off(_parent(path)))

    def _complete_implied(self) -> None:
        """Copy the metadata of directories that the tar does not describe from the layers below, if they are there."""
        newest = max((record.mtime_ns for record in self._records.values()), default=0)
        for path in self._implied:
            record = self._records[path]
            found = self._below.entry(path) if self._below is not None and self._is_below(path) else None
            if found is not None and found.kind == "d":
                record = _with_metadata(record, found)
            self._records[path] = record if record.mtime_ns or path else replace(record, mtime_ns=newest)

    def _mend_links(self) -> None:
        """Where the first name of a file was replaced later, make the other names links to the next one."""
        heirs: dict[int, bytes] = {}
        for path, original in self._links.items():
            if self._records.get(original.path) is original:
                continue
            heir = heirs.setdefault(id(original), path)
            mended = replace(original, path=path)
            self._records[path] = mended if heir == path else replace(mended, kind="h", target=heir)

    def _finish_directory(self, path: bytes, has_unlisted_whiteouts: bool) -> None:
        fd, record = self._directory_descriptor(path), self._records[path]
        is_opaque = path in self._opaque
        if is_opaque and not path:  # the xattr of a layer's root means nothing to an overlay
            os.close(os.open(marks.OPAQUE_NAME, _OPEN_NEW, 0o444, dir_fd=fd))
        elif is_opaque or has_unlisted_whiteouts:
            os.setxattr(fd, self._format.prefix + marks.OPAQUE, b"y" if is_opaque else b"x")
        kept = self._format.finish(fd, _entry(record), 0o700)
        if is_opaque or kept != record.xattrs:
            self._records[path] = replace(record, is_opaque=is_opaque, xattrs=kept)

    def _error(self, path: bytes, problem: str) -> InvalidError:
        return InvalidError(f"{self._what}: {named(path)}: {problem}")


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _with_metadata(record: Record, found: Entry) -> Record:
    return replace(
        record, mode=found.mode, uid=found.uid, gid=found.gid, mtime_ns=found.mtime_ns, xattrs=dict(found.xattrs)
    )


def _entry(record: Record) -> Entry:
    return Entry(
        record.path,
        record.kind,
        record.mode,
        record.uid,
        record.gid,
        record.size,
        record.mtime_ns,
        record.target,
        record.device,
        record.xattrs,
    )
