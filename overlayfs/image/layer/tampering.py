"""Is the tree of an unpacked layer unchanged? Every name, attribute and byte is compared with its file index."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import xxhash
from msgspec.structs import replace

from ...overlay.ownership import parse_override
from ...tree import marks, xattrs
from ...tree.syscalls import OPEN_NODE, descriptor_path, open_beneath
from ..oci.errors import named
from ..tar.file_data import pieces
from .disk_format import OVERRIDE, OverrideFormat, RealFormat
from .file_index import LayerIndex, Record

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFSOCK: "s",
}
_ASPECTS: Final = {
    "kind": "type",
    "mode": "mode",
    "uid": "owner",
    "gid": "group",
    "size": "size",
    "mtime_ns": "time",
    "target": "target",
    "content": "content",
    "device": "device",
    "xattrs": "xattrs",
    "is_opaque": "opacity",
}


def differences(root: int, index: LayerIndex) -> Iterator[str]:
    """One line for each path beneath the descriptor `root` that differs from the index."""
    expected = {record.path: record for record in index.records}
    missing = dict(expected)
    tree = _Tree(root)
    for path in tree.paths():
        record = missing.pop(path, None)
        if record is None:
            yield f"{named(path)} is not of the layer"
            continue
        target = expected.get(record.target) if record.kind == "h" else None
        found, wanted = tree.record(path), replace(target, path=path) if target else record
        aspects = [name for name in _ASPECTS if getattr(found, name) != getattr(wanted, name)]
        if not tree.keeps_owner(found):
            aspects = [name for name in aspects if name not in ("uid", "gid")]
        if aspects:
            yield f"{named(path)} differs: {', '.join(_ASPECTS[name] for name in aspects)}"
        elif target and not tree.is_same(path, target.path):
            yield f"{named(path)} is no hard link to {named(target.path)} any more"
    yield from (f"{named(path)} is missing" for path in missing)


class _Tree:
    """A layer's tree as it is now."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._has_overrides = xattrs.read_xattr_of_descriptor(root, OVERRIDE) is not None
        self._spelling = (OverrideFormat if self._has_overrides else RealFormat).spelling

    def keeps_owner(self, found: Record) -> bool:
        """Whether the owner is kept: an ordinary user can neither change it on a symlink nor note it in an xattr."""
        return not self._has_overrides or found.kind != "l"

    def paths(self) -> Iterator[bytes]:
        """Every path, the root first."""
        pending = [b""]
        while pending:
            path = pending.pop()
            yield path
            if self._is_directory(path):
                prefix = path + b"/" if path else b""
                pending += [prefix + name for name in self._names(path) if prefix or name != marks.OPAQUE_NAME]

    def _is_directory(self, path: bytes) -> bool:
        with self._opened(path, OPEN_NODE) as fd:
            return stat.S_ISDIR(os.fstat(fd).st_mode)

    def _names(self, path: bytes) -> list[bytes]:
        with self._opened(path, _OPEN_DIRECTORY) as fd:
            return sorted(map(os.fsencode, os.listdir(fd)), reverse=True)

    def is_same(self, path: bytes, other: bytes) -> bool:
        with self._opened(path, OPEN_NODE) as left, self._opened(other, OPEN_NODE) as right:
            return os.path.samestat(os.fstat(left), os.fstat(right))

    def record(self, path: bytes) -> Record:
        with self._opened(path, OPEN_NODE) as fd:
            st, place = os.fstat(fd), descriptor_path(fd)
            stored = {name: os.getxattr(place, name) for name in map(os.fsencode, _listxattr(place))}
            target = os.readlink(b"", dir_fd=fd) if stat.S_ISLNK(st.st_mode) else b""
        if marks.is_whiteout_device(st) or not stored.keys().isdisjoint(self._spelling.whiteout):
            return Record(path, "w")
        owner = parse_override(stored.get(OVERRIDE, b"")) if self._has_overrides else None
        uid, gid, mode, rdev = owner or (st.st_uid, st.st_gid, st.st_mode, st.st_rdev)
        kind = _KINDS[stat.S_IFMT(mode)]
        is_device = kind in "cb"
        return Record(
            path,
            kind,
            stat.S_IMODE(mode),
            uid,
            gid,
            st.st_size if kind == "f" else 0,
            st.st_mtime_ns,
            target,
            self._content(path) if kind == "f" else b"",
            (os.major(rdev), os.minor(rdev)) if is_device else (0, 0),
            self._shown(stored),
            self._is_opaque(path, stored),
        )

    def _shown(self, stored: dict[bytes, bytes]) -> dict[bytes, bytes]:
        names = ((name, marks.shown_xattr(name, self._spelling)) for name in stored)
        return {shown: stored[name] for name, shown in names if shown is not None}

    def _is_opaque(self, path: bytes, stored: dict[bytes, bytes]) -> bool:
        """An xattr marks an opaque directory; for the root a file does, as overlays ignore the xattr there."""
        if not path:
            return marks.OPAQUE_NAME in self._names(path)
        return any(stored.get(mark) == b"y" for mark in self._spelling.opaque)

    def _content(self, path: bytes) -> bytes:
        hashed = xxhash.xxh3_128()
        with self._opened(path, _OPEN_FILE) as fd:
            for piece in pieces(fd, os.fstat(fd)):
                hashed.update(piece.data)
        return hashed.digest()

    @contextmanager
    def _opened(self, path: bytes, flags: int) -> Iterator[int]:
        fd = open_beneath(self._root, path, flags)
        try:
            yield fd
        finally:
            os.close(fd)


def _listxattr(place: bytes) -> list[str]:
    try:
        return os.listxattr(place)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []
