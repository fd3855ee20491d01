# cython: language_level=3, annotation_typing=False
"""In which directory is a draft made, so that it inherits the flags and the project of its future parent?

A filesystem gives a new file some flags and the project id (for quotas) of its directory, and refuses to move a file of
another project into a directory with FS_XFLAG_PROJINHERIT. If the workdir would hand on other flags than the future
parent, the draft is made in a subdirectory of the workdir that first gets the parent's flags. Files take the flags only
when they are made, so one subdirectory serves all parents; it is removed at the end of the mount.
Compiled; C types are in inheritance.pxd.
"""

from __future__ import annotations

import os

from overlayfs._log import Log

from ..tree import fileflags
from ..tree.fileflags import Inheritance
from . import drafts
from .inodes import Directory
from .state import DraftPlace, State

log = Log(__name__)
_NOTHING = fileflags.NOTHING_INHERITED


def place_of_new(state: State, parent: Directory) -> int:
    """The directory for the draft of something new in `parent`, which is in the upper."""
    return _place(state, of(state, parent))


def place_of_copy(state: State, parent: Directory | None) -> int:
    """The directory for the draft of a file that is copied up into `parent`."""
    work_fd = drafts.work_fd_of(state)
    if parent is None:
        return work_fd
    found = of(state, parent)
    return _place(state, found if found is _NOTHING else found.of_copy())


def place_for(state: State, dir_fd: int) -> int:
    """The directory for the draft of a whiteout in the upper directory `dir_fd`: it counts for that one's project."""
    return _place(state, _read(state, dir_fd).of_copy())


def of(state: State, directory: Directory) -> Inheritance:
    """What a directory of the upper hands on; read once."""
    found = directory.inheritance
    if found is None:
        found = directory.inheritance = _read(state, state.upper_fd(directory))
    return found


def _read(state: State, dir_fd: int) -> Inheritance:
    try:
        fd = state.descriptors.reopen(dir_fd, os.O_RDONLY | os.O_NONBLOCK)
    except PermissionError:
        return fileflags.NOTHING_INHERITED
    try:
        return fileflags.inheritance_of(fd)
    finally:
        os.close(fd)


def _place(state: State, wanted: Inheritance) -> int:
    work_fd = drafts.work_fd_of(state)
    if state.work_inheritance is None:
        state.work_inheritance = _read(state, work_fd)
    if wanted is state.work_inheritance or wanted == state.work_inheritance:
        return work_fd
    if state.draft_place is None:
        state.draft_place = _make_place(state, work_fd)
    place = state.draft_place
    if place.hands_on != wanted:
        place.hands_on = None
        if not fileflags.hand_on(place.fd, wanted):
            log.warning("new files do not get all flags of their directory: %s", wanted)
        place.hands_on = wanted
    return place.fd


def _make_place(state: State, work_fd: int) -> DraftPlace:
    name = state.draft_name()
    os.mkdir(name, 0o700, dir_fd=work_fd)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return DraftPlace(state.descriptors.open_at(work_fd, name, flags), name)
    except BaseException:
        drafts.remove(work_fd, name)
        raise


def forget_place(state: State) -> None:
    """Remove what was made for drafts, at the end of the mount."""
    place, state.draft_place = state.draft_place, None
    if place is not None:
        os.close(place.fd)
        with drafts.afterwards():
            os.rmdir(place.name, dir_fd=drafts.work_fd_of(state))
