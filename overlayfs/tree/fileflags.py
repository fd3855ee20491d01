"""Which flags does chattr(1) give a file, and how are they read and written?

Two ioctls say the same: one in the bits of FS_IOC_GETFLAGS, one in those of struct fsxattr (linux/fs.h). Works on
descriptors that are open for reading, but for `protecting_flags`, for which any will do. Thread-safe.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from . import syscalls

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
    buffer = bytearray(argument)
    fcntl.ioctl(fd, command, buffer)
    return bytes(buffer)


def protecting_flags(dir_fd: int, name: bytes) -> int:
    """Which of PROTECTING `name` in `dir_fd` has on disk: one statx(2), which needs no open file."""
    return syscalls.file_attributes(dir_fd, name) & PROTECTING


def copy_flags(source: int, target: int) -> None:
    """Give a new file the flags of another that do not protect it. Flags that the filesystem of one of them does not
    know are left out, as by the kernel's ovl_copy_fileattr. Both descriptors may be O_PATH."""
    try:
        (wanted,) = _BITS.unpack(_control_node(source, GETFLAGS, bytes(_BITS.size)))
        if wanted & _COPIED:
            (has,) = _BITS.unpack(_control_node(target, GETFLAGS, bytes(_BITS.size)))
            _control_node(target, SETFLAGS, _BITS.pack(has | wanted & _COPIED))
    except OSError as error:
        if error.errno not in _NO_FLAGS_HERE:
            raise


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
    return os.open(syscalls.descriptor_path(fd), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
