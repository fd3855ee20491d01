"""What does the mount know of a file that the kernel knows?

An `Inode` lives as long as the kernel holds lookups of it, or somebody needs it as the parent of such a one. All
changes happen on the thread that owns the `State`.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from ..tree.fileflags import Inheritance
from ..tree.metadata import CAPABILITY
from ..tree.syscalls import Stat
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


class AttributeChanges(NamedTuple):
    """What a setattr asks for; None leaves a field alone. `ctime_ns` cannot be set and is ignored.

    `by_writing` says that anybody who writes to the file may ask for it: the present as both times, or to lose setuid.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    by_writing: bool = False


# The kernel's struct fuse_attr (linux/fuse.h): ino, size, blocks; seconds of atime, mtime, ctime, their nanoseconds;
# mode, nlink, uid, gid, rdev, blksize, flags.
_FUSE_ATTR: Final = struct.Struct("<3Q3q3I7I")
_TIMES: Final = struct.Struct("<24x3q3I").unpack_from
_U64: Final = struct.Struct("<Q").unpack_from
_U32: Final = struct.Struct("<I").unpack_from
_S: Final = 1_000_000_000  # ns
_DAY_S: Final = 86_400


def encode_device(device: int) -> int:
    """A device number in 32 bits, as the kernel's new_encode_dev."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_device(encoded: int) -> int:
    return os.makedev(encoded >> 8 & 0xFFF, encoded & 0xFF | encoded >> 12 & 0xFFF00)


class Attributes(bytes):
    """stat(2) of a file in the merged tree, as the 88 bytes that FUSE sends: a reply is then a join of bytes."""

    __slots__ = ()

    @classmethod
    def pack(
        cls,
        ino: int,
        mode: int,
        nlink: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        size: int = 0,
        blocks: int = 0,
        blksize: int = 4096,
        atime_ns: int = 0,
        mtime_ns: int = 0,
        ctime_ns: int = 0,
    ) -> Attributes:
        """Times in ns since the epoch, `size` in bytes, `blocks` of 512 bytes."""
        atime, atime_rest = divmod(atime_ns, _S)
        mtime, mtime_rest = divmod(mtime_ns, _S)
        ctime, ctime_rest = divmod(ctime_ns, _S)
        return cls(
            _FUSE_ATTR.pack(
                ino, size, blocks, atime, mtime, ctime, atime_rest, mtime_rest, ctime_rest,
                mode, nlink, uid, gid, encode_device(rdev) if rdev else 0, blksize, 0,
            )
        )  # fmt: skip

    @classmethod
    def as_on_disk(cls, number: int, st: Stat, links: int, blocks: int) -> Attributes:
        """Of a file whose owner, mode, size and times are shown as they are."""
        (atime, atime_rest), (mtime, mtime_rest), (ctime, ctime_rest) = (
            divmod(time_ns, _S) for time_ns in (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
        )
        return cls(
            _FUSE_ATTR.pack(
                number, st.st_size, blocks, atime, mtime, ctime, atime_rest, mtime_rest, ctime_rest,
                st.st_mode, links, st.st_uid, st.st_gid,
                encode_device(st.st_rdev) if st.st_rdev else 0, st.st_blksize, 0,
            )
        )  # fmt: skip

    def changed(self, **fields: int) -> Attributes:
        """With some of the arguments of `pack` different."""
        names = ("ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blocks", "blksize")
        times = ("atime_ns", "mtime_ns", "ctime_ns")
        return Attributes.pack(**{name: getattr(self, name) for name in names + times} | fields)

    @property
    def may_move_when_read(self) -> bool:
        """Whether a read moves the access time under relatime (mount(8)): it is no later than another, or a day old."""
        atime, mtime, ctime, atime_rest, mtime_rest, ctime_rest = _TIMES(self)
        accessed = atime, atime_rest
        return accessed <= (mtime, mtime_rest) or accessed <= (ctime, ctime_rest) or atime < time.time() - _DAY_S

    def _field(self, index: int) -> int:
        return int(_FUSE_ATTR.unpack(self)[index])

    @property
    def ino(self) -> int:
        (ino,) = _U64(self)
        return int(ino)

    @property
    def size(self) -> int:
        (size,) = _U64(self, 8)
        return int(size)

    @property
    def blocks(self) -> int:
        return self._field(2)

    @property
    def atime_ns(self) -> int:
        return self._field(3) * _S + self._field(6)

    @property
    def mtime_ns(self) -> int:
        return self._field(4) * _S + self._field(7)

    @property
    def ctime_ns(self) -> int:
        return self._field(5) * _S + self._field(8)

    @property
    def mode(self) -> int:
        (mode,) = _U32(self, 60)
        return int(mode)

    @property
    def nlink(self) -> int:
        (nlink,) = _U32(self, 64)
        return int(nlink)

    @property
    def uid(self) -> int:
        return self._field(11)

    @property
    def gid(self) -> int:
        return self._field(12)

    @property
    def rdev(self) -> int:
        return decode_device(self._field(13))

    @property
    def blksize(self) -> int:
        return self._field(14)

    @property
    def directory_type(self) -> int:
        """The d_type of readdir(3): the file type, S_IFMT shifted right by 12."""
        return self[61] >> 4


class Inode:
    """A file of the merged tree that is not a directory, or the part that directories share.

    Invariants: `upper` says that the file is in the upper layer (or, unlinked, was; then `State.orphans` holds its
    descriptor). `parent` and `name` are one name it has, None and empty when it has none; `aliases` are further
    names that were looked up; a hard-linked file may have more, see `names_left`. `lower` is the visible file of the
    lower layers, kept after copy-up only while a metacopy needs its data, and for a file in the index. Such a file
    (`index_name`) is reached through its entry there, whatever names are known. `attributes` is None when they must
    be read again.
    """

    __slots__ = (
        "_lower",
        "aliases",
        "attributes",
        "index_name",
        "kind",
        "lost_links",
        "metacopy",
        "name",
        "nlookup",
        "number",
        "opens",
        "parent",
        "protection",
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
        self._lower: Location | int | None = None  # int: which layer of its parent has it, under its own name
        self.metacopy = False  # upper holds only metadata, data is below
        self.index_name: bytes | None = None  # hard-linked in a lower layer and copied up: its entry in the index
        self.lost_links = 0  # links on disk that are no names in the merged tree (negative: names not on disk)
        self.shared_as: list[tuple[int, int, int]] | None = None  # its keys in State.by_real
        self.nlookup = 0
        self.opens = 0
        self.attributes: Attributes | None = None
        self.xattr_names: tuple[bytes, ...] | None = None  # as stored; None: not read yet
        self.protection: int | None = None  # immutable, append-only; None: not read yet (see protection.flags_of)

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def lower(self) -> Location | None:
        """The visible file of the lower layers."""
        found = self._lower
        if not isinstance(found, int):
            return found
        assert self.parent is not None
        return self.parent.lowers[found].child(self.name)

    @lower.setter
    def lower(self, location: Location | None) -> None:
        self._lower = location

    @property
    def lower_layer(self) -> int:
        """The layer that `lower` is in."""
        found = self._lower
        if isinstance(found, int):
            assert self.parent is not None
            return self.parent.lowers[found].layer
        assert found is not None
        return found.layer

    def provided_by(self, position: int) -> None:
        """It is the file of its name in one of its parent's lowers: said in a few bytes, as most files are that."""
        self._lower = position

    def note_lost_privileges(self) -> None:
        """Content or owner change, which takes capabilities away: attributes and capabilities must be read again."""
        self.attributes = None
        if self.xattr_names and CAPABILITY in self.xattr_names:
            self.xattr_names = None

    def names(self) -> Iterator[tuple[Directory, bytes]]:
        """Every known name; none for an unlinked file and for the root."""
        if self.parent is not None:
            yield self.parent, self.name
        if self.aliases:
            yield from self.aliases

    def names_left(self, st: Stat) -> int:
        """How many names the merged tree has of the file, known or not; `st` is what stat says of it on disk."""
        return max(st.st_nlink - self.lost_links, 0)

    def add_name(self, parent: Directory, name: bytes) -> None:
        if self.parent is None:
            self.parent, self.name = parent, name
        elif (parent, name) not in self.names():
            self.aliases = [*(self.aliases or ()), (parent, name)]

    def remove_name(self, parent: Directory, name: bytes) -> None:
        if (self.parent, self.name) == (parent, name):
            self.lower = self.lower
            if self.aliases:
                (self.parent, self.name), self.aliases = self.aliases[0], self.aliases[1:] or None
            else:
                self.parent, self.name = None, b""
        elif self.aliases:
            self.aliases = [alias for alias in self.aliases if alias != (parent, name)] or None


class Listing:
    """The names of a directory in the order they are shown in, each with the offset that resumes after it.

    Offsets only grow, so they stay good while names come and go. Invariant: both are in the same order.
    """

    __slots__ = ("names", "offsets")

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.offsets: array[int] = array("Q")


class Directory(Inode):
    """A directory: in the upper, in any number of lower layers, or both.

    Invariants: `lowers` are all lower directories merged here, top first, and never change but by `make_opaque`.
    `above` and `below` are what the upper and the merged lowers hold, None until read; `above` is kept current by
    every operation, `below` never changes. Only where lower layers change under the mount, both are looked at anew;
    `seen` is device, number and ctime of each of `lowers` before `below` was read. `children` are the live inodes by
    name. `lower_path` is where the lower layers have this directory, seen without the upper: what a redirect to it
    must say. `listing` is what readers of the directory were shown.
    """

    __slots__ = (
        "above",
        "below",
        "children",
        "default_acl",
        "impure",
        "inheritance",
        "listing",
        "lower_path",
        "lowers",
        "seen",
    )

    def __init__(self, number: int, parent: Directory | None, name: bytes) -> None:
        super().__init__(number, stat.S_IFDIR, parent, name)
        self.lowers: tuple[Location, ...] = ()
        self.lower_path = b""
        self.above: dict[bytes, Kind] | None = None
        self.below: dict[bytes, Candidates] | None = None
        self.children: dict[bytes, Inode] = {}
        self.default_acl: bytes | bool | None = False  # False: not read yet
        self.inheritance: Inheritance | None = None  # of a directory in the upper; None: not read yet
        self.impure = False  # its part in the upper has that mark, or cannot have it
        self.listing: Listing | None = None
        self.seen: list[tuple[int, int, int]] | None = None
