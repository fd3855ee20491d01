# cython: language_level=3, annotation_typing=False
"""How is a deletion written into the upper?

Three formats (formats: "Write"); the mount uses one. In each, a name is hidden in one step. Compiled; C types are in
whiteouts.pxd.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayfs._typing import Final

from ..tree import access, marks, syscalls, xattrs
from . import drafts, inheritance
from .options import WhiteoutFormat
from .state import State

LONGEST_NAME: Final = 255  # bytes; of every filesystem that can be an upper
_OVERLAY, _OCI = WhiteoutFormat.OVERLAY, WhiteoutFormat.OCI
_MODE = stat.S_IFCHR  # the kernel's whiteouts have no permission bits


def whiteout(state: State, dir_fd: int, name: bytes) -> None:
    """Hide `name`, which the upper directory `dir_fd` does not have."""
    if state.whiteout is _OVERLAY:
        access.mknod(dir_fd, name, _MODE)
    elif state.whiteout is _OCI:
        oci_whiteout(dir_fd, name)
    else:
        announce(state, dir_fd)
        with draft_xattr_whiteout(state, dir_fd) as draft:
            draft.publish(dir_fd, name)


def replace_by_whiteout(state: State, dir_fd: int, name: bytes) -> bool:
    """Hide `name` and remove what the upper directory `dir_fd` has under it, in that order or at once.

    False where it is hidden but could not be removed from the workdir.
    """
    work_fd, gone = state.work_fd, state.draft_name()
    assert work_fd is not None
    if state.whiteout is _OVERLAY:
        access.rename(dir_fd, name, work_fd, gone, syscalls.RENAME_WHITEOUT)
    elif state.whiteout is _OCI:
        with oci_whiteout_beside(dir_fd, name):
            access.rename(dir_fd, name, work_fd, gone)
    else:
        announce(state, dir_fd)
        with draft_xattr_whiteout(state, dir_fd) as draft:
            draft.publish(work_fd, gone)
        try:
            access.rename(dir_fd, name, work_fd, gone, syscalls.RENAME_EXCHANGE)
        except OSError:
            with drafts.afterwards():
                drafts.remove(work_fd, gone)
            raise
    return drafts.removed_from_work(work_fd, gone)


def remove_whiteout(dir_fd: int, name: bytes) -> None:
    """Remove a whiteout of any spelling."""
    for spelling in (name, marks.oci_whiteout(name)):
        try:
            access.unlink(dir_fd, spelling)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                raise


def remove_oci_whiteout(dir_fd: int, name: bytes) -> None:
    """Remove the OCI spelling of a whiteout, if there is one, beside the file that took its place."""
    whiteout_file = marks.oci_whiteout(name)
    if len(whiteout_file) > LONGEST_NAME:
        return
    try:
        access.unlink(dir_fd, whiteout_file)
    except FileNotFoundError:
        pass
    except OSError as error:
        drafts.note_left_over(error)


def make_opaque(state: State, fd: int) -> None:
    """Let an upper directory hide all that lies below it."""
    if state.whiteout is _OCI:
        with drafts.unseen(fd):
            _make_mark(fd, marks.OPAQUE_NAME)
    else:
        access.setxattr(fd, state.prefix + marks.OPAQUE, b"y")


def oci_whiteout(dir_fd: int, name: bytes) -> bool:
    """Hide what the lower layers have under `name`; False where that was so already."""
    return _make_mark(dir_fd, marks.oci_whiteout(name))


class WhiteoutBeside:
    """A block in which a name leaves the upper: what lies below is hidden before; if the name stays, what it showed of
    the lower stays too."""

    def __init__(self, dir_fd: int, name: bytes) -> None:
        self._dir_fd = dir_fd
        self._name = name
        self._made = False

    def __enter__(self) -> None:
        self._made = oci_whiteout(self._dir_fd, self._name)

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if self._made and isinstance(error, OSError):
            remove_oci_whiteout(self._dir_fd, self._name)


def oci_whiteout_beside(dir_fd: int, name: bytes) -> WhiteoutBeside:
    return WhiteoutBeside(dir_fd, name)


def _make_mark(dir_fd: int, name: bytes) -> bool:
    """Have a file of this name, whatever it is; never opened, as it may be a FIFO. False where there was one."""
    try:
        access.mknod(dir_fd, name, stat.S_IFREG | 0o600)
    except FileExistsError:
        return False
    return True


def draft_xattr_whiteout(state: State, dir_fd: int) -> drafts.Draft:
    """A whiteout to be published in an upper directory, in the format whose whiteouts are marked files."""
    draft = drafts.draft_file(state, inheritance.place_for(state, dir_fd))
    try:
        access.setxattr(draft.fd, state.prefix + marks.WHITEOUT, b"y")
        os.fchmod(draft.fd, 0o644)  # an ordinary user's reader must be able to see the mark
    except BaseException:
        draft.close()
        raise
    return draft


def announce(state: State, dir_fd: int) -> None:
    """Listings look for xattr whiteouts only where the directory says so."""
    if xattrs.read_xattr_of_descriptor(dir_fd, state.prefix + marks.OPAQUE) is None:
        access.setxattr(dir_fd, state.prefix + marks.OPAQUE, b"x")
