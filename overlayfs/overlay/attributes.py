"""What does stat(2) say of a file in the merged tree, and how is it changed?

Reading never copies up; every function that changes something may.
"""

from __future__ import annotations

import errno
import os
import stat

from ..tree import access, marks, metadata, syscalls, xattrs
from ..tree.syscalls import Stat, descriptor_path, stat_of
from . import content, copyup, protection
from .inodes import AttributeChanges, Attributes, Caller, Directory, Inode
from .layer import Layer, Location
from .ownership import Owner, bare_owner, format_override, parse_override
from .state import State

_NOTHING = AttributeChanges()
_NO_METADATA = (None,) * 5


def attributes_of(state: State, inode: Inode) -> Attributes:
    """The attributes; no system call while they are known."""
    known = inode.attributes
    return known if known is not None else remember(state, inode, real_stat(state, inode))


def remember(state: State, inode: Inode, st: Stat, fewest_links: int = 0) -> Attributes:
    """Keep what a stat of the file on disk says, as the mount shows it."""
    links, blocks = max(_link_count(state, inode, st), fewest_links), st.st_blocks
    if not blocks and st.st_size:
        blocks = _blocks(state, inode, st)
    if state.ownership.plain and layer_of(state, inode).override is None:
        shown = Attributes.as_on_disk(inode.number, st, links, blocks)
    else:
        uid, gid, mode, rdev = owner_of(state, inode, st)
        shown = Attributes.pack(
            inode.number, mode, links, uid, gid, rdev, st.st_size, blocks, st.st_blksize,
            st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns,
        )  # fmt: skip
    _keep(state, inode, shown)
    return shown


def _keep(state: State, inode: Inode, found: Attributes) -> None:
    """What is served without us changes without us."""
    unseen = inode.number in state.written_unseen or inode.number in state.passed_through
    inode.attributes = None if unseen else found


def note_read(state: State, inode: Inode) -> None:
    """Content, entries or target were read on the disk. No system call until somebody asks for the new access time."""
    known = inode.attributes
    if known is None or not inode.upper or inode.metacopy or not layer_of(state, inode).reads_move_times:
        return
    if known.may_move_when_read:
        inode.attributes = None


def real_stat(state: State, inode: Inode) -> Stat:
    """What stat says of the file on disk; ESTALE where it is gone."""
    orphan = state.orphans.get(inode.number)
    if orphan is not None:
        return stat_of(orphan)
    opened = state.descriptors.file(inode.number)
    if opened is not None and inode.upper and not inode.metacopy:
        return stat_of(opened.fd)
    if isinstance(inode, Directory) and inode.upper:
        held = state.descriptors.cached_directory(inode.number)
        if held is not None:
            return stat_of(held)
    dir_fd, name = state.place(inode)
    try:
        return access.stat_at(dir_fd, name)
    except FileNotFoundError:  # changed behind our back
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None


def owner_of(state: State, inode: Inode, st: Stat) -> Owner:
    """Owner and mode as shown: the override xattr first, then the id maps."""
    owner, ids = _mapless_owner(state, inode, st), state.ownership
    return owner if ids.plain else owner._replace(uid=ids.shown_uid(owner.uid), gid=ids.shown_gid(owner.gid))


def group_on_disk(state: State, inode: Inode) -> int:
    """The group with its id as on disk, which need not have one in the mount."""
    if state.ownership.plain:
        return attributes_of(state, inode).gid
    return _mapless_owner(state, inode, real_stat(state, inode)).gid


def _mapless_owner(state: State, inode: Inode, st: Stat) -> Owner:
    """Owner and mode with ids as on disk."""
    owner = Owner(st.st_uid, st.st_gid, st.st_mode, st.st_rdev)
    layer = layer_of(state, inode)
    if layer.override is not None and (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
        with state.node(inode) as fd:
            owner = read_override(layer, fd, owner)
    elif layer.override is not None:
        owner = bare_owner(st)
    return owner


def layer_of(state: State, inode: Inode) -> Layer:
    """The layer whose file is the visible one."""
    if inode.upper:
        assert state.upper is not None
        return state.upper
    return state.layers[inode.lowers[0].layer if isinstance(inode, Directory) else inode.lower_layer]


def read_override(layer: Layer, fd: int, owner: Owner) -> Owner:
    """`owner` as the override xattr of the file that `fd` refers to changes it."""
    try:
        value = access.getxattr(fd, layer.override or b"")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return owner
        raise
    found = parse_override(value)
    if found is None:
        return owner
    return found if stat.S_IFMT(found.mode) else found._replace(mode=found.mode | stat.S_IFMT(owner.mode))


def _link_count(state: State, inode: Inode, st: Stat) -> int:
    if isinstance(inode, Directory):
        if inode.parent is None and inode is not state.root:
            return 0
        merged = len(inode.lowers) + inode.upper > 1
        return 1 if merged or state.options.static_nlink else st.st_nlink
    if state.options.static_nlink:
        return 1
    return inode.names_left(st)


def _blocks(state: State, inode: Inode, st: Stat) -> int:
    """Blocks of a file that has none on disk; of a metacopy those of the file with the data, as in the kernel's
    overlayfs."""
    if not stat.S_ISREG(st.st_mode):
        return 0
    if not inode.metacopy and (inode.upper or inode.lower is None or not _is_metacopy(state, inode.lower)):
        return 0
    try:
        dir_fd, name = state.lower_place(content.location(state, inode))
    except marks.MissingDataError:
        return -(-st.st_size // st.st_blksize) * (st.st_blksize // 512)
    return access.stat_at(dir_fd, name).st_blocks


def _is_metacopy(state: State, location: Location) -> bool:
    return marks.read_marks(*state.lower_place(location), state.layers[location.layer].spelling).metacopy


def _with_lost_setgid(state: State, inode: Inode, changes: AttributeChanges, caller: Caller) -> AttributeChanges:
    """Truncation, chown and writing take setgid from a file, if the caller is not in its group.

    Where the group may execute, the kernel's FUSE does it; else it leaves it to us (setattr_should_drop_sgid), and
    announces a write by a SETATTR that changes nothing.
    """
    takes = changes.size is not None or changes.uid is not None or changes.gid is not None
    if changes.mode is not None or inode.kind != stat.S_IFREG or not (takes or changes == _NOTHING):
        return changes
    before = attributes_of(state, inode)
    may_write = takes or caller.uid == before.uid or before.mode & stat.S_IWOTH
    if before.mode & stat.S_IXGRP or not may_write or not _loses_setgid(before, caller):
        return changes
    return changes._replace(mode=before.mode & ~stat.S_ISGID)


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
    if (changes.mode, changes.uid, changes.gid, changes.atime_ns, changes.mtime_ns) == _NO_METADATA:
        return
    with state.upper_node(inode) as fd:
        try:
            _set_owner_and_mode(state, inode, fd, changes)
            if changes.atime_ns is not None or changes.mtime_ns is not None:
                syscalls.set_times(fd, changes.atime_ns, changes.mtime_ns)
        finally:
            inode.note_lost_privileges()


def _truncate(fd: int, size: int) -> None:
    """Set the size of the file that `fd` has open for writing; mtime stays where the size stays."""
    try:
        os.truncate(descriptor_path(fd), size)  # ftruncate(2) always sets mtime
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        if stat_of(fd).st_size != size:  # the mode does not allow any more what the descriptor does
            os.ftruncate(fd, size)


def refresh(state: State, inode: Inode, otherwise: Attributes) -> None:
    """Read the attributes again after a change that is done and stays done, even where they cannot be read."""
    try:
        remember(state, inode, real_stat(state, inode))
    except OSError:
        _keep(state, inode, otherwise)


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
    if changes.uid is None and changes.gid is None and changes.mode is None:
        return
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
    """What chown(2) does to file capabilities, where the owner is only written down."""
    try:
        access.removexattr(fd, metadata.CAPABILITY)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise


def statfs(state: State) -> os.statvfs_result:
    """The upper's filesystem, or that of the top lower layer for a read-only mount."""
    return os.fstatvfs((state.upper or state.stack[0]).root_fd)


# -- extended attributes


# Namespaces in which what exists is listed too, so that an absent name needs no system call.
_LISTED = (b"user.", b"security.", b"trusted.", b"system.posix_acl_")


def listxattr(state: State, inode: Inode) -> list[bytes]:
    """Names as seen inside the mount: marks hidden, escaped ones unescaped."""
    if not state.options.xattrs:
        return []
    spelling = layer_of(state, inode).spelling
    shown = (marks.shown_xattr(stored, spelling) for stored in stored_names(state, inode))
    return [name for name in shown if name is not None and _allowed(state, name)]


def stored_names(state: State, inode: Inode) -> tuple[bytes, ...]:
    """The names of all xattrs on disk; no system call while they are known, as most files have none and are asked."""
    known = inode.xattr_names
    if known is not None and metadata.CAPABILITY in known and inode.number in state.written_unseen:
        known = None  # a write that we have not seen takes it
    if known is None or state.revalidates:
        with state.node(inode) as fd:
            known = inode.xattr_names = xattrs.list_xattrs_of_descriptor(fd)
    return known


def find_xattr(state: State, inode: Inode, name: bytes) -> bytes | None:
    """One xattr; None where it is known that there is none, as each first write to a file asks for capabilities."""
    stored = marks.stored_xattr(name, layer_of(state, inode).spelling)
    if not _allowed(state, name):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if stored is None or (stored.startswith(_LISTED) and stored not in stored_names(state, inode)):
        return None
    with state.node(inode) as fd:
        value = access.getxattr(fd, stored)
    return state.ownership.shown_value(name, value)


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
    if find_xattr(state, inode, name) is None:  # before anything is copied up
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    copyup.ensure_upper(state, inode, copyup.Need.METADATA)
    with state.upper_node(inode) as fd:
        access.removexattr(fd, stored)
    _forget_cached(inode, name)


def _stored_for_change(state: State, name: bytes) -> bytes:
    if not _allowed(state, name):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    stored = marks.stored_xattr(name, marks.spelling(state.prefix, is_upper=True))
    if stored is None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    return stored


def _allowed(state: State, name: bytes) -> bool:
    is_acl = name in (metadata.ACCESS_ACL, metadata.DEFAULT_ACL)
    return state.options.acl if is_acl else state.options.xattrs


def _forget_cached(inode: Inode, name: bytes) -> None:
    inode.attributes = inode.xattr_names = None
    if isinstance(inode, Directory) and name == metadata.DEFAULT_ACL:
        inode.default_acl = False


def default_acl(state: State, directory: Directory) -> bytes | None:
    """The default ACL that new files in an upper directory inherit, with ids as on disk."""
    found = directory.default_acl
    if isinstance(found, bool):
        fd = state.upper_fd(directory)
        found = xattrs.read_xattr_of_descriptor(fd, metadata.DEFAULT_ACL) if state.options.acl else None
        directory.default_acl = found
    return found
