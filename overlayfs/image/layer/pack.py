"""How do the changes of an upper become the tar of a layer?

The tar follows rules that every reader of layers can handle: each path occurs once, after its parent directories; hard
links refer to paths of the same layer; deletions are `.wh.NAME`, opaque directories hold `.wh..wh..opq` (OCI image
specification, layer.md). tar/writer.py encodes the members, overlay/changes.py finds the changes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from msgspec.structs import replace

from ...overlay.changes import Aspect, Change, Comparison, Version
from ...tree import marks
from ..oci.errors import InvalidError, LimitError, named
from ..oci.limits import UNLIMITED, Limits
from ..tar.file_data import CHUNK, pieces, size_on_disk
from ..tar.reader import Entry
from ..tar.tally import Room, Tally
from ..tar.writer import END, header_blocks, padding
from .owners import OwnerOf

_S: Final = 1_000_000_000
_KINDS: Final = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
}
_OF_THIS_HOST: Final = frozenset({b"security.selinux", b"security.ima", b"security.evm", b"system.nfs4_acl"})
"""Xattrs that are meaningless or wrong on another machine."""
_AUFS_LEFTOVERS: Final = frozenset({".wh..wh.aufs", ".wh..wh.orph", ".wh..wh.plnk"})

_PREFIX: Final = os.fsdecode(marks.WHITEOUT_PREFIX)

LinkKey = tuple[int | None, int, int]


class Output(Protocol):
    """Takes the bytes of a layer; buffers are not changed after they were written."""

    def write(self, data: bytes | memoryview, /) -> int: ...


@dataclass(slots=True)
class LayerSummary:
    """Counts of the written members by kind of change, and of the bytes of their files."""

    added: int = 0
    modified: int = 0
    deleted: int = 0
    content: int = 0
    sockets_left_out: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.modified or self.deleted)


def write_layer(
    comparison: Comparison,
    out: Output,
    *,
    source_date_epoch: int | None = None,
    may_hold_marks: bool = True,
    has_root: bool = True,
    owner_of: OwnerOf | None = None,
    limits: Limits = UNLIMITED,
) -> LayerSummary:
    """Write the changes as an uncompressed layer tar; the same tree gives the same bytes.

    Times after `source_date_epoch`, in seconds, are set to it. An empty file `.wh.NAME` in the upper is a deletion if
    the upper `may_hold_marks`; any other file of such a name raises InvalidError, as does a file that shrinks while it
    is read. Without `has_root` the root itself is left out. `owner_of` gives (uid, gid) where those on disk differ.
    A layer that a reader with these `limits` would refuse raises LimitError.
    """
    writer = _LayerWriter(comparison, out, source_date_epoch, owner_of, has_root, limits)
    for change in comparison.as_layer(_marks_allowed if may_hold_marks else _nothing_reserved):
        if change.path or has_root:
            writer.add(change)
    writer.finish()
    return writer.summary


class _LayerWriter:
    """Writes one layer. The first name of a file that is written holds the content, the others are hard links to it;
    unchanged names are held back until a changed name of the file is written."""

    def __init__(
        self,
        comparison: Comparison,
        out: Output,
        latest: int | None,
        owner_of: OwnerOf | None,
        has_root: bool,
        limits: Limits,
    ) -> None:
        self.summary = LayerSummary()
        self._comparison = comparison
        self._out = out
        self._latest_ns = None if latest is None else latest * _S
        self._owner_of = owner_of or (lambda version: (version.stat.uid, version.stat.gid))
        self._directories: set[bytes] = set() if has_root else {b""}
        self._names: dict[LinkKey, bytes] = {}
        self._waiting: dict[LinkKey, list[Change]] = {}
        self._limits, self._tally, self._room = limits, Tally(limits, "the layer"), Room(limits, "the layer")

    def add(self, change: Change) -> None:
        if change.after is None or (Aspect.TYPE in change.aspects and stat.S_ISSOCK(change.after.stat.mode)):
            self._delete(change.path)
        elif change.before is not None and not change.aspects and not change.hides_below:
            self._keep(change, change.after)
        else:
            self._put(change, change.after)

    def finish(self) -> None:
        """Write files that only have other names than they had, and the end marker."""
        for group in list(self._waiting.values()):
            if _has_other_names(group):
                self._put_first(group)
        self._out.write(END)

    def _put_first(self, group: list[Change]) -> None:
        """Write one name of a file, then its names that were held back."""
        first = group.pop(0)
        assert first.after is not None
        self._put(first, first.after)

    def _delete(self, path: bytes) -> None:
        directory, _, name = path.rpartition(b"/")
        self._put_parents(path)
        self._put_mark(directory, marks.oci_whiteout(name))
        self.summary.deleted += 1

    def _keep(self, change: Change, version: Version) -> None:
        key = _link_key(version)
        if key in self._names:
            self._put(change, version)
        else:
            self._waiting.setdefault(key, []).append(change)

    def _put(self, change: Change, version: Version) -> None:
        if stat.S_ISSOCK(version.stat.mode):  # no tar can hold one
            self.summary.sockets_left_out += 1
            return
        self._put_parents(change.path)
        self._put_version(change.path, version)
        self.summary.added += change.before is None
        self.summary.modified += change.before is not None
        if change.hides_below:
            self._put_mark(change.path, marks.OPAQUE_NAME)

    def _put_parents(self, path: bytes) -> None:
        """Write the parent directories that are not in the layer yet, as they are in the merged tree."""
        if path and path.rpartition(b"/")[0] in self._directories:  # whose own parents are in it
            return
        for directory in _ancestors(path):
            if directory not in self._directories:
                version = self._comparison.version_at(directory)
                if version is None:
                    raise InvalidError(f"{_shown(directory)} vanished: stop what writes there, then commit again")
                self._put_version(directory, version)

    def _put_version(self, path: bytes, version: Version) -> None:
        if stat.S_ISDIR(version.stat.mode):
            self._directories.add(path)
        elif version.stat.nlink > 1:
            self._put_linked(path, version)
            return
        self._put_file(path, version)

    def _put_linked(self, path: bytes, version: Version) -> None:
        key = _link_key(version)
        if key in self._names:
            link = replace(self._entry(path, version), kind="h", target=self._names[key], device=(0, 0))
            self._out.write(self._header(link))
            return
        self._names[key] = path
        self._put_file(path, version)
        for change in self._waiting.pop(key, ()):
            self._put(change, version)

    def _put_file(self, path: bytes, version: Version) -> None:
        """Write one member with its metadata and content."""
        if not stat.S_ISREG(version.stat.mode):
            self._out.write(self._header(self._entry(path, version)))
            return
        fd = self._comparison.open_data(version)
        try:
            st = os.fstat(fd)
            header = self._header(self._entry(path, version, size=st.st_size))
            self._put_content(path, header, fd, st)
        finally:
            os.close(fd)
        self.summary.content += st.st_size

    def _put_content(self, path: bytes, header: bytes, fd: int, st: os.stat_result) -> None:
        """Write exactly as many bytes as the header says, as the file may grow meanwhile."""
        size = st.st_size
        if size <= CHUNK:
            data = os.read(fd, size)
            self._room.take(size_on_disk(data, 0), path)
            self._out.write(b"".join((header, data, padding(size))))
            if len(data) < size:
                raise _shrunk(path)
            return
        self._out.write(header)
        position = 0
        for piece in pieces(fd, st):
            if not piece.data:
                raise _shrunk(path)
            if not piece.is_hole:
                self._room.take(size_on_disk(piece.data, position), path)
            self._out.write(piece.data)
            position += len(piece.data)
        self._out.write(padding(size))

    def _put_mark(self, directory: bytes, name: bytes) -> None:
        self._out.write(self._header(Entry(path=b"%s/%s" % (directory, name) if directory else name, kind="f")))

    def _header(self, entry: Entry) -> bytes:
        self._tally.add(entry.path, entry.size)
        blocks = header_blocks(entry)
        if len(entry.path) > self._limits.path_length:
            limit = self._limits.path_length
            raise LimitError(f"{named(entry.path)}: no layer can hold a path of more than {limit} bytes")
        if len(blocks) > self._limits.header_size:
            limit = self._limits.header_size
            raise LimitError(f"{named(entry.path)}: no layer can hold more than {limit} bytes of xattrs of a file")
        return blocks

    def _entry(self, path: bytes, version: Version, size: int = 0) -> Entry:
        st, mode, mtime_ns = version.stat, version.stat.mode, version.stat.mtime_ns
        uid, gid = self._owner_of(version)
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return Entry(
            path=path,
            kind=_KINDS[stat.S_IFMT(mode)],
            mode=stat.S_IMODE(mode),
            uid=uid,
            gid=gid,
            size=size,
            mtime_ns=mtime_ns if self._latest_ns is None else min(mtime_ns, self._latest_ns),
            target=version.target or b"",
            device=(os.major(st.rdev), os.minor(st.rdev)) if is_device else (0, 0),
            xattrs={name: value for name, value in version.xattrs.items() if name not in _OF_THIS_HOST},
        )


def _has_other_names(group: Sequence[Change]) -> bool:
    """Whether the names of a file that did not change belonged to several files, or to one that it is a copy of and
    that had more. Links that the store made count as names, too: then the file is written without need."""
    before = {_link_key(change.before): change.before for change in group if change.before is not None}
    after = {_link_key(change.after) for change in group if change.after is not None}
    return len(before) > 1 or any(key not in after and len(group) < one.stat.nlink for key, one in before.items())


def _link_key(version: Version) -> LinkKey:
    """Identifies a file; equal files that the store links together count as different in different layers."""
    layer = None if version.data is None else max(version.data.layer, -1)  # numbers below -1 belong to the upper too
    return layer, version.device, version.stat.ino


def _ancestors(path: bytes) -> Iterator[bytes]:
    """The directories above a path, outermost first."""
    if path:
        yield b""
    end = path.find(b"/")
    while end != -1:
        yield path[:end]
        end = path.find(b"/", end + 1)


def _shrunk(path: bytes) -> InvalidError:
    return InvalidError(f"{_shown(path)} shrank: stop what writes there, then commit again")


def _marks_allowed(path: bytes, fd: int) -> None:
    """Raise InvalidError for files that have the name of a mark."""
    for entry in _reserved(fd):
        is_mark = entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size == 0
        if not is_mark and entry.name not in _AUFS_LEFTOVERS:
            _refuse(path, entry)


def _nothing_reserved(path: bytes, fd: int) -> None:
    for entry in _reserved(fd):
        _refuse(path, entry)


def _reserved(fd: int) -> Iterator[os.DirEntry[str]]:
    with os.scandir(fd) as entries:
        yield from (entry for entry in entries if entry.name.startswith(_PREFIX))


def _refuse(path: bytes, entry: os.DirEntry[str]) -> None:
    where = _shown(os.path.join(path, os.fsencode(entry.name)))
    raise InvalidError(f"{where}: a file of this name would delete another in an image layer: rename or remove it")


def _shown(path: bytes) -> str:
    return "/" + path.decode(errors="backslashreplace")
