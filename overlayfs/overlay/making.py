# cython: language_level=3, annotation_typing=False
"""How is something new made: create, mkdir, mknod, symlink, tmpfile?

In its place where one system call makes it complete; else whole in the workdir, and then published. Neighbour: names
(links, deletions). Compiled; C types are in making.pxd.
"""

from __future__ import annotations

import errno
import os
import stat

from ..tree import access
from ..tree.metadata import inherit_acl
from ..tree.syscalls import Stat, stat_of
from . import attributes, copyup, drafts, inheritance, lookup, protection, whiteouts, xattrs
from .drafts import Draft, Maker
from .inodes import Directory, Inode
from .merge import Kind
from .state import State
from .values import Caller

_WHITEOUT, _FILE, _DIRECTORY_KIND = Kind.WHITEOUT, Kind.FILE, Kind.DIRECTORY
_FORMAT, _DIRECTORY, _REGULAR, _LINK = 0o170000, stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK
_SETGID, _PERMISSIONS = stat.S_ISGID, 0o7777
# The file is new and ours, so O_NONBLOCK and the like are not needed.
_CREATE_FLAGS = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


def create(state: State, parent: Directory, name: bytes, mode: int, caller: Caller) -> Inode:
    """Make a regular file; its data descriptor stays in the pool."""
    prepare_new_name(state, parent, name)
    mode = _REGULAR | mode & _PERMISSIONS
    if _is_plain_there(state, parent, name, caller):
        made = _create_in_place(state, parent, name, mode & ~caller.umask)
        if made is not None:
            return made
    place, bits = inheritance.place_of_new(state, parent), mode & ~caller.umask & _PERMISSIONS
    draft = drafts.draft_file(state, place, bits, _is_hidden(state, parent, name))
    return _publish_new(state, draft, parent, name, mode, caller)


def _create_in_place(state: State, parent: Directory, name: bytes, wanted: int) -> Inode | None:
    """Make the file in its place if one system call makes it complete; None if it needs a draft."""
    dir_fd = state.upper_fd(parent)
    fd = state.descriptors.open_at(dir_fd, name, _CREATE_FLAGS, wanted & _PERMISSIONS)
    try:
        st = stat_of(fd)
        is_right = _is_right(state, parent, st, wanted)
    except OSError:
        is_right = False
    if not is_right:
        os.close(fd)
        access.unlink(dir_fd, name)
        return None
    inode = _adopt(state, parent, name, st)
    state.descriptors.add_file(inode.number, fd, True)
    _sync_new(state, inode)
    return inode


def _is_plain_there(state: State, parent: Directory, name: bytes, caller: Caller) -> bool:
    """True where a new file of the caller gets nothing but its mode: the daemon's owner, no ACL, nothing replaced."""
    ids, upper = state.ownership, state.upper
    assert upper is not None
    uid = caller.uid if ids.plain else ids.disk_uid(caller.uid)
    gid = caller.gid if ids.plain else ids.disk_gid(caller.gid)
    return (
        uid == ids.own_uid
        and gid == ids.own_gid
        and upper.override is None
        and name not in lookup.above(state, parent)
        and (parent.default_acl is None or xattrs.default_acl(state, parent) is None)
    )


def _is_right(state: State, parent: Directory, st: Stat, wanted: int) -> bool:
    """Whether what was made in place is what the caller is to get; a mount of the disk may say otherwise.

    In a setgid directory it has that one's group, and a directory hands the bit on.
    """
    mode: int = st.st_mode
    if mode == wanted and st.st_gid == state.ownership.own_gid:
        return True
    if not attributes.attributes_of(state, parent).mode & _SETGID:
        return False
    if wanted & _FORMAT == _DIRECTORY:
        wanted |= _SETGID
    return mode == wanted and st.st_gid == attributes.group_on_disk(state, parent)


def mkdir(state: State, parent: Directory, name: bytes, mode: int, caller: Caller) -> Inode:
    return _make_node(state, parent, name, mode & _PERMISSIONS, caller, drafts.maker(_DIRECTORY))


def symlink(state: State, parent: Directory, name: bytes, target: bytes, caller: Caller) -> Inode:
    return _make_node(state, parent, name, 0o777, caller, drafts.maker(_LINK, 0, target))


def mknod(state: State, parent: Directory, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
    """Make any file but a directory or symlink; EPERM for device 0/0, which would be a whiteout."""
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    if kind == stat.S_IFREG:
        return create(state, parent, name, mode, caller)
    if kind == stat.S_IFCHR and rdev == 0:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), name)
    if kind not in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    return _make_node(state, parent, name, mode & _PERMISSIONS, caller, drafts.maker(kind, rdev))


def _make_node(state: State, parent: Directory, name: bytes, bits: int, caller: Caller, make: Maker) -> Inode:
    """Anything but a regular file: in its place where one system call makes it complete, else as a draft."""
    prepare_new_name(state, parent, name)
    granted = bits if make.kind == _LINK else bits & ~caller.umask
    if _is_plain_there(state, parent, name, caller):
        made = _make_in_place(state, parent, name, granted, make)
        if made is not None:
            return made
    draft = drafts.draft_node(state, make, inheritance.place_of_new(state, parent), granted)
    return _publish_new(state, draft, parent, name, make.kind | bits, caller)


def _make_in_place(state: State, parent: Directory, name: bytes, bits: int, make: Maker) -> Inode | None:
    dir_fd = state.upper_fd(parent)
    try:
        make.make(dir_fd, name, bits)
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        return None  # a draft is moved there as `tree.access` can
    try:
        st = access.stat_at(dir_fd, name)
        is_right = _is_right(state, parent, st, make.kind | bits)
    except OSError:
        is_right = False
    if not is_right:
        if make.kind == _DIRECTORY:
            access.rmdir(dir_fd, name)
        else:
            access.unlink(dir_fd, name)
        return None
    inode = _adopt(state, parent, name, st)
    if isinstance(inode, Directory):
        inode.default_acl = None  # its parent has none
    _sync_new(state, inode)
    return inode


def _publish_new(state: State, draft: Draft, parent: Directory, name: bytes, mode: int, caller: Caller) -> Inode:
    try:
        before = _fill(state, draft, parent, mode, caller)
        kind = mode & _FORMAT
        if kind == _DIRECTORY and lookup.in_lower(state, parent, name):
            whiteouts.make_opaque(state, draft.fd)
        publish(state, draft, parent, name)
        inode = _adopt(state, parent, name, _stat_or(draft.fd, before))
        if kind == _REGULAR:
            state.descriptors.add_file(inode.number, draft.keep_descriptor(), True)
    finally:
        draft.close()
    _sync_new(state, inode)
    return inode


def _sync_new(state: State, inode: Inode) -> None:
    try:
        drafts.sync_changed(state)
    except OSError:
        state.drop_if_unused(inode)
        raise


def prepare_new_name(state: State, parent: Directory, name: bytes) -> None:
    """All checks, and the parent's copy-up, for a name that is going to be made."""
    check_new_name(state, parent, name)
    copyup.ensure_upper_directory(state, parent)


def check_new_name(state: State, parent: Directory, name: bytes) -> None:
    lookup.check_new_name(name)
    check_alive(state, parent)
    if lookup.child(state, parent, name) is not None:
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    protection.refuse_new_name(state, parent)


def check_alive(state: State, parent: Directory) -> None:
    """ENOENT for a directory that was removed and is only still in use."""
    if parent is not state.root and parent.parent is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _fill(state: State, draft: Draft, parent: Directory, mode: int, caller: Caller) -> Stat:
    ids = state.ownership
    uid, gid = ids.disk_uid(caller.uid), ids.disk_gid(caller.gid)
    if attributes.attributes_of(state, parent).mode & _SETGID:
        gid = attributes.group_on_disk(state, parent)
        mode |= _SETGID if mode & _FORMAT == _DIRECTORY else 0
    acl = xattrs.default_acl(state, parent)
    if acl is None:
        return drafts.fill(state, draft, uid, gid, mode if mode & _FORMAT == _LINK else mode & ~caller.umask, ())
    inherited = inherit_acl(acl, mode, caller.umask)
    return drafts.fill(state, draft, uid, gid, inherited.mode, inherited.acls)


def publish(state: State, draft: Draft, parent: Directory, name: bytes) -> None:
    """Give a draft a name that the merged tree does not have, over whatever whiteout hides a lower one."""
    dir_fd = state.upper_fd(parent)
    hidden = _is_hidden(state, parent, name)
    try:
        draft.publish(dir_fd, name)
    except FileExistsError:
        if not hidden:
            raise
        draft.replace(dir_fd, name)
    else:
        if hidden:
            whiteouts.remove_oci_whiteout(dir_fd, name)


def _is_hidden(state: State, parent: Directory, name: bytes) -> bool:
    return lookup.above(state, parent).get(name) is _WHITEOUT


def _adopt(state: State, parent: Directory, name: bytes, st: Stat) -> Inode:
    """The inode of what was just published. Nothing here can fail: it is done."""
    upper = state.upper
    assert upper is not None
    drafts.note_changed(state, parent)
    inode = lookup.adopt(state, parent, name, upper.number(st), st)
    if isinstance(inode, Directory):
        inode.inheritance = parent.inheritance
        inode.above = {}
    note_new_name(inode, parent, name)
    try:
        attributes.remember(state, inode, st, 1)
    except OSError as error:
        drafts.note_left_over(error)
    return inode


def _stat_or(fd: int, before: Stat) -> Stat:
    """What stat says after publishing; if it cannot, what it said before."""
    try:
        return stat_of(fd)
    except OSError:
        return before


def note_new_name(inode: Inode, parent: Directory, name: bytes) -> None:
    lookup.note(parent, name, _DIRECTORY_KIND if isinstance(inode, Directory) else _FILE)
    parent.children[name] = inode
    parent.attributes = None


def tmpfile(state: State, parent: Directory, mode: int, caller: Caller) -> Inode:
    """A regular file without a name; `link` may give it one."""
    check_alive(state, parent)
    protection.refuse_new_name(state, parent)
    copyup.ensure_upper_directory(state, parent)
    assert state.upper is not None
    with drafts.draft_file(state, inheritance.place_of_new(state, parent)) as draft:
        st = _fill(state, draft, parent, stat.S_IFREG | stat.S_IMODE(mode), caller)
        inode = Inode(state.free_number(state.upper.number(st)), stat.S_IFREG, None, b"")
        state.inodes.add(inode)
        inode.upper, inode.protection = True, 0
        state.orphans[inode.number] = draft.keep_descriptor()
    try:
        drafts.sync_changed(state)
    except OSError:
        state.drop_if_unused(inode)
        raise
    return inode
