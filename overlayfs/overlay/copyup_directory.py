# cython: language_level=3, annotation_typing=False
"""How does a directory come into the upper, without what is in it?

Neighbour: copyup (files). Compiled; C types are in copyup_directory.pxd.
"""

from __future__ import annotations

import errno
import os

from ..tree import access, fileflags, metadata
from ..tree.syscalls import stat_of
from . import attributes, copyup_plan, drafts, inheritance, publishing
from .inodes import ROOT, Directory
from .state import State


def ensure_upper_directory(state: State, directory: Directory) -> None:
    """Copy up a directory, without what is in it, and all its parents; one that was removed gets no name."""
    if state.work_fd is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    missing = []
    here: Directory | None = directory
    while here is not None and not here.upper:
        missing.append(here)
        here = here.parent
    for found in reversed(missing):
        _copy_up_directory(state, found)


def _copy_up_directory(state: State, directory: Directory) -> None:
    parent = directory.parent
    assert directory.number != ROOT
    place = inheritance.place_of_copy(state, parent)
    with copyup_plan.readable(state, directory) as source, drafts.draft_directory(state, place) as draft:
        st = stat_of(source)
        owner = copyup_plan.owner_on_disk(state, directory, st)
        owner = drafts.written_owner(state, draft.fd, owner)
        for name, value in copyup_plan.mark_xattrs(state, directory, source, metacopy=False):
            access.setxattr(draft.fd, name, value)
        flagged = fileflags.copy_flags(source, draft.fd)
        spelling = attributes.layer_of(state, directory).spelling
        metadata.copy_metadata(source, draft.fd, owner.uid, owner.gid, owner.mode, st, spelling)
        if parent is None:
            state.orphans[directory.number] = draft.keep_descriptor()
        else:
            publishing.publish_name(state, draft, parent, directory.name)
    directory.upper = True
    directory.above = {}
    directory.default_acl = False
    directory.inheritance = None if flagged or parent is None else inheritance.of(state, parent).of_copy()
    directory.attributes = directory.xattr_names = None
