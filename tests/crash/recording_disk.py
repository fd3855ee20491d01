"""A disk that remembers: one file, served over FUSE, whose writes and flushes go to a log in their order.

Run as a program: `recording_disk.py IMAGE LOG MOUNTPOINT`.  A loop device over MOUNTPOINT/disk is then a disk
with a write cache: what was written after the last flush may be lost, in any selection, when the power goes.
The log is a sequence of records `HEADER, data`; a flush has no data.  A record is in the log before its
request is answered, so the log's size at any moment says what the disk had seen by then.
"""

import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyfuse3
import trio

HEADER = struct.Struct("=cQI")  # kind, offset, length
NAME = b"disk"
DISK_INODE = pyfuse3.ROOT_INODE + 1


class Record(NamedTuple):
    """A write, or with `data` None a flush; `end` is the log's size with this record."""

    offset: int
    data: bytes | None
    end: int


def read_log(path: Path) -> Iterator[Record]:
    content = path.read_bytes()
    position = 0
    while position < len(content):
        kind, offset, length = HEADER.unpack_from(content, position)
        position += HEADER.size
        data = content[position : position + length] if kind == b"W" else None
        position += length
        yield Record(offset, data, position)


class RecordingDisk(pyfuse3.Operations):
    """The root and one file.  One task at a time touches image and log: no handler awaits."""

    def __init__(self, image: int, log: int) -> None:
        super().__init__()
        self._image = image
        self._log = log

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        if inode == DISK_INODE:
            entry.st_mode = stat.S_IFREG | 0o600
            entry.st_size = os.fstat(self._image).st_size
        else:
            entry.st_mode = stat.S_IFDIR | 0o700
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(DISK_INODE)

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(self._image, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        os.writev(self._log, [HEADER.pack(b"W", off, len(buf)), buf])
        return os.pwrite(self._image, buf, off)

    async def fsync(self, fh: int, datasync: bool) -> None:
        os.write(self._log, HEADER.pack(b"F", 0, 0))


def main(image: str, log: str, mountpoint: str) -> None:
    """Serve until unmounted; says a line once it is mounted, as requests are queued from then on."""
    disk = RecordingDisk(os.open(image, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    pyfuse3.init(disk, mountpoint, {*pyfuse3.default_options, "fsname=recording-disk"})
    print("mounted", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
