"""What does a layer take on disk?"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .metadata import Usage

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_SIZE = 512  # of st_blocks: stat(2)


def usage_of(directory: Path) -> Usage:
    """Bytes and inodes of a tree, its top included; hard links count once.

    The tree may change meanwhile: entries that vanish are left out.
    """
    blocks, seen = 0, set[tuple[int, int]]()
    for found in _statuses(directory):
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            blocks += found.st_blocks
    return Usage(blocks * _BLOCK_SIZE, len(seen))


def _statuses(top: Path) -> Iterator[os.stat_result]:
    """The status of everything in a tree, however deep: one descriptor goes down and up again.

    A container may remove and move its directories meanwhile. The walk then ends where the way up is no longer the way
    it came, for it must not leave the tree.
    """
    fd = os.open(top, _OPEN_DIRECTORY)
    try:
        here, names = os.fstat(fd), os.listdir(fd)
        yield here
        above: list[tuple[os.stat_result, list[str]]] = []
        while names or above:
            if not names:
                here, names = above.pop()
                try:
                    fd = _moved(fd, "..")
                except FileNotFoundError:
                    return
                if not os.path.samestat(here, os.fstat(fd)):
                    return
                continue
            name = names.pop()
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    fd = _moved(fd, name)
                    above.append((here, names))
                    here, names = os.fstat(fd), os.listdir(fd)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                continue
            yield found
    finally:
        os.close(fd)


def _moved(fd: int, name: str) -> int:
    """A descriptor of the directory `name` instead of that of the one it is in."""
    there = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
    os.close(fd)
    return there
