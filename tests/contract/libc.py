"""System calls that the standard library does not offer, for the tests' own clients.

They are bound here a second time, apart from `overlayfs.tree.syscalls`: a wrong binding in the
program must not be able to agree with itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
MNT_FORCE = 1
MNT_DETACH = 2
_SYS_GETDENTS64 = {"x86_64": 217}.get(os.uname().machine, 61)
_LONGEST_PATH = 3000
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x100000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str | bytes | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def rename(old: bytes, new: bytes, flags: int) -> None:
    """renameat2(2); plain rename(2) when there are no flags."""
    _check(_libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags), old)


def link_descriptor(fd: int, new: bytes) -> None:
    """Give a file without a name (O_TMPFILE) its first one."""
    _check(_libc.linkat(fd, b"", AT_FDCWD, new, AT_EMPTY_PATH), new)


def mount(source: bytes, target: bytes, kind: bytes, data: bytes = b"", flags: int = 0) -> None:
    """mount(2)."""
    _check(_libc.mount(source, target, kind, ctypes.c_ulong(flags), data), target)


def unmount(target: bytes, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target, flags), target)


def leave_mount_namespace() -> None:
    """Make mounts that only this process (its thread and its children) sees from now on."""
    _check(_libc.unshare(_CLONE_NEWNS))
    mount(b"none", b"/", b"none", flags=_MS_REC | _MS_PRIVATE)


def mount_with_ids(path: bytes, user_namespace: int) -> None:
    """Mount the directory over itself with its ids mapped as the user namespace maps them: see mount_setattr(2)."""
    tree = _check(_libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC), path)
    try:
        attributes = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
        size = ctypes.c_size_t(len(attributes))
        _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, size), path)
        _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH), path)
    finally:
        os.close(tree)


class DirectoryRecord(NamedTuple):
    """One entry of getdents64(2); `offset` resumes the listing after it."""

    ino: int
    offset: int
    kind: int
    name: bytes


def read_directory(fd: int, size: int = 32768) -> list[DirectoryRecord]:
    """One getdents64(2): as many entries as fit `size` bytes; an empty list at the end."""
    buffer = ctypes.create_string_buffer(size)
    length = _check(_libc.syscall(_SYS_GETDENTS64, fd, buffer, ctypes.c_size_t(size)))
    records = []
    at = 0
    while at < length:
        ino, offset, step, kind = struct.unpack_from("<QqHB", buffer, at)
        name = buffer.raw[at + 19 : at + step].split(b"\0", 1)[0]
        records.append(DirectoryRecord(ino, offset, kind, name))
        at += step
    return records


@contextmanager
def short_path(root: bytes, path: bytes) -> Iterator[bytes]:
    """A path for `root`/`path` that fits PATH_MAX, by way of a descriptor of some parent."""
    if len(path) <= _LONGEST_PATH:
        yield os.path.join(root, path) if path else root
        return
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        while len(path) > _LONGEST_PATH:
            cut = path.rindex(b"/", 0, _LONGEST_PATH)
            inner = os.open(path[:cut], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd, path = inner, path[cut + 1 :]
        yield b"/proc/self/fd/%d/%s" % (fd, path)
    finally:
        os.close(fd)


# The letters of chattr(1) for the flags that every filesystem of the tests has (linux/fs.h, FS_*_FL).
FLAGS = {"i": 0x10, "a": 0x20, "d": 0x40, "A": 0x80}
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602


def flags(path: bytes) -> str:
    """What lsattr(1) shows."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        (bits,) = struct.unpack("I4x", fcntl.ioctl(fd, _GETFLAGS, bytes(8)))
    finally:
        os.close(fd)
    return "".join(letter for letter, bit in FLAGS.items() if bits & bit)


def set_flags(path: bytes, letters: str) -> None:
    """What chattr(1) does with `=`."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _SETFLAGS, struct.pack("I4x", sum(FLAGS[letter] for letter in letters)))
    finally:
        os.close(fd)
