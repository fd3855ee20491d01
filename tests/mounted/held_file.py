"""A lower layer of one file, `large`, whose second half is read only once that is allowed.

Run as a program: `held_file.py MOUNTPOINT SIZE`.  It prints a line when it is mounted and another when the first read
waits; a byte on its standard input lets all reads go on.
"""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyfuse3
import trio

NAME = b"large"
FILE_INODE = pyfuse3.ROOT_INODE + 1


class HeldFile(pyfuse3.Operations):
    """The root and one file of zeros."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._allowed = trio.Event()
        self._is_told = False

    async def wait_for_permission(self) -> None:
        await trio.lowlevel.wait_readable(0)
        self._allowed.set()

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_nlink = 1
        if inode == FILE_INODE:
            entry.st_mode = stat.S_IFREG | 0o644
            entry.st_size = self._size
        else:
            entry.st_mode = stat.S_IFDIR | 0o755
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE_INODE)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if start_id == 0:
            pyfuse3.readdir_reply(token, NAME, await self.getattr(FILE_INODE), 1)

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        if off + size > self._size // 2 and not self._allowed.is_set():
            if not self._is_told:
                self._is_told = True
                print("waits", flush=True)
            await self._allowed.wait()
        return bytes(max(0, min(size, self._size - off)))


class Held:
    """The program, from the test's side."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert self._said() == "mounted\n"

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def wait_for_read(self) -> None:
        """Return once somebody's read waits."""
        assert self._said() == "waits\n"

    def allow(self) -> None:
        """Let all reads go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("x")
        self._process.stdin.flush()


@contextmanager
def held_file(directory: Path, size: int) -> Iterator[Held]:
    """`directory/large`, a file whose second half is read only once that is allowed."""
    directory.mkdir()
    command = [sys.executable, __file__, str(directory), str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Held(process)
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


async def serve(held: HeldFile) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.wait_for_permission)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def main(mountpoint: str, size: str) -> None:
    """Serve until unmounted."""
    os.set_blocking(0, False)
    held = HeldFile(int(size))
    pyfuse3.init(held, mountpoint, {*pyfuse3.default_options, "fsname=held-file", "allow_other"})
    print("mounted", flush=True)
    try:
        trio.run(serve, held)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
