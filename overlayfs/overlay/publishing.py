# cython: language_level=3, annotation_typing=False
"""How is a finished copy published in the upper without changing the directory's times?

Compiled; C types are in publishing.pxd.
"""

from __future__ import annotations

from ..tree.syscalls import stat_of
from . import drafts, impure, lookup
from .drafts import Draft
from .inodes import Directory
from .merge import Kind
from .state import State

_FILE, _DIRECTORY = Kind.FILE, Kind.DIRECTORY


def publish_name(state: State, draft: Draft, parent: Directory, name: bytes) -> None:
    """Publish into an upper directory that must not look changed by it."""
    dir_fd = state.upper_fd(parent)
    before = stat_of(dir_fd)  # as by drafts.unseen, which is a third of this function's instructions
    if not parent.impure:
        impure.mark(state, parent)
    draft.publish(dir_fd, name)
    drafts.restore_times(dir_fd, before)
    lookup.note(parent, name, _DIRECTORY if draft.is_directory else _FILE)
    drafts.note_changed(state, parent)


def replace_unseen(draft: Draft, dir_fd: int, name: bytes) -> None:
    """Publish over a file in an upper directory that must not look changed by it."""
    with drafts.unseen(dir_fd):
        draft.replace(dir_fd, name)
