# cython: language_level=3, annotation_typing=False
"""How are owner, mode, xattrs, ACLs and times copied, inherited and translated?

Works on descriptors (O_PATH is enough), so that no path is resolved twice and no symlink followed.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable

from overlayfs._typing import Final, NamedTuple

from . import access, marks, syscalls, xattrs
from .syscalls import Stat

ACCESS_ACL: Final = b"system.posix_acl_access"
DEFAULT_ACL: Final = b"system.posix_acl_default"
CAPABILITY: Final = b"security.capability"

# linux/posix_acl_xattr.h: u32 version 2, then entries of u16 tag, u16 perm, u32 id.
_ACL_VERSION: Final = 2
_ACL_ENTRY: Final = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

# linux/capability.h, struct vfs_ns_cap_data: u32 whose highest byte is the revision, 16 bytes of sets; in revision 3
# also u32 rootid.
_CAPABILITY: Final = struct.Struct("<I16s")
_CAPABILITY_WITH_ROOT: Final = struct.Struct("<I16sI")
_REVISION, _REVISION_2, _REVISION_3 = 0xFF000000, 0x02000000, 0x03000000

# An xattr that cannot be stored in the upper may be left out of a copy-up, but never one of these (as the kernel's
# ovl_must_copy_xattr).
_NEVER_LOST: Final = (b"system.posix_acl", b"security.capability", b"user.", b"trusted.")


class AclEntry(NamedTuple):
    tag: int
    perm: int
    id: int


def parse_acl(value: bytes) -> list[AclEntry]:
    """The entries of a POSIX ACL xattr; raises EINVAL where it is malformed."""
    if len(value) < 4 or (len(value) - 4) % _ACL_ENTRY.size or struct.unpack_from("<I", value)[0] != _ACL_VERSION:
        raise OSError(errno.EINVAL, "malformed ACL")
    return [AclEntry(*entry) for entry in _ACL_ENTRY.iter_unpack(value[4:])]


def format_acl(entries: Iterable[AclEntry]) -> bytes:
    return struct.pack("<I", _ACL_VERSION) + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries)


def map_acl(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """The ACL with its user and group ids translated."""

    def translate(entry: AclEntry) -> AclEntry:
        if entry.tag == _USER:
            return entry._replace(id=uid(entry.id))
        return entry._replace(id=gid(entry.id)) if entry.tag == _GROUP else entry

    return format_acl(translate(entry) for entry in parse_acl(value))


def map_capability(value: bytes, uid: Callable[[int], int]) -> bytes:
    """File capabilities with their root id translated: they count in the user namespace of that root.

    Revision 2 has no root id and means 0. A value in no known format stays as it is.
    """
    if len(value) == _CAPABILITY.size:
        (head, sets), root = _CAPABILITY.unpack(value), 0
    elif len(value) == _CAPABILITY_WITH_ROOT.size:
        head, sets, root = _CAPABILITY_WITH_ROOT.unpack(value)
    else:
        return value
    flags, root = head & ~_REVISION, uid(root)
    if root == 0:
        return _CAPABILITY.pack(_REVISION_2 | flags, sets)
    return _CAPABILITY_WITH_ROOT.pack(_REVISION_3 | flags, sets, root)


class Inherited(NamedTuple):
    """The permission bits of a new file, and the ACL xattrs to set on it."""

    mode: int
    acls: tuple[tuple[bytes, bytes], ...] = ()


def inherit_acl(default_acl: bytes | None, mode: int, umask: int) -> Inherited:
    """Mode and ACLs of a new file: POSIX.1e section 23.1.5; a default ACL replaces the umask."""
    if stat.S_ISLNK(mode):
        return Inherited(mode)
    if default_acl is None:
        return Inherited(mode & ~umask)
    masked, entries = _masked(parse_acl(default_acl), mode)
    acls: list[tuple[bytes, bytes]] = []
    if any(entry.tag in (_USER, _GROUP, _MASK) for entry in entries):
        acls.append((ACCESS_ACL, format_acl(entries)))
    if stat.S_ISDIR(mode):
        acls.append((DEFAULT_ACL, default_acl))
    return Inherited(masked, tuple(acls))


def _masked(entries: list[AclEntry], mode: int) -> tuple[int, list[AclEntry]]:
    has_mask = any(entry.tag == _MASK for entry in entries)
    shifts = {_USER_OBJ: 6, _OTHER: 0, _MASK if has_mask else _GROUP_OBJ: 3}
    masked = mode & ~0o777
    result = []
    for entry in entries:
        if entry.tag in shifts:
            entry = entry._replace(perm=entry.perm & (mode >> shifts[entry.tag]) & 7)
            masked |= entry.perm << shifts[entry.tag]
        result.append(entry)
    return masked, result


def set_owner(fd: int, uid: int, gid: int) -> None:
    """The owner of something that we just made where new files are ours."""
    if (uid, gid) != (os.geteuid(), os.getegid()):
        syscalls.set_owner(fd, uid, gid)


def set_mode(fd: int, mode: int) -> None:
    """Permission bits, after the owner, as chown clears some; `mode` with the type, as symlinks have none."""
    if not stat.S_ISLNK(mode):
        syscalls.set_mode(fd, stat.S_IMODE(mode))


def copy_metadata(
    source: int,
    target: int,
    uid: int,
    gid: int,
    mode: int,
    st: Stat,
    spelled: marks.Spelling,
    without: bytes = b"",
    present: tuple[bytes, ...] | None = None,
) -> None:
    """Give `target` an owner and mode, the xattrs of `source`, then the times in `st` (last: every step changes them).

    `present` are the names of all xattrs of `source`, None where they are to be read.
    Overlay marks, as the layer of `source` is `spelled`, are not copied, nor is the xattr `without`. To be called after
    the data is written: writing clears capabilities.
    """
    names = xattrs.list_xattrs_of_descriptor(source) if present is None else present
    set_owner(target, uid, gid)
    copy_xattrs(source, target, spelled, without, names)
    set_mode(target, mode)
    syscalls.copy_times(target, st)


def copy_xattrs(source: int, target: int, spelled: marks.Spelling, without: bytes, present: Iterable[bytes]) -> None:
    """Copy every xattr of those that are `present` that is not an overlay mark; escaped ones stay escaped."""
    for name in present:
        if name == without or (marks.shown_xattr(name, spelled) is None and name not in marks.OVERRIDE_NAMES):
            continue
        try:
            access.setxattr(target, name, access.getxattr(source, name))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM) or name.startswith(_NEVER_LOST):
                raise
