"""Which directories are kept open while a layer is unpacked? The most recently used; files are made through them."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Final

from ...tree.syscalls import open_beneath

_MOST: Final = 64
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directories:
    """Descriptors of directories beneath `root` (a descriptor that the caller keeps), by path; for one thread."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._opened: OrderedDict[bytes, int] = OrderedDict()

    def known(self, path: bytes) -> int | None:
        """The descriptor of a directory that is open; the caller uses it at once and does not close it."""
        if not path:
            return self._root
        fd = self._opened.get(path)
        if fd is not None:
            self._opened.move_to_end(path)
        return fd

    def open(self, path: bytes) -> int:
        """Open an existing directory; the rules of `known` apply to the descriptor."""
        parent, _, name = path.rpartition(b"/")
        above = self.known(parent)
        fd = open_beneath(self._root, path, _FLAGS) if above is None else os.open(name, _FLAGS, dir_fd=above)
        self._opened[path] = fd
        if len(self._opened) > _MOST:
            os.close(self._opened.popitem(last=False)[1])
        return fd

    def forget(self, path: bytes) -> None:
        """Close a directory before it is removed."""
        os.close(self._opened.pop(path))

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.popitem()[1])
