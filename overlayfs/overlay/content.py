"""Where is a file's data, how is it opened, and is it in memory?

In the upper, or in the lower layer that has the file; of a metacopy in the layers below it.
"""

from __future__ import annotations

import errno
import os
import stat

from ..tree import access, marks
from ..tree.syscalls import stat_of
from . import redirects
from .descriptors import OpenFile
from .inodes import Inode
from .layer import Location
from .state import State

# O_NONBLOCK: a FIFO that somebody put in the file's place must not hang the mount.
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def location(state: State, inode: Inode) -> Location:
    """Where in the lower layers the data of a lower file or a metacopy is; EIO where it is nowhere, ENOENT where it is
    only missing in the data-only layers."""
    lower = inode.lower
    if lower is None:
        raise marks.MalformedMarkError("metacopy without data", inode.name)
    return redirects.data_below_lower(state, lower)


def open_pooled(state: State, inode: Inode, writable: bool) -> OpenFile:
    """The pooled descriptor of a file's data. Writing needs it in the upper first."""
    opened = state.descriptors.file(inode.number)
    if opened is None or (writable and not opened.writable):
        fd = state.descriptors.open(lambda: _open(state, inode, writable))
        try:
            st = stat_of(fd)
            if not stat.S_ISREG(st.st_mode):  # somebody changed the layer
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        except OSError:
            os.close(fd)
            raise
        opened = state.descriptors.add_file(inode.number, fd, writable)
        opened.may_wait = st.st_dev not in state.in_memory
    return opened


def _open(state: State, inode: Inode, writable: bool) -> int:
    flags = os.O_NONBLOCK | (os.O_RDWR if writable else os.O_RDONLY)
    quietly = state.upper is not None and state.upper.opens_quietly
    orphan = state.orphans.get(inode.number)
    if orphan is not None and not inode.metacopy:
        return access.reopen(orphan, flags, quietly=quietly)
    if inode.upper and not inode.metacopy:
        dir_fd, name = state.place(inode)
        return access.open_at(dir_fd, name, flags | os.O_NOFOLLOW, quietly=quietly)
    place = location(state, inode)
    dir_fd, name = state.lower_place(place)
    return access.open_at(dir_fd, name, os.O_RDONLY | _FLAGS, quietly=state.layers[place.layer].opens_quietly)


def is_at_hand(fd: int, size: int) -> bool:
    """True where reading the first `size` bytes, which are few, waits for no disk."""
    try:
        return os.preadv(fd, [bytearray(size)], 0, os.RWF_NOWAIT) == size
    except OSError:  # EAGAIN, or it cannot say
        return False
