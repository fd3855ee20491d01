"""What does a layer take on disk?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .metadata import Usage

_BLOCK_SIZE = 512  # of st_blocks: stat(2)


def usage_of(directory: Path) -> Usage:
    """Bytes and inodes of a tree that may change meanwhile, its top included; hard links count once."""
    blocks, seen = 0, set()
    for found in _walk(directory):
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            blocks += found.st_blocks
    return Usage(blocks * _BLOCK_SIZE, len(seen))


def _walk(directory: Path) -> Iterator[os.stat_result]:
    """The status of everything in a tree. Entries that vanish meanwhile are left out."""
    yield directory.lstat()
    for _, names, files, fd in os.fwalk(directory, follow_symlinks=False):
        for name in (*names, *files):
            try:
                yield os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
