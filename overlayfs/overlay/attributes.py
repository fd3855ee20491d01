# cython: language_level=3, annotation_typing=False
"""Which attributes does stat(2) report for a file in the merged tree?

Nothing here copies up. Neighbours: changing (how it is changed), xattrs. Compiled; C types are in attributes.pxd.
"""

from __future__ import annotations

import errno
import os
import stat

from ..tree import access, marks
from ..tree.syscalls import Stat, stat_of
from . import content
from .inodes import Directory, Inode
from .layer import Layer, Location
from .ownership import Owner, bare_owner, parse_override
from .state import State
from .values import Attributes


def attributes_of(state: State, inode: Inode) -> Attributes:
    """The attributes; no system call while they are known."""
    known = inode.attributes
    return known if known is not None else remember(state, inode, real_stat(state, inode))


def remember(state: State, inode: Inode, st: Stat, fewest_links: int = 0) -> Attributes:
    """Cache the stat of the file on disk, translated as the mount shows it."""
    links, blocks = max(_link_count(state, inode, st), fewest_links), st.st_blocks
    if not blocks and st.st_size:
        blocks = _blocks(state, inode, st)
    inode.show_as_on_disk(st, links, blocks)
    if not state.ownership.plain or layer_of(state, inode).override is not None:
        inode.show_owner(*owner_of(state, inode, st))
    found = inode.attributes
    assert found is not None
    if is_changed_unseen(state, inode):
        inode.attributes = None
    return found


def is_changed_unseen(state: State, inode: Inode) -> bool:
    """Attributes of files in passthrough are not cached: the kernel changes them without the daemon."""
    return inode.number in state.written_unseen or inode.number in state.passed_through


def note_read(state: State, inode: Inode) -> None:
    """Note that content, entries or target were read on the disk. No system call until the new access time is
    requested."""
    if not inode.is_known or not inode.upper or inode.metacopy or not layer_of(state, inode).reads_move_times:
        return
    if inode.reads_may_move_times():
        inode.attributes = None


def real_stat(state: State, inode: Inode) -> Stat:
    """The stat of the file on disk; ESTALE if it is gone."""
    orphan = state.orphans.get(inode.number)
    if orphan is not None:
        return stat_of(orphan)
    opened = state.descriptors.file(inode.number)
    if opened is not None and inode.upper and not inode.metacopy:
        return stat_of(opened.fd)
    if isinstance(inode, Directory) and inode.upper:
        held = state.descriptors.cached_directory(inode.number)
        if held >= 0:
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


def refresh(state: State, inode: Inode, otherwise: Attributes) -> None:
    """Read the attributes again after a change that is done and stays done, even where they cannot be read."""
    try:
        remember(state, inode, real_stat(state, inode))
    except OSError:
        inode.attributes = None if is_changed_unseen(state, inode) else otherwise


def statfs(state: State) -> os.statvfs_result:
    """The upper's filesystem, or that of the top lower layer for a read-only mount."""
    return os.fstatvfs((state.upper or state.stack[0]).root_fd)
