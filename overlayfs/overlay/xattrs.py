# cython: language_level=3, annotation_typing=False
"""Which extended attributes does a file of the merged tree show?

Reading never copies up. Neighbour: changing, which sets and removes xattrs. Compiled; C types are in xattrs.pxd.
"""

from __future__ import annotations

import errno
import os

from ..tree import access, marks, metadata
from ..tree.xattrs import list_xattrs, list_xattrs_of_descriptor, read_xattr_of_descriptor
from .attributes import layer_of
from .inodes import Directory, Inode
from .state import State

# Namespaces in which what exists is listed too, so that an absent name needs no system call.
_LISTED = (b"user.", b"security.", b"trusted.", b"system.posix_acl_")


def listxattr(state: State, inode: Inode) -> list[bytes]:
    """Names as seen inside the mount: marks hidden, escaped ones unescaped."""
    if not state.options.xattrs:
        return []
    spelling = layer_of(state, inode).spelling
    shown = [marks.shown_xattr(stored, spelling) for stored in stored_names(state, inode)]
    return [name for name in shown if name is not None and allowed(state, name)]


def stored_names(state: State, inode: Inode) -> tuple[bytes, ...]:
    """The names of all xattrs on disk; no system call while they are known, as most files have none and are asked."""
    known = inode.xattr_names
    if known is not None and metadata.CAPABILITY in known and inode.number in state.written_unseen:
        known = None  # a write that we have not seen takes it
    if known is None or state.revalidates:
        known = inode.xattr_names = _list(state, inode)
    return known


def _list(state: State, inode: Inode) -> tuple[bytes, ...]:
    """Read by name if the file has one, as that needs no open descriptor."""
    if inode.is_directory or inode.number in state.orphans:
        with state.node(inode) as fd:
            return list_xattrs_of_descriptor(fd)
    dir_fd, name = state.place(inode)
    return list_xattrs(dir_fd, name)


def find_xattr(state: State, inode: Inode, name: bytes) -> bytes | None:
    """One xattr; None where it is known that there is none, as each first write to a file asks for capabilities."""
    stored = marks.stored_xattr(name, layer_of(state, inode).spelling)
    if not allowed(state, name):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if stored is None or (stored.startswith(_LISTED) and stored not in stored_names(state, inode)):
        return None
    with state.node(inode) as fd:
        value = access.getxattr(fd, stored)
    return state.ownership.shown_value(name, value)


def allowed(state: State, name: bytes) -> bool:
    is_acl = name in (metadata.ACCESS_ACL, metadata.DEFAULT_ACL)
    return state.options.acl if is_acl else state.options.xattrs


def default_acl(state: State, directory: Directory) -> bytes | None:
    """The default ACL that new files in an upper directory inherit, with ids as on disk."""
    found = directory.default_acl
    if isinstance(found, bool):
        fd = state.upper_fd(directory)
        found = read_xattr_of_descriptor(fd, metadata.DEFAULT_ACL) if state.options.acl else None
        directory.default_acl = found
    return found
