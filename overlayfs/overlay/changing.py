# cython: language_level=3, annotation_typing=False
"""How are the attributes and extended attributes of a file changed?

Every function here may copy up. Compiled; C types are in changing.pxd.
"""

from __future__ import annotations

import errno
import os
import stat

from ..tree import access, marks, metadata, syscalls
from ..tree.syscalls import Stat, descriptor_path, stat_of
from . import content, copyup, protection, xattrs
from .attributes import attributes_of, read_override
from .inodes import Directory, Inode
from .ownership import Owner, format_override
from .state import State
from .values import AttributeChanges, Attributes, Caller


def _with_lost_setgid(state: State, inode: Inode, changes: AttributeChanges, caller: Caller) -> AttributeChanges:
    """Truncation, chown and writing take setgid from a file, if the caller is not in its group.

    Where the group may execute, the kernel's FUSE does it; else it leaves it to us (setattr_should_drop_sgid), and
    announces a write by a SETATTR that changes nothing.
    """
    takes = changes.size is not None or changes.uid is not None or changes.gid is not None
    if changes.mode is not None or inode.kind != stat.S_IFREG or not (takes or changes.is_nothing):
        return changes
    before = attributes_of(state, inode)
    may_write = takes or caller.uid == before.uid or before.mode & stat.S_IWOTH
    if before.mode & stat.S_IXGRP or not may_write or not _loses_setgid(before, caller):
        return changes
    return changes.with_mode(before.mode & ~stat.S_ISGID, changes.by_writing)


def change(state: State, inode: Inode, changes: AttributeChanges, caller: Caller) -> None:
    """Apply the changes; the size first, as the other steps must survive what truncation clears."""
    if changes.size is not None and inode.is_directory:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    protection.refuse_attributes(state, inode, changes)
    changes = _with_lost_setgid(state, inode, changes, caller)
    need = copyup.Need.METADATA if changes.size is None else copyup.Need.DATA
    truncated = copyup.ensure_upper(state, inode, need, changes.size)
    if changes.size is not None and not truncated:
        opened = content.open_pooled(state, inode, writable=True)
        inode.note_lost_privileges()
        _truncate(opened.fd, changes.size)
    owner_or_mode = changes.mode is not None or changes.uid is not None or changes.gid is not None
    times = changes.atime_ns is not None or changes.mtime_ns is not None
    if not owner_or_mode and not times:
        return
    with state.upper_node(inode) as fd:
        try:
            if owner_or_mode:
                _set_owner_and_mode(state, inode, fd, changes)
            if times:
                syscalls.set_times(fd, changes.atime_ns, changes.mtime_ns)
        finally:
            inode.note_lost_privileges()


def _truncate(fd: int, size: int) -> None:
    """Set the size of the file that `fd` has open for writing; mtime stays where the size stays, unless that is 0:
    open(2) with O_TRUNC, which the kernel sends as the same message, sets it."""
    try:
        if size:
            os.truncate(descriptor_path(fd), size)
        else:
            os.ftruncate(fd, 0)  # which always sets mtime
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        if stat_of(fd).st_size != size:  # the mode does not allow any more what the descriptor does
            os.ftruncate(fd, size)


def after_change(state: State, inode: Inode, before: Attributes | None, changes: AttributeChanges) -> Attributes:
    """The attributes after `change`; what was done is answered even where they cannot be read again, as long as it is
    known what they were before."""
    try:
        return attributes_of(state, inode)
    except OSError:
        if before is None:
            raise
        asked = {name: getattr(changes, name) for name in ("uid", "gid", "size", "atime_ns", "mtime_ns")}
        mode = before.mode if changes.mode is None else stat.S_IFMT(before.mode) | stat.S_IMODE(changes.mode)
        return before.changed(mode=mode, **{name: value for name, value in asked.items() if value is not None})


def _set_owner_and_mode(state: State, inode: Inode, fd: int, changes: AttributeChanges) -> None:
    ids = state.ownership
    uid = -1 if changes.uid is None else ids.disk_uid(changes.uid)
    gid = -1 if changes.gid is None else ids.disk_gid(changes.gid)
    assert state.upper is not None
    if state.upper.override is not None and (inode.kind in (stat.S_IFREG, stat.S_IFDIR)):
        _change_override(state, fd, stat_of(fd), uid, gid, changes.mode)
        if uid != -1 or gid != -1:
            _remove_capability(fd)
        return
    if uid != -1 or gid != -1:
        syscalls.set_owner(fd, uid, gid)
    if changes.mode is not None and not stat.S_ISLNK(inode.kind):
        syscalls.set_mode(fd, stat.S_IMODE(changes.mode))


def _change_override(state: State, fd: int, st: Stat, uid: int, gid: int, mode: int | None) -> None:
    assert state.upper is not None and state.upper.override is not None
    owner = read_override(state.upper, fd, Owner(st.st_uid, st.st_gid, st.st_mode, st.st_rdev))
    changed = Owner(
        owner.uid if uid == -1 else uid,
        owner.gid if gid == -1 else gid,
        owner.mode if mode is None else stat.S_IFMT(owner.mode) | stat.S_IMODE(mode),
        owner.rdev,
    )
    access.setxattr(fd, state.upper.override, format_override(changed))


def _remove_capability(fd: int) -> None:
    """Remove file capabilities as chown(2) does, if the owner is stored in an override xattr only."""
    try:
        access.removexattr(fd, metadata.CAPABILITY)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise


# -- extended attributes


def setxattr(state: State, inode: Inode, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
    stored = _stored_for_change(state, name)
    protection.refuse_change(state, inode)
    value = state.ownership.disk_value(name, value)
    copyup.ensure_upper(state, inode, copyup.Need.METADATA)
    before = attributes_of(state, inode)
    with state.upper_node(inode) as fd:
        access.setxattr(fd, stored, value, flags)
        _forget_cached(inode, name)
        if name == metadata.ACCESS_ACL and _loses_setgid(before, caller):  # as on ext4 (posix_acl_update_mode)
            mode = attributes_of(state, inode).mode & ~stat.S_ISGID
            _set_owner_and_mode(state, inode, fd, AttributeChanges(mode=mode))
            inode.attributes = None


def _loses_setgid(before: Attributes, caller: Caller) -> bool:
    """True where a change by the caller takes the setgid bit away: who is not in the group may not leave it."""
    outside = before.gid != caller.gid and before.gid not in caller.groups
    return bool(before.mode & stat.S_ISGID) and outside and caller.uid != 0


def removexattr(state: State, inode: Inode, name: bytes) -> None:
    stored = _stored_for_change(state, name)
    protection.refuse_change(state, inode)
    if xattrs.find_xattr(state, inode, name) is None:  # before anything is copied up
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    copyup.ensure_upper(state, inode, copyup.Need.METADATA)
    with state.upper_node(inode) as fd:
        access.removexattr(fd, stored)
    _forget_cached(inode, name)


def _stored_for_change(state: State, name: bytes) -> bytes:
    if not xattrs.allowed(state, name):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    stored = marks.stored_xattr(name, marks.spelling(state.prefix, is_upper=True))
    if stored is None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    return stored


def _forget_cached(inode: Inode, name: bytes) -> None:
    inode.attributes = inode.xattr_names = None
    if isinstance(inode, Directory) and name == metadata.DEFAULT_ACL:
        inode.default_acl = False
