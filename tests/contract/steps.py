"""Constructors of steps, one for each call a case can make."""

from __future__ import annotations

import os
import stat as stat_bits
from typing import Any

from . import libc
from .case import Step
from .tree import EPOCH, SECOND

NOREPLACE, EXCHANGE, WHITEOUT = libc.RENAME_NOREPLACE, libc.RENAME_EXCHANGE, libc.RENAME_WHITEOUT
LATER = EPOCH + 1000 * SECOND + 987654321
RDONLY, WRONLY, RDWR = os.O_RDONLY, os.O_WRONLY, os.O_RDWR


def stat(path: str, **fields: Any) -> Step:
    """lstat(2); compares the named fields of `Stat`."""
    return Step("stat", (path,), result=fields)


def exists(path: str) -> Step:
    """The path is there."""
    return stat(path)


def missing(path: str, errno: int = 2) -> Step:
    """The path is not there."""
    return Step("stat", (path,), errno=errno)


def names(path: str, *expected: str) -> Step:
    """Every name of a directory, but the dots."""
    return Step("entries", (path,), result=set(expected))


def read(path: str, expected: bytes) -> Step:
    """The whole content."""
    return Step("content", (path,), result=expected)


def readlink(path: str, expected: str) -> Step:
    """The target of a symbolic link."""
    return Step("readlink", (path,), result=os.fsencode(expected))


def mkdir(path: str, mode: int = 0o755) -> Step:
    """mkdir(2)."""
    return Step("mkdir", (path, mode))


def rmdir(path: str) -> Step:
    """rmdir(2)."""
    return Step("rmdir", (path,))


def unlink(path: str) -> Step:
    """unlink(2)."""
    return Step("unlink", (path,))


def make_symlink(target: str, path: str) -> Step:
    """symlink(2)."""
    return Step("symlink", (target, path))


def link(old: str, new: str) -> Step:
    """link(2)."""
    return Step("link", (old, new))


def mkfifo(path: str, mode: int = 0o644) -> Step:
    """mknod(2) of a pipe."""
    return Step("mknod", (path, stat_bits.S_IFIFO | mode))


def mksocket(path: str, mode: int = 0o644) -> Step:
    """mknod(2) of a socket's name."""
    return Step("mknod", (path, stat_bits.S_IFSOCK | mode))


def mkchar(path: str, major: int, minor: int, mode: int = 0o644) -> Step:
    """mknod(2) of a character device."""
    return Step("mknod", (path, stat_bits.S_IFCHR | mode, os.makedev(major, minor)))


def mkblock(path: str, major: int, minor: int, mode: int = 0o644) -> Step:
    """mknod(2) of a block device."""
    return Step("mknod", (path, stat_bits.S_IFBLK | mode, os.makedev(major, minor)))


def mkfile(path: str, mode: int = 0o644) -> Step:
    """mknod(2) of a regular file."""
    return Step("mknod", (path, stat_bits.S_IFREG | mode))


def rename(old: str, new: str, flags: int = 0) -> Step:
    """renameat2(2)."""
    return Step("rename", (old, new, flags))


def chmod(path: str, mode: int) -> Step:
    """chmod(2)."""
    return Step("chmod", (path, mode))


def chown(path: str, uid: int, gid: int = -1) -> Step:
    """lchown(2); -1 leaves the owner or group."""
    return Step("chown", (path, uid, gid))


def utime(path: str, mtime: int = LATER, atime: int = LATER + 1) -> Step:
    """utimensat(2), not following."""
    return Step("utime", (path, atime, mtime))


def touch(path: str) -> Step:
    """utimensat(2) without times: now."""
    return Step("touch", (path,))


def lsattr(path: str, letters: str) -> Step:
    """The flags of lsattr(1)."""
    return Step("flags", (path,), result=letters)


def chattr(path: str, letters: str) -> Step:
    """Exactly these flags, as by chattr(1)."""
    return Step("set_flags", (path, letters))


def truncate(path: str, size: int) -> Step:
    """truncate(2)."""
    return Step("truncate", (path, size))


def getxattr(path: str, name: str, expected: bytes) -> Step:
    """lgetxattr(2)."""
    return Step("getxattr", (path, name), result=expected)


def setxattr(path: str, name: str, value: bytes, flags: int = 0) -> Step:
    """lsetxattr(2)."""
    return Step("setxattr", (path, name, value, flags))


def removexattr(path: str, name: str) -> Step:
    """lremovexattr(2)."""
    return Step("removexattr", (path, name))


def listxattr(path: str, *expected: str) -> Step:
    """llistxattr(2)."""
    return Step("listxattr", (path,), result=set(expected))


def longest_name(expected: int) -> Step:
    """f_namemax of statvfs(3)."""
    return Step("longest_name", (), result=expected)


def open_(key: str, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> Step:
    """open(2) under the name `key`."""
    return Step("open", (key, path, flags, mode))


def create(key: str, path: str, mode: int = 0o644) -> Step:
    """open(2) with O_CREAT and O_EXCL, for reading and writing."""
    return Step("open", (key, path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode))


def tmpfile(key: str, path: str, mode: int = 0o644) -> Step:
    """open(2) with O_TMPFILE."""
    return Step("tmpfile", (key, path, mode))


def linkfd(key: str, path: str) -> Step:
    """linkat(2) of an open file."""
    return Step("linkfd", (key, path))


def close(key: str) -> Step:
    """close(2)."""
    return Step("close", (key,))


def pread(key: str, expected: bytes, offset: int = 0, size: int = 4096) -> Step:
    """pread(2)."""
    return Step("pread", (key, size, offset), result=expected)


def pwrite(key: str, data: bytes, offset: int = 0) -> Step:
    """pwrite(2) of everything."""
    return Step("pwrite", (key, data, offset), result=len(data))


def append(key: str, data: bytes) -> Step:
    """write(2) on a file opened with O_APPEND."""
    return Step("append", (key, data), result=len(data))


def fstat(key: str, **fields: Any) -> Step:
    """fstat(2); compares the named fields of `Stat`."""
    return Step("fstat", (key,), result=fields)


def ftruncate(key: str, size: int) -> Step:
    """ftruncate(2)."""
    return Step("ftruncate", (key, size))


def fsync(key: str) -> Step:
    """fsync(2)."""
    return Step("fsync", (key,))


def write_file(path: str, data: bytes, mode: int = 0o644) -> list[Step]:
    """What `cat > path` does."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return [open_("_", path, flags, mode), pwrite("_", data), close("_")]


def overwrite(path: str, data: bytes, offset: int = 0) -> list[Step]:
    """Write into an existing file."""
    return [open_("_", path, os.O_WRONLY), pwrite("_", data, offset), close("_")]


def append_to(path: str, data: bytes) -> list[Step]:
    """What `cat >> path` does."""
    return [open_("_", path, os.O_WRONLY | os.O_APPEND), append("_", data), close("_")]
