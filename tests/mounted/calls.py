"""System calls that `os` lacks, as the tests make them; errors are `OSError`."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4  # linux/fs.h
GETFLAGS, SETFLAGS, FSGETXATTR = 0x80086601, 0x40086602, 0x801C581F
IMMUTABLE, NODUMP = 0x10, 0x40
_AT_FDCWD = -100
_STATX_BASIC_STATS, _STATX_BTIME = 0x7FF, 0x800
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def renameat2(old: Path, new: Path, flags: int) -> None:
    _check(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags))


def syncfs(fd: int) -> None:
    _check(_libc.syncfs(fd))


def msync(address: int, length: int) -> None:
    """With MS_SYNC."""
    _check(_libc.msync(ctypes.c_void_p(address), ctypes.c_size_t(length), 4))


def name_descriptor(fd: int, path: Path) -> None:
    """linkat(2) of an open file, through /proc."""
    processes = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        os.link(str(fd), path, src_dir_fd=processes, follow_symlinks=True)
    finally:
        os.close(processes)


class Statx(NamedTuple):
    """The start of struct statx; see statx(2)."""

    mask: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    birth_ns: int


def statx(path: Path) -> Statx:
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(_AT_FDCWD, os.fsencode(path), 0x100, _STATX_BASIC_STATS | _STATX_BTIME, buffer))
    mask, _blksize, _attributes, nlink, uid, gid, mode = struct.unpack_from("<IIQIIIH", buffer)
    ino, size = struct.unpack_from("<QQ", buffer, 32)
    seconds, rest = struct.unpack_from("<qI", buffer, 80)
    return Statx(mask, nlink, uid, gid, mode, ino, size, seconds * 1_000_000_000 + rest if mask & _STATX_BTIME else 0)


def file_flags(path: Path) -> int:
    """What lsattr(1) shows."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int.from_bytes(fcntl.ioctl(fd, GETFLAGS, bytes(8))[:4], "little")
    finally:
        os.close(fd)


def set_file_flags(path: Path, flags: int) -> None:
    """What chattr(1) does."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, SETFLAGS, flags.to_bytes(8, "little"))
    finally:
        os.close(fd)


def extents(fd: int) -> list[tuple[int, int]]:
    """Where there is data: each run's start and end."""
    found: list[tuple[int, int]] = []
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return found
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, end))


def outcome(call: Callable[[], object]) -> object:
    """What it returns; an `OSError` becomes the name of its errno."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
