# cython: language_level=3, annotation_typing=False
"""Which flags does chattr(1) give a file, and how are they read and written?

Two ioctls carry the same flags: FS_IOC_GETFLAGS as an int, FS_IOC_FSGETXATTR in struct fsxattr (linux/fs.h). Works on
descriptors that are open for reading, but for `protecting_flags`, for which any will do. Thread-safe.
"""

from __future__ import annotations

import errno
import os
import struct

from overlayfs._typing import Final, NamedTuple

from . import access, syscalls

GETFLAGS: Final = 0x80086601
SETFLAGS: Final = 0x40086602
FSGETXATTR: Final = 0x801C581F
FSSETXATTR: Final = 0x401C5820
# Each with the size of its argument as the kernel's FUSE passes it: an int, or struct fsxattr.
FLAG_COMMANDS: Final = {GETFLAGS: 4, SETFLAGS: 4, FSGETXATTR: 28, FSSETXATTR: 28}
READER_OF: Final = {SETFLAGS: GETFLAGS, FSSETXATTR: FSGETXATTR}

# FS_*_FL; the bits of statx(2) for the same are equal
SYNC: Final = 0x08
IMMUTABLE: Final = 0x10
APPEND_ONLY: Final = 0x20
NODUMP: Final = 0x40
NOATIME: Final = 0x80
DIRSYNC: Final = 0x10000
PROTECTING: Final = IMMUTABLE | APPEND_ONLY
_COPIED: Final = SYNC | NODUMP | NOATIME | DIRSYNC  # what every filesystem with flags takes
_X_IMMUTABLE, _X_APPEND_ONLY = 0x08, 0x10  # FS_XFLAG_*
_BITS: Final = struct.Struct("<I")
_FSXATTR: Final = struct.Struct("<5I8x")  # xflags, extsize, nextents, projid, cowextsize
# What a directory hands on to what is made in it, of every filesystem: the s, u, c, S, d, A, m, j, t, D, C and x of
# chattr(1); and in struct fsxattr rtinherit, projinherit, nosymlinks, extszinherit, nodefrag and filestream.
_INHERITED: Final = 0x1 | 0x2 | 0x4 | SYNC | NODUMP | NOATIME | 0x400 | 0x4000 | 0x8000 | DIRSYNC | 0x800000 | 0x2000000
_X_PROJECT, _X_EXTENT_SIZE = 0x200, 0x1000
_X_INHERITED: Final = 0x100 | _X_PROJECT | 0x400 | _X_EXTENT_SIZE | 0x2000 | 0x4000
_NO_FLAGS_HERE: Final = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES)


def protecting_in(command: int, argument: bytes) -> int:
    """Which of PROTECTING the argument of an ioctl holds."""
    (bits,) = _BITS.unpack_from(argument)
    if command in (GETFLAGS, SETFLAGS):
        return int(bits & PROTECTING)
    return (IMMUTABLE if bits & _X_IMMUTABLE else 0) | (APPEND_ONLY if bits & _X_APPEND_ONLY else 0)


def with_protecting(command: int, argument: bytes, flags: int) -> bytes:
    """The argument with exactly these of PROTECTING in it."""
    (bits,) = _BITS.unpack_from(argument)
    if command in (GETFLAGS, SETFLAGS):
        bits = bits & ~PROTECTING | flags
    else:
        bits &= ~(_X_IMMUTABLE | _X_APPEND_ONLY)
        bits |= (_X_IMMUTABLE if flags & IMMUTABLE else 0) | (_X_APPEND_ONLY if flags & APPEND_ONLY else 0)
    return _BITS.pack(bits) + argument[_BITS.size :]


def control(fd: int, command: int, argument: bytes) -> bytes:
    """One of FLAG_COMMANDS; what the kernel leaves in the argument."""
    return syscalls.control(fd, command, argument)


def protecting_flags(dir_fd: int, name: bytes) -> int:
    """Which of PROTECTING `name` in `dir_fd` has on disk: one statx(2), which needs no open file."""
    try:
        return syscalls.file_attributes(dir_fd, name) & PROTECTING
    except PermissionError:
        with access.node(dir_fd, name) as fd:
            return syscalls.file_attributes(fd, b"") & PROTECTING


def copy_flags(source: int, target: int) -> bool:
    """Give a new file the flags of another that do not protect it; False where there were none. Flags that the
    filesystem of one of them does not know are left out, as by the kernel's ovl_copy_fileattr. Both may be O_PATH."""
    try:
        (wanted,) = _BITS.unpack(_control_node(source, GETFLAGS, bytes(_BITS.size)))
        if wanted & _COPIED:
            (has,) = _BITS.unpack(_control_node(target, GETFLAGS, bytes(_BITS.size)))
            _control_node(target, SETFLAGS, _BITS.pack(has | wanted & _COPIED))
    except OSError as error:
        if error.errno not in _NO_FLAGS_HERE:
            raise
        return False
    return bool(wanted & _COPIED)


def _control_node(fd: int, command: int, argument: bytes) -> bytes:
    try:
        return control(fd, command, argument)
    except OSError as error:
        if error.errno != errno.EBADF:  # O_PATH
            raise
    opened = open_to_control(fd)
    try:
        return control(opened, command, argument)
    finally:
        os.close(opened)


def open_to_control(fd: int) -> int:
    """A descriptor of the same file that takes ioctls; the caller closes it."""
    return access.reopen(fd, os.O_RDONLY | os.O_NONBLOCK)


# -- what a directory hands on


class Inheritance(NamedTuple):
    """The flags, extent size and project id that a new file inherits from its directory, beyond owner, mode and ACL."""

    flags: int = 0
    xflags: int = 0
    extent_size: int = 0
    project: int = 0

    def of_copy(self) -> Inheritance:
        """What a file gets that is not new, and has flags of its own: the project whose quota it counts for."""
        if self is NOTHING_INHERITED:
            return self
        return Inheritance(0, self.xflags & _X_PROJECT, 0, self.project)


NOTHING_INHERITED: Final = Inheritance()


def inheritance_of(fd: int) -> Inheritance:
    """What the directory hands on; NOTHING_INHERITED itself where that is nothing, as where its filesystem knows no
    flags. `fd` is open for reading."""
    try:
        found = _inheritance(fd)
    except OSError as error:
        if error.errno not in _NO_FLAGS_HERE:
            raise
        return NOTHING_INHERITED
    return NOTHING_INHERITED if found == NOTHING_INHERITED else found


def _inheritance(fd: int) -> Inheritance:
    (flags,) = _BITS.unpack(control(fd, GETFLAGS, bytes(_BITS.size)))
    xflags, extent_size, _, project, _ = _FSXATTR.unpack(control(fd, FSGETXATTR, bytes(_FSXATTR.size)))
    return Inheritance(
        flags & _INHERITED,
        xflags & _X_INHERITED,
        extent_size if xflags & _X_EXTENT_SIZE else 0,
        project if xflags & _X_PROJECT else 0,
    )


def hand_on(fd: int, wanted: Inheritance) -> bool:
    """Have a directory hand on exactly this; False where its filesystem does not let it, or not all. `fd` is open for
    reading."""
    done = True
    for change in (_set_project, _set_flags):  # the project first: without it a file may not be moved at all
        try:
            change(fd, wanted)
        except OSError as error:
            if error.errno not in _NO_FLAGS_HERE:
                raise
            done = False
    return done


def _set_project(fd: int, wanted: Inheritance) -> None:
    xflags, extent_size, extents, project, cow = _FSXATTR.unpack(control(fd, FSGETXATTR, bytes(_FSXATTR.size)))
    if (xflags & _X_INHERITED, extent_size, project) != wanted[1:]:
        xflags = xflags & ~_X_INHERITED | wanted.xflags
        control(fd, FSSETXATTR, _FSXATTR.pack(xflags, wanted.extent_size, extents, wanted.project, cow))


def _set_flags(fd: int, wanted: Inheritance) -> None:
    (flags,) = _BITS.unpack(control(fd, GETFLAGS, bytes(_BITS.size)))
    if flags & _INHERITED != wanted.flags:
        control(fd, SETFLAGS, _BITS.pack(flags & ~_INHERITED | wanted.flags))
