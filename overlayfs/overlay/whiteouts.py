"""How is a deletion written into the upper?

Three formats (formats: "Write"); the mount uses one. In each, a name is hidden in one step.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Final

from ..tree import marks, syscalls
from ..tree.syscalls import descriptor_path
from . import drafts
from .options import WhiteoutFormat
from .state import State

LONGEST_NAME: Final = 255  # bytes; of every filesystem that can be an upper
_MODE = stat.S_IFCHR  # the kernel's whiteouts have no permission bits


def whiteout(state: State, dir_fd: int, name: bytes) -> None:
    """Hide `name`, which the upper directory `dir_fd` does not have."""
    if state.whiteout is WhiteoutFormat.OVERLAY:
        os.mknod(name, _MODE, 0, dir_fd=dir_fd)
    elif state.whiteout is WhiteoutFormat.OCI:
        oci_whiteout(state, dir_fd, name)
    else:
        announce(state, dir_fd)
        with _xattr_whiteout(state) as draft:
            draft.publish(dir_fd, name)


def replace_by_whiteout(state: State, dir_fd: int, name: bytes) -> bool:
    """Hide `name` and remove what the upper directory `dir_fd` has under it, in that order or at once.

    False where it is hidden but could not be removed from the workdir.
    """
    work_fd, gone = state.work_fd, state.draft_name()
    assert work_fd is not None
    if state.whiteout is WhiteoutFormat.OVERLAY:
        syscalls.renameat2(dir_fd, name, work_fd, gone, syscalls.RENAME_WHITEOUT)
    elif state.whiteout is WhiteoutFormat.OCI:
        oci_whiteout(state, dir_fd, name)
        try:
            os.rename(name, gone, src_dir_fd=dir_fd, dst_dir_fd=work_fd)
        except OSError:
            remove_oci_whiteout(dir_fd, name)
            raise
    else:
        announce(state, dir_fd)
        with _xattr_whiteout(state) as draft:
            draft.publish(work_fd, gone)
        try:
            syscalls.renameat2(dir_fd, name, work_fd, gone, syscalls.RENAME_EXCHANGE)
        except OSError:
            with drafts.afterwards():
                drafts.remove(work_fd, gone)
            raise
    return drafts.removed_from_work(work_fd, gone)


def draft_whiteout(state: State) -> drafts.Draft:
    """A whiteout to be published over something; not in the OCI format, whose whiteouts are other names."""
    if state.whiteout is WhiteoutFormat.OVERLAY:
        return drafts.draft_node(state, _MODE, 0)
    return _xattr_whiteout(state)


def remove_whiteout(dir_fd: int, name: bytes) -> None:
    """Remove a whiteout of any spelling."""
    for spelling in (name, marks.oci_whiteout(name)):
        try:
            os.unlink(spelling, dir_fd=dir_fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                raise


def remove_oci_whiteout(dir_fd: int, name: bytes) -> None:
    """Remove the OCI spelling of a whiteout, if there is one, beside the file that took its place."""
    with drafts.afterwards(), suppress(FileNotFoundError):
        if len(marks.oci_whiteout(name)) <= LONGEST_NAME:
            os.unlink(marks.oci_whiteout(name), dir_fd=dir_fd)


def make_opaque(state: State, fd: int) -> None:
    """Let an upper directory hide all that lies below it."""
    if state.whiteout is WhiteoutFormat.OCI or not state.xattrs_work:
        before = os.fstat(fd)
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(state.descriptors.open(lambda: os.open(marks.OPAQUE_NAME, flags, 0o600, dir_fd=fd)))
        with drafts.afterwards():  # nobody is to see that something was done
            syscalls.set_times(fd, before.st_atime_ns, before.st_mtime_ns)
    else:
        os.setxattr(descriptor_path(fd), state.prefix + marks.OPAQUE, b"y")


def oci_whiteout(state: State, dir_fd: int, name: bytes) -> None:
    flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(state.descriptors.open(lambda: os.open(marks.oci_whiteout(name), flags, 0o600, dir_fd=dir_fd)))


def _xattr_whiteout(state: State) -> drafts.Draft:
    draft = drafts.draft_file(state)
    try:
        os.setxattr(descriptor_path(draft.fd), state.prefix + marks.WHITEOUT, b"y")
        os.fchmod(draft.fd, 0o644)  # an ordinary user's reader must be able to see the mark
    except BaseException:
        draft.__exit__()
        raise
    return draft


def announce(state: State, dir_fd: int) -> None:
    """Listings look for xattr whiteouts only where the directory says so."""
    path = descriptor_path(dir_fd)
    if marks.read_xattr_of_target(path, state.prefix + marks.OPAQUE) is None:
        os.setxattr(path, state.prefix + marks.OPAQUE, b"x")
