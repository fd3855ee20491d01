"""Which owner does a file have on disk, and which does the mount show?

Two independent translations: id maps and squashing (options), and override xattrs, in which rootless engines keep
the owner, mode and type that they may not give a file (containers/storage, fuse-overlayfs). An id that no map has is
the overflow id on the other side, as in fuse-overlayfs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence

from overlayfs._typing import Final, NamedTuple

from ..tree import marks, metadata, xattrs
from ..tree.syscalls import Stat
from .options import IdRange, OverlayOptions

_OVERFLOW_ID: Final = 65534
_TYPES: Final = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "pipe": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
}


def exchanged_with_root(own: int) -> tuple[IdRange, ...]:
    """An id map in which root and `own` change places: so an ordinary user may change an image, as its root."""
    from .option_text import MAX_ID

    ranges = (IdRange(own, 0, 1), IdRange(0, own, 1), IdRange(1, 1, own - 1), IdRange(own + 1, own + 1, MAX_ID - own))
    return tuple(ids for ids in ranges if ids.size > 0)


class Owner(NamedTuple):
    """Owner, mode (type included) and device number of a file as the mount shows them."""

    uid: int
    gid: int
    mode: int
    rdev: int


class Ownership:
    """Translates owners between disk and mount by the mount's options.

    `own_uid` and `own_gid` are the ids that new files get by themselves: this process never changes its own.
    """

    def __init__(self, options: OverlayOptions) -> None:
        self._uid_map, self._gid_map = options.uid_map, options.gid_map
        self._squash_uid, self._squash_gid = options.squash_uid, options.squash_gid
        self.own_uid, self.own_gid = os.geteuid(), os.getegid()
        self.plain = not (self._uid_map or self._gid_map) and self._squash_uid is None and self._squash_gid is None

    def shown_uid(self, uid: int) -> int:
        return _shown(uid, self._uid_map) if self._squash_uid is None else self._squash_uid

    def shown_gid(self, gid: int) -> int:
        return _shown(gid, self._gid_map) if self._squash_gid is None else self._squash_gid

    def disk_uid(self, uid: int) -> int:
        return _disk(uid, self._uid_map) if self._squash_uid is None else self.own_uid

    def disk_gid(self, gid: int) -> int:
        return _disk(gid, self._gid_map) if self._squash_gid is None else self.own_gid

    def shown_value(self, xattr: bytes, value: bytes) -> bytes:
        """The value of an xattr on disk as the mount shows it: ACLs and capabilities hold ids."""
        return self._translated(xattr, value, self.shown_uid, self.shown_gid)

    def disk_value(self, xattr: bytes, value: bytes) -> bytes:
        """What `shown_value` would show as this value; EINVAL where it is a malformed ACL."""
        return self._translated(xattr, value, self.disk_uid, self.disk_gid)

    def _translated(self, xattr: bytes, value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
        if self.plain:
            return value
        if xattr in (metadata.ACCESS_ACL, metadata.DEFAULT_ACL):
            return metadata.map_acl(value, uid, gid)
        if xattr == metadata.CAPABILITY and self._squash_uid is None:  # never root's for being squashed to root
            return metadata.map_capability(value, uid)
        return value


def _shown(disk: int, ranges: Sequence[IdRange]) -> int:
    for item in ranges:
        if item.disk <= disk < item.disk + item.size:
            return disk - item.disk + item.shown
    return _OVERFLOW_ID if ranges else disk


def _disk(shown: int, ranges: Sequence[IdRange]) -> int:
    for item in ranges:
        if item.shown <= shown < item.shown + item.size:
            return shown - item.shown + item.disk
    return _OVERFLOW_ID if ranges else shown


def override_name(root_fd: int) -> bytes | None:
    """The override xattr that a layer uses: the one on its root directory."""
    names = (name for name in marks.OVERRIDE_NAMES if xattrs.read_xattr_of_descriptor(root_fd, name) is not None)
    return next(names, None)


def parse_override(value: bytes) -> Owner | None:
    """`uid:gid:octalmode[:type]`; None where it is malformed, which then counts as absent."""
    fields = value.decode("ascii", "replace").split(":")
    try:
        uid, gid, mode = int(fields[0]), int(fields[1]), int(fields[2], 8)
    except (IndexError, ValueError):
        return None
    if not (0 <= uid < 1 << 32 and 0 <= gid < 1 << 32 and 0 <= mode <= 0o177777):
        return None
    kind, rdev = _parse_type(fields[3] if len(fields) > 3 else "")
    return Owner(uid, gid, stat.S_IMODE(mode) | (kind or stat.S_IFMT(mode)), rdev)


def bare_owner(st: Stat) -> Owner:
    """The owner of what can hold no override xattr, in a layer that has them.

    Its maker could not give such a file to anybody: where that is an ordinary user, their own ids stand for root's.
    """
    if os.geteuid() == 0:
        return Owner(st.st_uid, st.st_gid, st.st_mode, st.st_rdev)
    uid = 0 if st.st_uid == os.geteuid() else st.st_uid
    gid = 0 if st.st_gid == os.getegid() else st.st_gid
    return Owner(uid, gid, st.st_mode, st.st_rdev)


def _parse_type(text: str) -> tuple[int, int]:
    name, _, numbers = text.partition("-")
    if name in ("block", "char"):
        major, _, minor = numbers.partition("-")
        if major.isdigit() and minor.isdigit():
            return (stat.S_IFBLK if name == "block" else stat.S_IFCHR), os.makedev(int(major), int(minor))
    return _TYPES.get(name, 0), 0


def format_override(owner: Owner) -> bytes:
    kind = stat.S_IFMT(owner.mode)
    names = {value: name for name, value in _TYPES.items()}
    if kind in (stat.S_IFBLK, stat.S_IFCHR):
        prefix = "block" if kind == stat.S_IFBLK else "char"
        text = f"{prefix}-{os.major(owner.rdev)}-{os.minor(owner.rdev)}"
    else:
        text = names.get(kind, "file")
    return f"{owner.uid}:{owner.gid}:{stat.S_IMODE(owner.mode):o}:{text}".encode()
