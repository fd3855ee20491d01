# cython: language_level=3, annotation_typing=False
"""Which operations do the immutable and append-only flags forbid to every caller?

The flags of a file in the upper are kept in an xattr, so that no flag on disk prevents a copy-up or the removal of the
upper; the flags of a lower file are its inode flags. The rules are the kernel's (fs/namei.c, fs/attr.c, fs/xattr.c,
fs/open.c). The upper's filesystem itself enforces a flag that is set on a file there. Every function here raises EPERM
or does nothing, and makes no system call if the flags are known to be absent. Compiled; C types are in
protection.pxd.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayfs._typing import NoReturn

from ..tree import marks, xattrs
from ..tree.fileflags import APPEND_ONLY, IMMUTABLE, protecting_flags
from .inodes import Directory, Inode
from .state import State
from .values import AttributeChanges

_PROTECTED = (stat.S_IFREG, stat.S_IFDIR)
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE


def flags_of(state: State, inode: Inode) -> int:
    """IMMUTABLE and APPEND_ONLY as far as they are set; one system call in the life of an inode of a lower layer."""
    known = inode.protection
    if known is None:
        known = _read(state, inode) if inode.kind in _PROTECTED else 0
        inode.protection = known
    return known


def _read(state: State, inode: Inode) -> int:
    if inode.number in state.orphans:  # of a file in the upper: its flags were known when it had a name
        return 0
    dir_fd, name = state.place(inode)
    if not inode.upper:
        try:
            return protecting_flags(dir_fd, name)
        except FileNotFoundError:  # the layer changed: who needs the file itself will notice
            return 0
    return marks.protection_of_value(xattrs.read_xattr(dir_fd, name, state.prefix + marks.PROTECTION))


def _refuse(name: bytes = b"") -> NoReturn:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM), name)


def refuse_open(state: State, inode: Inode, flags: int) -> None:
    """As may_open(): an immutable file is opened for reading only, an append-only file for reading or with O_APPEND."""
    if inode.protection == 0 or (flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC):
        return
    found = flags_of(state, inode)
    if found & IMMUTABLE or (found & APPEND_ONLY and (not flags & os.O_APPEND or flags & os.O_TRUNC)):
        _refuse(inode.name)


def refuse_write(state: State, inode: Inode, appends: bool, opened_unasked: bool) -> None:
    """What `refuse_open` would have refused, for a file that was opened without asking.

    For others only what does not append: fcntl(2) may have taken O_APPEND from the open file, which the kernel refuses
    only where it knows the file's flags itself.
    """
    if inode.protection == 0:
        return
    found = flags_of(state, inode)
    if (found & IMMUTABLE and opened_unasked) or (found & APPEND_ONLY and not appends):
        _refuse(inode.name)


def refuse_allocation(state: State, inode: Inode, mode: int) -> None:
    """As vfs_fallocate(): of an append-only file space may be reserved, but no content changed."""
    if inode.protection != 0 and (found := flags_of(state, inode)) and (found & IMMUTABLE or mode & ~_KEEP_SIZE):
        _refuse(inode.name)


def refuse_change(state: State, inode: Inode) -> None:
    """EPERM for changing xattrs or the number of links."""
    if inode.protection != 0 and flags_of(state, inode):
        _refuse(inode.name)


def refuse_attributes(state: State, inode: Inode, changes: AttributeChanges) -> None:
    """As may_setattr() and vfs_truncate()."""
    if inode.protection == 0 or changes.is_nothing or not (found := flags_of(state, inode)):
        return
    if changes.by_writing and not found & IMMUTABLE:
        return
    if not _is_of_writeback(inode, changes):
        _refuse(inode.name)


def _is_of_writeback(inode: Inode, changes: AttributeChanges) -> bool:
    """True for the times of writes that the kernel held back (writeback=1), and that were allowed when they were made:
    nothing else brings a ctime and an mtime alone."""
    others = changes.mode, changes.uid, changes.gid, changes.size, changes.atime_ns
    return inode.opens > 0 and changes.ctime_ns is not None and others == (None,) * 5


def refuse_new_name(state: State, parent: Directory) -> None:
    """In an append-only directory names may be made."""
    if parent.protection != 0 and flags_of(state, parent) & IMMUTABLE:
        _refuse()


def refuse_removal(state: State, parent: Directory, inode: Inode) -> None:
    """As may_delete(): of a name, by unlink, rmdir or rename."""
    if (parent.protection != 0 and flags_of(state, parent)) or (inode.protection != 0 and flags_of(state, inode)):
        state.drop_if_unused(inode)
        _refuse(inode.name)
