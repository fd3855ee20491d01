"""Which directories of a layer are open while it is unpacked? Those used lately; each file is made through one."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Final

from ...tree.syscalls import open_beneath

_MOST: Final = 64
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directories:
    """Descriptors of directories beneath `root` (a descriptor that stays the caller's), by path; for one thread."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._opened: OrderedDict[bytes, int] = OrderedDict()

    def known(self, path: bytes) -> int | None:
        """The descriptor of a directory that is open, which the caller uses at once and does not close."""
        if not path:
            return self._root
        fd = self._opened.get(path)
        if fd is not None:
            self._opened.move_to_end(path)
        return fd

    def open(self, path: bytes) -> int:
        """Open a directory that is there; the descriptor is as that of `known`."""
        parent, _, name = path.rpartition(b"/")
        above = self.known(parent)
        fd = open_beneath(self._root, path, _FLAGS) if above is None else os.open(name, _FLAGS, dir_fd=above)
        self._opened[path] = fd
        if len(self._opened) > _MOST:
            os.close(self._opened.popitem(last=False)[1])
        return fd

    def forget(self, path: bytes) -> None:
        """Close a directory that is going to be removed."""
        os.close(self._opened.pop(path))

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.popitem()[1])
