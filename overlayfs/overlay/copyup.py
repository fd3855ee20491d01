# cython: language_level=3, annotation_typing=False
"""How does a lower file come into the upper before it changes?

prepare (what, from where: copyup_plan) → transfer (data, owner, mode, xattrs, times, fsync; descriptors only, so any
thread may do it) → publish (one link or rename, and the inode points at the upper): copyup_file. Observers see the file
before or after, and so does the next mount after a crash. Parents come first. Compiled; C types are in copyup.pxd.
"""

from __future__ import annotations

import errno
import os
import stat
from enum import Enum, auto

from ..tree import fileflags
from . import attributes, drafts, indexing, lookup, protection
from .copyup_directory import ensure_upper_directory
from .copyup_file import Completion, Copy, CopyUp
from .inodes import Directory, Inode
from .publishing import replace_unseen
from .state import State

__all__ = [
    "Need",
    "begin",
    "bytes_to_copy",
    "copy_up",
    "copy_up_name",
    "ensure_upper",
    "ensure_upper_directory",
    "is_whole_in_upper",
    "replace_unseen",
]


class Need(Enum):
    """The part of a file that an operation is going to change."""

    METADATA = auto()
    DATA = auto()


_METADATA, _DATA = Need.METADATA, Need.DATA


def is_whole_in_upper(inode: Inode) -> bool:
    """True where no change has to copy anything up."""
    return inode.upper and not inode.metacopy


def ensure_upper(state: State, inode: Inode, need: Need = Need.DATA, size: int | None = None) -> bool:
    """Copy up unless done; with `size`, the copy is published as if truncated to that. True where this did so."""
    if state.work_fd is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    truncated = copy_up(state, inode, need, size) if inode.metacopy or not inode.upper else False
    if state.names_to_link and inode.number in state.names_to_link:
        indexing.link_known_names(state, inode)
    if state.unsynced:
        drafts.sync_changed(state)
    return truncated


def copy_up(state: State, inode: Inode, need: Need = Need.DATA, size: int | None = None) -> bool:
    """As `ensure_upper`, as a part of an operation that syncs what it changed itself."""
    if isinstance(inode, Directory):
        ensure_upper_directory(state, inode)
        return False
    work = begin(state, inode, need, size)
    if work is None:
        return False
    work.begin()
    try:
        work.transfer()
        work.publish()
    finally:
        work.end()
    return work.truncates


def bytes_to_copy(state: State, inode: Inode, need: Need, size: int | None = None) -> int:
    """How much data `ensure_upper` would copy: whether it is worth a thread."""
    if is_whole_in_upper(inode) or inode.kind != stat.S_IFREG:
        return 0
    if need is _METADATA and (inode.upper or _metadata_only(state, need)):
        return 0
    total = attributes.attributes_of(state, inode).size
    flags = protection.flags_of(state, inode)
    if flags & fileflags.IMMUTABLE:  # nearly all that would need it is going to be refused
        return 0
    if flags and size is not None:  # is going to be refused, too: a truncated copy must not be published first
        return 0
    return total if size is None else min(size, total)


def _metadata_only(state: State, need: Need) -> bool:
    return need is _METADATA and state.options.metacopy and state.xattrs_work


def begin(state: State, inode: Inode, need: Need, size: int | None) -> CopyUp | None:
    """The copy-up that an operation needs, None where it needs none."""
    if inode.upper:
        if not inode.metacopy or need is not _DATA:
            return None
        if not indexing.has_one_name(state, inode):
            return Completion(state, inode)
    for parent, _ in inode.names():
        if not parent.upper:
            ensure_upper_directory(state, parent)
    return Copy(state, inode, _metadata_only(state, need), size)


def copy_up_name(state: State, inode: Inode, parent: Directory, name: bytes, need: Need) -> None:
    """Copy up a file that is no directory, and have the copy under this very name."""
    copy_up(state, inode, need)
    if name not in lookup.above(state, parent):
        indexing.link_lower_name(state, inode, parent, name)
