# cython: language_level=3, annotation_typing=False
"""How does a layer say "deleted", "opaque", "renamed from", "data is elsewhere"?

The one place that knows every spelling (formats: Linux Documentation/filesystems/overlayfs.rst, the OCI image
specification's layer.md, and fuse-overlayfs for its xattrs). Only classifies and writes; what a mark means for the
merged tree is the business of overlay/. Compiled; C types are in marks.pxd.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Callable
from enum import Enum
from functools import partial

from overlayfs._typing import Final, NamedTuple

from .fileflags import APPEND_ONLY, IMMUTABLE
from .syscalls import FileHandle, Stat, descriptor_path
from .xattrs import list_xattrs, list_xattrs_of_descriptor, read_xattr, read_xattr_of_descriptor

TRUSTED: Final = b"trusted.overlay."
USER: Final = b"user.overlay."
FUSE: Final = b"user.fuseoverlayfs."
PREFIXES: Final = (TRUSTED, USER, FUSE)
_OTHER: Final = {TRUSTED: USER, USER: TRUSTED}

WHITEOUT_PREFIX: Final = b".wh."
OPAQUE_NAME: Final = b".wh..wh..opq"
_AUFS_PREFIX: Final = b".wh..wh."

OPAQUE: Final = b"opaque"
WHITEOUT: Final = b"whiteout"
REDIRECT: Final = b"redirect"
METACOPY: Final = b"metacopy"
ORIGIN: Final = b"origin"
NLINK: Final = b"nlink"
PROTECTION: Final = b"protattr"
IMPURE: Final = b"impure"
# Ours: the inode number that the file had before it was copied up (u64, little-endian).
NUMBER: Final = b"overlayfs.number"
# Ours: how many links the lower file has that this one was copied from (u64, little-endian).
LOWER_LINKS: Final = b"overlayfs.lower-links"

OVERRIDE_NAMES: Final = (
    b"user.containers.override_stat",
    b"user.fuseoverlayfs.override_stat",
    b"security.fuseoverlayfs.override_stat",
)
LONGEST_REDIRECT: Final = 256
_ESCAPE: Final = b"overlay."


class MissingDataError(OSError):
    """The data-only layers do not hold the data of a file: ENOENT where it is opened, as in the kernel's overlayfs."""

    def __init__(self, path: bytes) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT), path)


class MalformedMarkError(OSError):
    """A malformed mark, which is not followed: EIO, as in the kernel's overlayfs."""

    def __init__(self, reason: str, value: bytes) -> None:
        super().__init__(errno.EIO, reason, value)


class Opacity(Enum):
    """The values of a directory's opaque mark."""

    TRANSPARENT = "transparent"
    OPAQUE = "opaque"
    XATTR_WHITEOUTS = "xattr whiteouts inside"


class Spelling(NamedTuple):
    """Which xattrs of a layer are marks, by their full names.

    A mount has one prefix of its own. In an upper only marks of that prefix count, so that nothing which a user of the
    mount sets is one. Lower layers may have been written by a mount of the other prefix: there what hides (`opaque`, of
    which the first that is present counts, and `whiteout`) is read in every spelling, so it is not shown (`foreign`).
    Marks that lead elsewhere (redirect, metacopy) are ignored under the other prefix: a user who may set them there
    could read any lower file.
    """

    prefix: bytes
    is_upper: bool
    opaque: tuple[bytes, ...]
    whiteout: tuple[bytes, ...]
    foreign: frozenset[bytes]


def _spelling(prefix: bytes, is_upper: bool) -> Spelling:
    prefixes = (prefix,) if is_upper else (prefix, _OTHER[prefix])
    opaque, whiteout = (tuple(here + mark for here in prefixes) for mark in (OPAQUE, WHITEOUT))
    return Spelling(prefix, is_upper, (*opaque, FUSE + OPAQUE), whiteout, frozenset(opaque[1:] + whiteout[1:]))


_SPELLINGS: Final = {(at, is_upper): _spelling(at, is_upper) for at in (TRUSTED, USER) for is_upper in (False, True)}


def spelling(prefix: bytes, is_upper: bool) -> Spelling:
    """Of a layer in a mount whose own prefix is TRUSTED or USER."""
    return _SPELLINGS[prefix, is_upper]


def own_prefix(fd: int) -> bytes:
    """The prefix that a mount by this process uses where it is not told which, on the filesystem of `fd`.

    Nothing is written there to find out.
    """
    try:
        os.getxattr(descriptor_path(fd), TRUSTED + OPAQUE)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return USER
    return TRUSTED if _may_set_trusted() else USER


def _may_set_trusted() -> bool:
    """True with CAP_SYS_ADMIN outside of user namespaces. Of a pipe, which has no xattrs, everybody else is refused by
    xattr_permission (fs/xattr.c), which comes before the filesystem."""
    ends = os.pipe()
    try:
        os.setxattr(ends[0], TRUSTED + OPAQUE, b"")
    except OSError as error:
        return error.errno != errno.EPERM
    finally:
        for end in ends:
            os.close(end)
    return True


class Marks(NamedTuple):
    """The overlay xattrs of one file in one layer, and the stored names of all its xattrs."""

    names: tuple[bytes, ...] = ()
    opacity: Opacity = Opacity.TRANSPARENT
    redirect: bytes | None = None
    metacopy_value: bytes | None = None
    number: int | None = None
    nlink: bytes | None = None
    lower_links: int | None = None
    protection: int = 0

    @property
    def metacopy(self) -> bool:
        """True where only a file's metadata is here. EIO where the value is neither empty nor a whole header, as the
        kernel's ovl_check_metacopy_xattr."""
        value = self.metacopy_value
        if value and (len(value) < 4 or value[0] != 0 or value[1] != len(value)):
            raise MalformedMarkError("malformed metacopy", value)
        return value is not None


NO_MARKS: Final = Marks()


def is_whiteout_device(st: Stat | os.stat_result) -> bool:
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def is_whiteout(dir_fd: int, name: bytes, st: Stat, spelled: Spelling) -> bool:
    """True for a whiteout that is a file under the name that it hides: a device, or a file with the xattr. Both are
    empty."""
    return is_whiteout_device(st) or (may_be_xattr_whiteout(st) and has_whiteout_xattr(dir_fd, name, spelled))


def is_reserved_name(name: bytes) -> bool:
    """True for every name that means something to OCI or AUFS readers and so cannot be a file's name here."""
    return name.startswith(WHITEOUT_PREFIX)


def whited_out_name(name: bytes) -> bytes | None:
    """The name that the OCI whiteout file `name` deletes, None where it deletes none."""
    if not name.startswith(WHITEOUT_PREFIX) or name.startswith(_AUFS_PREFIX):
        return None
    return name[len(WHITEOUT_PREFIX) :] or None


def oci_whiteout(name: bytes) -> bytes:
    return WHITEOUT_PREFIX + name


def shown_xattr(stored: bytes, spelled: Spelling) -> bytes | None:
    """The name under which a stored xattr is seen inside the mount, None where it is hidden."""
    prefix = spelled.prefix
    if stored.startswith(prefix):
        rest = stored[len(prefix) :]
        return prefix + rest[len(_ESCAPE) :] if rest.startswith(_ESCAPE) else None
    return None if _is_reserved(stored, spelled) else stored


def stored_xattr(shown: bytes, spelled: Spelling) -> bytes | None:
    """The name under which an xattr seen inside the mount is stored, None where it may not exist.

    Xattrs of the mount's own prefix are escaped as the kernel does since 6.7, so that overlays can be nested.
    """
    prefix = spelled.prefix
    if shown.startswith(prefix):
        return prefix + _ESCAPE + shown[len(prefix) :]
    return None if _is_reserved(shown, spelled) else shown


def _is_reserved(name: bytes, spelled: Spelling) -> bool:
    return name.startswith(FUSE) or name in OVERRIDE_NAMES or name in spelled.foreign


def read_marks(dir_fd: int, name: bytes, spelled: Spelling) -> Marks:
    """The marks of `name` in `dir_fd`; one system call where it has none."""
    names = list_xattrs(dir_fd, name)
    return _marks(names, partial(read_xattr, dir_fd, name), spelled) if names else NO_MARKS


def read_marks_of_descriptor(fd: int, spelled: Spelling) -> Marks:
    """The marks of what the descriptor (O_PATH is enough) refers to."""
    names = list_xattrs_of_descriptor(fd)
    return _marks(names, partial(read_xattr_of_descriptor, fd), spelled) if names else NO_MARKS


def _marks(names: tuple[bytes, ...], read: Callable[[bytes], bytes | None], spelled: Spelling) -> Marks:
    present = [name for name in names if name.startswith(PREFIXES)]
    if not present:
        return Marks(names)

    def value(mark: bytes) -> bytes | None:
        name = spelled.prefix + mark
        return read(name) if name in present else None

    opaque = next((name for name in spelled.opaque if name in present), None)
    return Marks(
        names,
        opacity=_opacity(None if opaque is None else read(opaque)),
        redirect=value(REDIRECT),
        metacopy_value=value(METACOPY),
        number=_integer(value(NUMBER)),
        nlink=value(NLINK),
        lower_links=_integer(value(LOWER_LINKS)),
        protection=protection_of_value(value(PROTECTION)),
    )


def integer_value(number: int) -> bytes:
    """An integer as our own marks hold it."""
    return number.to_bytes(8, "little")


def _integer(value: bytes | None) -> int | None:
    return struct.unpack("<Q", value)[0] if value is not None and len(value) == 8 else None


def protection_value(flags: int) -> bytes:
    """Immutable and append-only as the kernel's ovl_set_protattr (fs/overlayfs/util.c) writes them: on the file in the
    upper itself they would stand in our way, too."""
    return (b"a" if flags & APPEND_ONLY else b"") + (b"i" if flags & IMMUTABLE else b"")


def protection_of_value(value: bytes | None) -> int:
    """The flags that a protattr xattr stands for; none where it holds anything else, as for the kernel."""
    if value is None or value.strip(b"ai"):
        return 0
    return (APPEND_ONLY if b"a" in value else 0) | (IMMUTABLE if b"i" in value else 0)


def _opacity(value: bytes | None) -> Opacity:
    if value == b"y":
        return Opacity.OPAQUE
    return Opacity.XATTR_WHITEOUTS if value == b"x" else Opacity.TRANSPARENT


def has_whiteout_xattr(dir_fd: int, name: bytes, spelled: Spelling) -> bool:
    """True where the zero-size regular file `name` carries the xattr whiteout mark (any value)."""
    return any(read_xattr(dir_fd, name, mark) is not None for mark in spelled.whiteout)


def may_be_xattr_whiteout(st: Stat) -> bool:
    return st.st_size == 0 and stat.S_ISREG(st.st_mode)


def redirect_target(redirect: bytes, parent: bytes) -> bytes:
    """The path, from the overlay's root and without a leading slash, that a redirect in directory `parent` names.

    Raises EIO for anything but one name or an absolute path without `..`, NUL or empty components.
    """
    parts = redirect.split(b"/")
    absolute = parts[0] == b"" and len(parts) > 1
    names = parts[1:] if absolute else parts
    bad = any(name in (b"", b".", b"..") or b"\0" in name for name in names)
    if bad or len(redirect) > LONGEST_REDIRECT or (not absolute and len(parts) != 1):
        raise MalformedMarkError("malformed redirect", redirect)
    return b"/".join(names) if absolute or not parent else parent + b"/" + redirect


def origin_value(handle: FileHandle | None, filesystem_uuid: bytes) -> bytes:
    """An origin xattr: the kernel's struct ovl_fb (fs/overlayfs/overlayfs.h), or empty for "copied up, from where is
    unknown"."""
    if handle is None or handle.type < 0 or handle.type > 0xFF:
        return b""
    length = 21 + len(handle.bytes)
    if length > 0xFF:
        return b""
    return bytes((0, 0xFB, length, _ENDIAN, handle.type)) + filesystem_uuid + handle.bytes


_UUID: Final = slice(5, 21)
_ENDIAN: Final = int(sys.byteorder == "big")


def is_same_origin(one: bytes, other: bytes) -> bool:
    """Whether two origin xattrs name the same file: that of a filesystem whose UUID one of them does not tell is not
    asked for it."""
    uuids = {one[_UUID], other[_UUID]} - {bytes(16)}
    return (one[4:5], one[_UUID.stop :]) == (other[4:5], other[_UUID.stop :]) and len(uuids) < 2
