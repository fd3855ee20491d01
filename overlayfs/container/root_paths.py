"""What is at a path of an image, as a program that runs in it would find it?

The tree is hostile: every path is resolved with the root of the image as `/`, so no symlink leads out; a FIFO is not
opened, and no file is read beyond a limit. Paths are absolute or relative to the root. Raises OSError as open(2) does.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..image.oci.errors import LimitError
from ..tree.syscalls import descriptor_path, open_in_root

_CHUNK: Final = 1 << 16


class Inside:
    """Resolves paths beneath the directory `root`; a context manager that holds it open."""

    def __init__(self, root: bytes) -> None:
        self.fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: bytes, limit: int) -> bytes:
        """The bytes of a regular file. EINVAL for other types; LimitError for more than `limit` bytes."""
        with self._opened(path) as fd:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            with open(descriptor_path(fd), "rb", buffering=_CHUNK) as file:
                data = file.read(limit + 1)
        if len(data) > limit:
            raise LimitError(f"{os.fsdecode(path)} has more than {limit} bytes")
        return data

    def stat(self, path: bytes) -> os.stat_result:
        """The stat of a path, symlinks followed."""
        with self._opened(path) as fd:
            return os.fstat(fd)

    def resolve(self, path: bytes) -> bytes:
        """The absolute path in the image without symlinks."""
        with self._opened(path) as fd:
            return self._name_of(fd)

    def _name_of(self, fd: int) -> bytes:
        root, whole = os.readlink(descriptor_path(self.fd)), os.readlink(descriptor_path(fd))
        return b"/" + whole.removeprefix(root).lstrip(b"/")

    @contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        fd = open_in_root(self.fd, path or b"/", os.O_PATH)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def directory(self, path: bytes) -> Iterator[int]:
        """A descriptor (O_PATH) of the directory; ENOTDIR for anything else."""
        fd = open_in_root(self.fd, path or b"/", os.O_PATH | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)
