"""What does the mount know of a file that the kernel knows?

An `Inode` lives as long as the kernel holds lookups of it, or somebody needs it as the parent of such a one. All
changes happen on the thread that owns the `State`.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from .layer import Location
from .merge import Candidates, Kind

ROOT: Final = 1


class Caller(NamedTuple):
    """Who asks: the ids are those seen inside the mount."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0
    groups: frozenset[int] = frozenset()  # supplementary; only filled in where they count


class Attributes(NamedTuple):
    """stat(2) of a file in the merged tree; times in ns since the epoch, `size` in bytes, `blocks` of 512 bytes."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class AttributeChanges:
    """What a setattr asks for; None leaves a field alone. `ctime_ns` cannot be set and is ignored."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


# The kernel's struct fuse_attr (linux/fuse.h): what the fast path sends, and the smallest form to keep.
_PACKED = struct.Struct("<6Q3i7I")


class Packed:
    """Attributes as 88 bytes in the layout of struct fuse_attr."""

    @staticmethod
    def pack(a: Attributes) -> bytes:
        atime_s, atime_ns = divmod(a.atime_ns, 1_000_000_000)
        mtime_s, mtime_ns = divmod(a.mtime_ns, 1_000_000_000)
        ctime_s, ctime_ns = divmod(a.ctime_ns, 1_000_000_000)
        mask = 0xFFFF_FFFF_FFFF_FFFF  # times before 1970 are two's complement
        rdev = os.minor(a.rdev) & 0xFF | os.major(a.rdev) << 8 | (os.minor(a.rdev) & ~0xFF) << 12
        return _PACKED.pack(
            a.ino, a.size, a.blocks, atime_s & mask, mtime_s & mask, ctime_s & mask,
            atime_ns, mtime_ns, ctime_ns, a.mode, a.nlink, a.uid, a.gid, rdev, a.blksize, 0,
        )  # fmt: skip

    @staticmethod
    def unpack(packed: bytes) -> Attributes:
        ino, size, blocks, atime, mtime, ctime, an, mn, cn, mode, nlink, uid, gid, rdev, blksize, _ = _PACKED.unpack(
            packed
        )
        device = os.makedev(rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00)
        return Attributes(
            ino,
            mode,
            nlink,
            uid,
            gid,
            device,
            size,
            blocks,
            blksize,
            _time(atime, an),
            _time(mtime, mn),
            _time(ctime, cn),
        )


def _time(seconds: int, nanoseconds: int) -> int:
    if seconds >> 63:
        seconds -= 1 << 64
    return seconds * 1_000_000_000 + nanoseconds


class Inode:
    """A file of the merged tree that is not a directory, or the part that directories share.

    Invariants: `upper` says that the file is in the upper layer (or, unlinked, was; then `State.orphans` holds its
    descriptor). `parent` and `name` are one name it has, None and empty when it has none; `aliases` are further
    names that were looked up. `lower` is the visible file of the lower layers, kept after copy-up only while a
    metacopy needs its data. `packed` is None when attributes must be read again.
    """

    __slots__ = (
        "aliases",
        "index_name",
        "kind",
        "lost_links",
        "lower",
        "metacopy",
        "name",
        "nlookup",
        "number",
        "opens",
        "packed",
        "parent",
        "shared_as",
        "upper",
        "xattr_names",
    )

    def __init__(self, number: int, kind: int, parent: Directory | None, name: bytes) -> None:
        self.number = number
        self.kind = kind  # stat.S_IFMT bits
        self.parent = parent
        self.name = name
        self.aliases: list[tuple[Directory, bytes]] | None = None
        self.upper = False
        self.lower: Location | None = None
        self.metacopy = False  # upper holds only metadata, data is below
        self.index_name: bytes | None = None  # hard-linked in a lower layer and copied up: its entry in the index
        self.lost_links = 0  # links on disk that are no names in the merged tree (negative: names not on disk)
        self.shared_as: list[tuple[int, int, int]] | None = None  # its keys in State.by_real
        self.nlookup = 0
        self.opens = 0
        self.packed: bytes | None = None
        self.xattr_names: tuple[bytes, ...] | None = None  # as stored; None: not read yet

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    def names(self) -> Iterator[tuple[Directory, bytes]]:
        """Every known name; none for an unlinked file and for the root."""
        if self.parent is not None:
            yield self.parent, self.name
        if self.aliases:
            yield from self.aliases

    def add_name(self, parent: Directory, name: bytes) -> None:
        if self.parent is None:
            self.parent, self.name = parent, name
        elif (parent, name) not in self.names():
            self.aliases = [*(self.aliases or ()), (parent, name)]

    def remove_name(self, parent: Directory, name: bytes) -> None:
        if (self.parent, self.name) == (parent, name):
            if self.aliases:
                (self.parent, self.name), self.aliases = self.aliases[0], self.aliases[1:] or None
            else:
                self.parent, self.name = None, b""
        elif self.aliases:
            self.aliases = [alias for alias in self.aliases if alias != (parent, name)] or None


class Directory(Inode):
    """A directory: in the upper, in any number of lower layers, or both.

    Invariants: `lowers` are all lower directories merged here, top first, and never change but by `make_opaque`.
    `above` and `below` are what the upper and the merged lowers hold, None until read; `above` is kept current by
    every operation, `below` never changes. `children` are the live inodes by name. `lower_path` is where the lower
    layers have this directory, seen without the upper: what a redirect to it must say.
    """

    __slots__ = ("above", "below", "children", "default_acl", "lower_path", "lowers")

    def __init__(self, number: int, parent: Directory | None, name: bytes) -> None:
        super().__init__(number, stat.S_IFDIR, parent, name)
        self.lowers: tuple[Location, ...] = ()
        self.lower_path = b""
        self.above: dict[bytes, Kind] | None = None
        self.below: dict[bytes, Candidates] | None = None
        self.children: dict[bytes, Inode] = {}
        self.default_acl: bytes | bool | None = False  # False: not read yet

    @property
    def merged(self) -> bool:
        return self.upper and bool(self.lowers)
