"""How does a rollback find room on a full disk, for the directories and the file that it makes?

Files without a name take some before, and are given up where there is no other. They go with the daemon. XFS makes no
directory where it has less than some 100 blocks.
"""

from __future__ import annotations

import os
from contextlib import suppress

from overlayfs._typing import Final

from ..tree import syscalls
from .descriptors import close_quietly

_FILES: Final = 4
_SIZE: Final = 1 << 18
_SIZE_IN_MEMORY: Final = 1 << 14
_UNNAMED: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC


class Room:
    """Some room on the disk of a directory."""

    def __init__(self, directory_fd: int) -> None:
        self._directory_fd = directory_fd
        self._files: list[int] = []

    def keep(self) -> None:
        """Take what is missing, as far as there is any."""
        with suppress(OSError):  # the disk is full, or has no files without a name
            while len(self._files) < _FILES:
                fd = os.open(b".", _UNNAMED, 0o600, dir_fd=self._directory_fd)
                try:
                    os.posix_fallocate(fd, 0, _SIZE_IN_MEMORY if syscalls.is_in_memory(fd) else _SIZE)
                except OSError:
                    os.close(fd)
                    raise
                self._files.append(fd)

    def give_up(self) -> bool:
        """Whether there was some."""
        files, self._files = self._files, []
        for fd in files:
            close_quietly(fd)
        return bool(files)
