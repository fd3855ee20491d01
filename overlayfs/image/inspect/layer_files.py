"""How are the files of an image opened? In the directories of its layers, each held by a descriptor of its root.

Every file is opened beneath the root of its layer and never through a symlink, so a tampered layer cannot lead
elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from ...tree.syscalls import open_beneath
from .browse import Node


class Content:
    """Opens the files of an image with layers in `directories`, bottom first; a context manager."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories
        self._opened: dict[int, int] = {}
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def open(self, node: Node) -> int:
        """Open a regular file for reading; the caller owns the descriptor.

        Raises EISDIR for a directory, EINVAL for other types without data, EIO if the directory of the layer does not
        match its index.
        """
        if node.record.kind != "f":
            code = errno.EISDIR if node.is_directory else errno.EINVAL
            raise OSError(code, "It is a directory" if node.is_directory else "No regular file", b"/" + node.path)
        return self.open_at(node.layer, node.path)

    def open_at(self, layer: int, path: bytes) -> int:
        """As `open`, by the layer's number and the path in it."""
        try:
            fd = open_beneath(self._root(layer), path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _tampered(error.errno, self._directories[layer], path) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise _tampered(errno.EIO, self._directories[layer], path)
        return fd

    def _root(self, layer: int) -> int:
        if layer not in self._opened:
            fd = os.open(self._directories[layer], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._resources.callback(os.close, fd)
            self._opened[layer] = fd
        return self._opened[layer]


def _tampered(code: int | None, directory: Path, path: bytes) -> OSError:
    reason = f"{os.strerror(code or errno.EIO)}, though the layer's index has it (see overlayfs verify)"
    return OSError(code, reason, os.path.join(os.fsencode(directory), path))
