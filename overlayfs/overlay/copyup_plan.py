# cython: language_level=3, annotation_typing=False
"""Which data and metadata does a copy-up take, and from which layer?

Nothing is written here. Compiled; C types are in copyup_plan.pxd.
"""

from __future__ import annotations

import os
import stat

from ..tree import marks, syscalls, xattrs
from ..tree.syscalls import Stat
from . import attributes, content, protection
from .descriptors import OpenFile, unpooled
from .inodes import Directory, Inode
from .ownership import Owner
from .state import State


class Source:
    """What is copied: a descriptor of the file, which is to be unpinned, and its stat. `has_data` says that the file's
    data is read from it; `xattrs` are the names of all, None where they are not known."""

    def __init__(self, opened: OpenFile, st: Stat, has_data: bool, xattrs: tuple[bytes, ...] | None) -> None:
        self.opened = opened
        self.fd = opened.fd
        self.st = st
        self.has_data = has_data
        self.xattrs = xattrs


def source_of(state: State, inode: Inode) -> Source:
    """The file with the metadata, pinned; of a regular file of a lower layer it nearly always has the data too."""
    opened, is_readable = _opened(state, inode)
    opened.pins += 1
    try:
        if inode.upper or inode.kind != stat.S_IFREG:
            return Source(opened, syscalls.stat_of(opened.fd), False, None)
        st = content.regular(opened.fd)
        if not is_readable:
            return Source(opened, st, False, None)
        return Source(opened, st, content.holds_data(state, inode, opened.fd), inode.xattr_names)
    except BaseException:
        opened.unpin()
        raise


def _opened(state: State, inode: Inode) -> tuple[OpenFile, bool]:
    """The file itself, and whether it is a file of a lower layer that may be read."""
    if inode.upper or inode.kind != stat.S_IFREG:
        return readable(state, inode), False
    if inode.xattr_names is not None and not state.revalidates:
        pooled = state.descriptors.file(inode.number)
        if pooled is not None and content.holds_data(state, inode, pooled.fd):
            return pooled, True
    try:
        return unpooled(content.open_itself(state, inode)), True
    except PermissionError:  # where it is empty, it is copied without being read
        return readable(state, inode), False


def readable(state: State, inode: Inode) -> OpenFile:
    """A descriptor of the file for its metadata: one that tells its flags, where we may read it."""
    opened = state.node(inode)
    if inode.kind not in (stat.S_IFREG, stat.S_IFDIR):
        return opened
    with opened as node:
        try:
            fd = state.descriptors.reopen(node, os.O_RDONLY | os.O_NONBLOCK)
        except PermissionError:
            fd = os.dup(node)
    return unpooled(fd)


def owner_on_disk(state: State, inode: Inode, st: Stat) -> Owner:
    """Owner and mode that the copy gets: the lower's, an override xattr applied, ids never translated."""
    layer = attributes.layer_of(state, inode)
    # a third of the instructions of Owner(...)
    owner: Owner = tuple.__new__(Owner, (st.st_uid, st.st_gid, st.st_mode, st.st_rdev))
    if layer.override is None or not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
        return owner
    with state.node(inode) as fd:
        return attributes.read_override(layer, fd, owner)


def mark_xattrs(state: State, inode: Inode, source: int, metacopy: bool) -> list[tuple[bytes, bytes]]:
    """The marks of the copy: inode number, origin, metacopy and redirect, protecting flags."""
    protecting = protection.flags_of(state, inode)
    takes_user_xattrs = inode.kind in (stat.S_IFREG, stat.S_IFDIR)
    if not state.xattrs_work or not (takes_user_xattrs or state.prefix == marks.TRUSTED):
        return []
    found = [(state.prefix + marks.NUMBER, marks.integer_value(inode.number))]
    if inode.upper:
        origin = xattrs.read_xattr_of_descriptor(source, state.prefix + marks.ORIGIN)
        found += [] if origin is None else [(state.prefix + marks.ORIGIN, origin)]
    elif not isinstance(inode, Directory):
        layer = attributes.layer_of(state, inode)
        origin = marks.origin_value(syscalls.file_handle(source), state.uuid(layer))
        found.append((state.prefix + marks.ORIGIN, origin))
    if metacopy:
        found.append((state.prefix + marks.METACOPY, b""))
    if protecting:
        found.append((state.prefix + marks.PROTECTION, marks.protection_value(protecting)))
    return found
