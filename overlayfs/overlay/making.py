"""How is something new made: create, mkdir, mknod, symlink, tmpfile?

In its place where one system call makes it complete; else whole in the workdir, and then published. Neighbour: names
(links, deletions).
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
from .ownership import Owner
from .state import State
from .values import Caller


def create(state: State, parent: Directory, name: bytes, mode: int, caller: Caller) -> Inode:
    """Make a regular file; its data descriptor stays in the pool."""
    made = _create_at_once(state, parent, name, mode, caller)
    if made is None:
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        draft = drafts.draft_file(state, inheritance.place_of_new(state, parent))
        made = _publish_new(state, draft, parent, name, mode, caller)
    return made


# The file is new and ours, so O_NONBLOCK and the like are not needed.
_CREATE_FLAGS = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


def _create_at_once(state: State, parent: Directory, name: bytes, mode: int, caller: Caller) -> Inode | None:
    """What one system call makes complete needs no draft; None where there is more to do."""
    prepare_new_name(state, parent, name)
    if not _is_plain_there(state, parent, name, caller):
        return None
    dir_fd, wanted = state.upper_fd(parent), stat.S_IMODE(mode) & ~caller.umask
    fd = state.descriptors.open(lambda: access.open_at(dir_fd, name, _CREATE_FLAGS, wanted))
    try:
        st = stat_of(fd)
        is_right = (st.st_gid, stat.S_IMODE(st.st_mode)) == (os.getegid(), wanted)  # a mount may say otherwise
    except OSError:
        is_right = False
    if not is_right:
        os.close(fd)
        access.unlink(dir_fd, name)
        return None
    drafts.note_changed(state, parent)
    inode = _adopt(state, parent, name, st)
    state.descriptors.add_file(inode.number, fd, writable=True)
    _sync_new(state, inode)
    return inode


def _is_plain_there(state: State, parent: Directory, name: bytes, caller: Caller) -> bool:
    """True where a new file of the caller gets nothing but its mode: the daemon's owner, no ACL, nothing replaced."""
    ids = state.ownership
    assert state.upper is not None
    return (
        (ids.disk_uid(caller.uid), ids.disk_gid(caller.gid)) == (os.geteuid(), os.getegid())
        and state.upper.override is None
        and name not in lookup.above(state, parent)
        and not attributes.attributes_of(state, parent).mode & stat.S_ISGID
        and xattrs.default_acl(state, parent) is None
    )


def mkdir(state: State, parent: Directory, name: bytes, mode: int, caller: Caller) -> Inode:
    mode = stat.S_IFDIR | stat.S_IMODE(mode)
    return _make_node(state, parent, name, mode, caller, drafts.maker(stat.S_IFDIR))


def symlink(state: State, parent: Directory, name: bytes, target: bytes, caller: Caller) -> Inode:
    mode = stat.S_IFLNK | 0o777
    return _make_node(state, parent, name, mode, caller, drafts.maker(stat.S_IFLNK, target=target))


def mknod(state: State, parent: Directory, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
    """Make any file but a directory or symlink; EPERM for device 0/0, which would be a whiteout."""
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    if kind == stat.S_IFREG:
        return create(state, parent, name, mode, caller)
    if kind == stat.S_IFCHR and rdev == 0:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), name)
    if kind not in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    return _make_node(state, parent, name, kind | stat.S_IMODE(mode), caller, drafts.maker(kind, rdev))


def _make_node(state: State, parent: Directory, name: bytes, mode: int, caller: Caller, make: Maker) -> Inode:
    """Anything but a regular file: in its place where one system call makes it complete, else as a draft."""
    prepare_new_name(state, parent, name)
    if _is_plain_there(state, parent, name, caller):
        made = _make_in_place(state, parent, name, mode if stat.S_ISLNK(mode) else mode & ~caller.umask, make)
        if made is not None:
            return made
    place = inheritance.place_of_new(state, parent)
    draft = drafts.draft_node(state, make, place, stat.S_ISDIR(mode))
    return _publish_new(state, draft, parent, name, mode, caller)


def _make_in_place(state: State, parent: Directory, name: bytes, wanted: int, make: Maker) -> Inode | None:
    dir_fd = state.upper_fd(parent)
    try:
        make(dir_fd, name, stat.S_IMODE(wanted))
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        return None  # a draft is moved there as `tree.access` can
    try:
        st = access.stat_at(dir_fd, name)
        is_right = (st.st_gid, st.st_mode) == (os.getegid(), wanted)  # a mount may say otherwise
    except OSError:
        is_right = False
    if not is_right:
        (access.rmdir if stat.S_ISDIR(wanted) else access.unlink)(dir_fd, name)
        return None
    drafts.note_changed(state, parent)
    inode = _adopt(state, parent, name, st)
    _sync_new(state, inode)
    return inode


def _publish_new(state: State, new: Draft, parent: Directory, name: bytes, mode: int, caller: Caller) -> Inode:
    with new as draft:
        _fill(state, draft, parent, mode, caller)
        if stat.S_ISDIR(mode) and lookup.in_lower(state, parent, name):
            whiteouts.make_opaque(state, draft.fd)
        before = stat_of(draft.fd)
        publish(state, draft, parent, name)
        inode = _adopt(state, parent, name, _stat_or(draft.fd, before))
        if stat.S_ISREG(mode):
            state.descriptors.add_file(inode.number, draft.keep_descriptor(), writable=True)
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


def _fill(state: State, draft: Draft, parent: Directory, mode: int, caller: Caller) -> None:
    ids = state.ownership
    gid = ids.disk_gid(caller.gid)
    if attributes.attributes_of(state, parent).mode & stat.S_ISGID:
        gid = attributes.group_on_disk(state, parent)
        mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
    inherited = inherit_acl(xattrs.default_acl(state, parent), mode, caller.umask)
    drafts.fill(state, draft, Owner(ids.disk_uid(caller.uid), gid, inherited.mode, 0), inherited.acls)


def publish(state: State, draft: Draft, parent: Directory, name: bytes) -> None:
    """Give a draft a name that the merged tree does not have, over whatever whiteout hides a lower one."""
    dir_fd = state.upper_fd(parent)
    hidden = lookup.above(state, parent).get(name) is Kind.WHITEOUT
    try:
        draft.publish(dir_fd, name)
    except FileExistsError:
        if not hidden:
            raise
        draft.replace(dir_fd, name)
    else:
        if hidden:
            whiteouts.remove_oci_whiteout(dir_fd, name)
    drafts.note_changed(state, parent)


def _adopt(state: State, parent: Directory, name: bytes, st: Stat) -> Inode:
    """The inode of what was just published. Nothing here can fail: it is done."""
    assert state.upper is not None
    inode = lookup.adopt(state, parent, name, state.upper.number(st), st)
    if isinstance(inode, Directory):
        inode.inheritance = parent.inheritance
    note_new_name(inode, parent, name)
    with drafts.afterwards():
        attributes.remember(state, inode, st, fewest_links=1)
    return inode


def _stat_or(fd: int, before: Stat) -> Stat:
    """What stat says after publishing; if it cannot, what it said before."""
    try:
        return stat_of(fd)
    except OSError:
        return before


def note_new_name(inode: Inode, parent: Directory, name: bytes) -> None:
    lookup.note(parent, name, Kind.DIRECTORY if inode.is_directory else Kind.FILE)
    parent.children[name] = inode
    parent.attributes = None


def tmpfile(state: State, parent: Directory, mode: int, caller: Caller) -> Inode:
    """A regular file without a name; `link` may give it one."""
    check_alive(state, parent)
    protection.refuse_new_name(state, parent)
    copyup.ensure_upper_directory(state, parent)
    assert state.upper is not None
    with drafts.draft_file(state, inheritance.place_of_new(state, parent)) as draft:
        _fill(state, draft, parent, stat.S_IFREG | stat.S_IMODE(mode), caller)
        st = stat_of(draft.fd)
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
