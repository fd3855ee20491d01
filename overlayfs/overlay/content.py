# cython: language_level=3, annotation_typing=False
"""Where is a file's data, how is it opened, and is it in memory?

In the upper, or in the lower layer that has the file; of a metacopy in the layers below it. Compiled; C types are in
content.pxd.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayfs._typing import Final

from ..tree import marks, xattrs
from ..tree.syscalls import Stat, stat_of
from . import redirects
from .descriptors import OpenFile
from .inodes import Inode
from .layer import Location
from .state import State

# O_NONBLOCK: a FIFO that somebody put in the file's place must not hang the mount.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK


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
        fd = _open(state, inode, writable)
        try:
            device = regular(fd).st_dev
        except OSError:
            os.close(fd)
            raise
        opened = state.descriptors.add_file(inode.number, fd, writable)
        opened.may_wait = device not in state.in_memory
    return opened


def regular(fd: int) -> Stat:
    """The stat of what was opened as a file's data; ESTALE where somebody changed the layer to hold something else."""
    st = stat_of(fd)
    if not stat.S_ISREG(st.st_mode):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return st


def _open(state: State, inode: Inode, writable: bool) -> int:
    if inode.metacopy or not inode.upper:
        return _open_lower(state, inode)
    assert state.upper is not None
    flags, quietly = _WRITE if writable else _READ, state.upper.opens_quietly
    if state.orphans:
        orphan = state.orphans.get(inode.number)
        if orphan is not None:
            return state.descriptors.reopen(orphan, flags & ~os.O_NOFOLLOW, quietly)
    dir_fd, name = state.place(inode)
    return state.descriptors.open_at(dir_fd, name, flags, 0, quietly)


def _open_lower(state: State, inode: Inode) -> int:
    """The data of a lower file or of a metacopy. A lower file nearly always has its own data, so it is opened first and
    then asked."""
    fd = -1 if inode.upper else _open_with_data(state, inode)
    if fd >= 0:
        return fd
    place = location(state, inode)
    dir_fd, name = state.lower_place(place)
    return state.descriptors.open_at(dir_fd, name, _READ, 0, state.layers[place.layer].opens_quietly)


def _open_with_data(state: State, inode: Inode) -> int:
    """The visible file of a lower layer; -1 where its data is elsewhere."""
    try:
        fd = open_itself(state, inode)
    except PermissionError:  # of a metacopy, which is not to be read itself
        return -1
    try:
        is_there = holds_data(state, inode, fd)
    except OSError:
        os.close(fd)
        raise
    if is_there:
        return fd
    os.close(fd)
    return -1


def open_itself(state: State, inode: Inode) -> int:
    """The visible file of a lower layer, whether its data is there or only its metadata. The caller closes it."""
    dir_fd, name = state.place(inode)
    return state.descriptors.open_at(dir_fd, name, _READ, 0, state.layers[inode.lower_layer].opens_quietly)


def holds_data(state: State, inode: Inode, fd: int) -> bool:
    """True where `fd`, of the visible file of a lower layer, has the file's data: no mark says that it is elsewhere."""
    names = xattr_names_of(state, inode, fd)
    return not names or state.layers[inode.lower_layer].spelling.prefix + marks.METACOPY not in names


def xattr_names_of(state: State, inode: Inode, fd: int) -> tuple[bytes, ...]:
    """The names of all xattrs of a lower file that is open; no system call while they are known."""
    names = inode.xattr_names
    if names is None or state.revalidates:
        names = inode.xattr_names = xattrs.list_xattrs_of_descriptor(fd)
    return names


def is_at_hand(fd: int, size: int) -> bool:
    """True where reading the first `size` bytes, which are few, waits for no disk."""
    try:
        return os.preadv(fd, [bytearray(size)], 0, os.RWF_NOWAIT) == size
    except OSError:  # EAGAIN, or it cannot say
        return False
