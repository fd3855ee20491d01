# cython: language_level=3, annotation_typing=False
"""Which upper directories hold what came from a lower layer?

The kernel's overlayfs marks them (fs/overlayfs/util.c, ovl_set_impure): elsewhere it lists the inode numbers of the
upper as they are, in a marked directory those that stat(2) gives. For this overlay the mark means nothing. Compiled; C
types are in impure.pxd.
"""

from __future__ import annotations

import errno

from ..tree import access, marks
from . import xattrs
from .inodes import Directory, Inode
from .state import State

_CANNOT_BE_MARKED = (errno.ENOTSUP, errno.EPERM, errno.EACCES)


def mark(state: State, directory: Directory) -> None:
    """Mark an upper directory; to be called before it gets its first copy, so that no crash leaves it out."""
    if directory.impure or not state.xattrs_work:
        return
    try:
        access.setxattr(state.upper_fd(directory), state.prefix + marks.IMPURE, b"y")
    except OSError as error:
        if error.errno not in _CANNOT_BE_MARKED:
            raise
    directory.impure = True


def mark_for(state: State, directory: Directory, inode: Inode) -> None:
    """The same before an upper directory gets a name of something in the upper, which may be a copy.

    Where the directory has another name of it, that brought the mark.
    """
    if directory.impure or not state.xattrs_work or inode.parent is directory:
        return
    for parent, _ in inode.names():
        if parent is directory:
            return
    if _came_from_below(state, inode):
        mark(state, directory)


def _came_from_below(state: State, inode: Inode) -> bool:
    if isinstance(inode, Directory):
        return bool(inode.lowers)
    return state.prefix + marks.ORIGIN in xattrs.stored_names(state, inode)
