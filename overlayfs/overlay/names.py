# cython: language_level=3, annotation_typing=False
"""How are names of existing files added and removed: link, unlink, rmdir?

A deletion hides the name in one step, and copies no data up. Neighbour: making (what is new). Compiled; C
types are in names.pxd.
"""

from __future__ import annotations

import errno
import os

from ..tree import access, metadata, syscalls
from ..tree.syscalls import stat_of
from . import attributes, copyup, drafts, impure, indexing, inheritance, lookup, making, protection, whiteouts
from .drafts import Draft
from .inodes import Directory, Inode
from .layer import UPPER_INDEX
from .merge import Kind
from .options import WhiteoutFormat
from .state import State

_WHITEOUT, _OPAQUE_DIRECTORY = Kind.WHITEOUT, Kind.OPAQUE_DIRECTORY


def link(state: State, inode: Inode, parent: Directory, name: bytes) -> None:
    """Give a file one more name."""
    if inode.is_directory:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    making.check_new_name(state, parent, name)
    protection.refuse_change(state, inode)
    copyup.ensure_upper_directory(state, parent)
    copyup.copy_up(state, inode)
    if not inode.upper:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    st = attributes.real_stat(state, inode)
    if inode.index_name is not None:
        indexing.before_linking(state, inode)
    before = attributes.attributes_of(state, inode)
    dir_fd = state.upper_fd(parent)
    orphan = state.orphans.get(inode.number)
    if orphan is not None:
        _link_orphan(state, inode, parent, orphan, dir_fd, name)
    else:
        _link_named(state, inode, parent, dir_fd, name)
    state.share(inode, UPPER_INDEX, st)
    inode.add_name(parent, name)
    making.note_new_name(inode, parent, name)
    drafts.note_changed(state, parent)
    attributes.refresh(state, inode, before.changed(nlink=before.nlink + 1))
    drafts.sync_changed(state)


def _link_named(state: State, inode: Inode, parent: Directory, dir_fd: int, name: bytes) -> None:
    from_fd, source = state.place(inode)
    impure.mark_for(state, parent, inode)
    if not _is_hidden(state, parent, name):
        access.link(from_fd, source, dir_fd, name)
        return
    try:
        access.link(from_fd, source, dir_fd, name)
        whiteouts.remove_oci_whiteout(dir_fd, name)
    except FileExistsError:
        draft = state.draft_name()
        access.link(from_fd, source, drafts.work_fd_of(state), draft)
        _replace_whiteout(state, draft, dir_fd, name)


def _link_orphan(state: State, inode: Inode, parent: Directory, orphan: int, dir_fd: int, name: bytes) -> None:
    """Name an O_TMPFILE; ENOENT for a file that was unlinked, as everywhere."""
    try:
        access.link_descriptor(orphan, dir_fd, name)
        if _is_hidden(state, parent, name):
            whiteouts.remove_oci_whiteout(dir_fd, name)
    except FileExistsError:
        if not _is_hidden(state, parent, name):
            raise
        draft = state.draft_name()
        access.link_descriptor(orphan, drafts.work_fd_of(state), draft)
        _replace_whiteout(state, draft, dir_fd, name)
    state.drop_orphan(inode)


def _is_hidden(state: State, parent: Directory, name: bytes) -> bool:
    return lookup.above(state, parent).get(name) is _WHITEOUT


def _replace_whiteout(state: State, draft: bytes, dir_fd: int, name: bytes) -> None:
    """Have a link in the workdir take the place of a whiteout in one step, so that a failure uncovers nothing."""
    work_fd = drafts.work_fd_of(state)
    try:
        access.rename(work_fd, draft, dir_fd, name)
    except OSError:
        drafts.remove(work_fd, draft)
        raise


def unlink(state: State, parent: Directory, name: bytes) -> None:
    lookup.check_name(name)
    inode = lookup.existing_child(state, parent, name)
    protection.refuse_removal(state, parent, inode)
    if inode.is_directory:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    hide(state, parent, name, inode)


def hide(state: State, parent: Directory, name: bytes, inode: Inode) -> None:
    """Take a name out of the merged tree; the inode keeps what it needs to live on."""
    copyup.ensure_upper_directory(state, parent)
    dir_fd = state.upper_fd(parent)
    covered = lookup.in_lower(state, parent, name)
    if prepare_to_hide(state, parent, name, inode):
        holds = hold(state, inode)
        try:
            _remove(state, dir_fd, name, inode, covered)
        except BaseException:
            if holds:
                state.drop_orphan(inode)
            raise
        lookup.note(parent, name, _WHITEOUT if covered else None)
    else:
        whiteouts.whiteout(state, dir_fd, name)
        lookup.note(parent, name, _WHITEOUT)
        note_hidden(state, inode)
    parent.attributes = None
    drafts.note_changed(state, parent)
    forget_name(state, inode, parent, name)
    drafts.sync_changed(state)


def _remove(state: State, dir_fd: int, name: bytes, inode: Inode, covered: bool) -> None:
    if covered:
        inode.lost_links += not whiteouts.replace_by_whiteout(state, dir_fd, name)
    elif inode.is_directory:
        _remove_directory(state, dir_fd, name)
    else:
        access.unlink(dir_fd, name)


def _remove_directory(state: State, dir_fd: int, name: bytes) -> None:
    try:
        access.rmdir(dir_fd, name)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        remove_replaced(state, dir_fd, name)


def remove_replaced(state: State, dir_fd: int, name: bytes) -> None:
    """Remove a directory that shows nothing but still holds its OCI opaque file."""
    gone, work_fd = state.draft_name(), state.work_fd
    assert work_fd is not None
    access.rename(dir_fd, name, work_fd, gone)
    with drafts.afterwards():
        drafts.remove(work_fd, gone)


def prepare_to_hide(state: State, parent: Directory, name: bytes, inode: Inode) -> bool:
    """Before a name is hidden: see to it that the count of names stays right. True where the upper has the name.

    A hard-linked file that is in the upper gets this name there too, as then deleting it counts by itself.
    """
    upper = lookup.above(state, parent)
    if name not in upper and inode.index_name is not None:
        indexing.link_lower_name(state, inode, parent, name)
    elif name not in upper and inode.shared_as and not inode.upper:
        indexing.about_to_delete_name(state, inode, parent, name)
    return name in upper


def note_hidden(state: State, inode: Inode) -> None:
    """A name that only the lower layers had is hidden: count it down."""
    if inode.is_directory:
        return
    if inode.shared_as and not inode.upper:
        indexing.deleted_name(state, inode)
    else:
        inode.lost_links += 1
        inode.attributes = None


def hold(state: State, inode: Inode) -> bool:
    """A name of an upper file is about to go: if it is the last one, keep hold of the file for those who use it.

    True where it is held only since now: then `state.drop_orphan` where the name stays after all.
    """
    if inode.index_name is not None:
        indexing.before_linking(state, inode)
    if not _may_lose_all_names(state, inode):
        return False
    dir_fd, name = state.place(inode)
    state.orphans[inode.number] = state.descriptors.open_at(dir_fd, name, syscalls.OPEN_NODE)
    return True


def _may_lose_all_names(state: State, inode: Inode) -> bool:
    if not inode.upper or inode.aliases or inode.number in state.orphans:
        return False
    return inode.index_name is None or inode.names_left(attributes.real_stat(state, inode)) <= 1


def forget_name(state: State, inode: Inode, parent: Directory, name: bytes) -> None:
    """Remove a name that is gone from disk from its inode, and drop the inode if it is unused."""
    if parent.children.get(name) is inode:
        del parent.children[name]
    inode.remove_name(parent, name)
    inode.attributes = None
    if inode.parent is None and state.sync_errors:
        state.sync_errors.pop(inode.number, None)
    if inode.index_name is not None and not list(inode.names()) and inode.number in state.orphans:
        indexing.remove(state, inode)
    state.drop_if_unused(inode)
    state.drop_if_unused(parent)


def rmdir(state: State, parent: Directory, name: bytes) -> None:
    lookup.check_name(name)
    inode = lookup.existing_child(state, parent, name)
    protection.refuse_removal(state, parent, inode)
    if not isinstance(inode, Directory):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
    check_empty(state, inode)
    hide(state, parent, name, inode)


def check_empty(state: State, directory: Directory) -> None:
    for name in lookup.names(state, directory):
        found = lookup.child(state, directory, name)
        if found is not None:
            state.drop_if_unused(found)
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def replace_by_empty(state: State, directory: Directory) -> None:
    """Have an upper directory that shows nothing be empty on disk too, hiding all below: then it can be replaced.

    Its whiteouts go with it and not one by one: in an opaque directory the kernel's overlayfs would show them.
    """
    parent, name = directory.parent, directory.name
    if parent is None or _is_empty_on_disk(state, directory):
        return
    dir_fd = state.upper_fd(parent)
    place = inheritance.place_of_copy(state, parent)
    spelling = attributes.layer_of(state, directory).spelling
    with state.upper_node(directory) as source, drafts.draft_directory(state, place) as draft:
        st = stat_of(source)
        if lookup.in_lower(state, parent, name):
            _hide_below(state, draft, parent, name)
        metadata.copy_metadata(source, draft.fd, st.st_uid, st.st_gid, st.st_mode, st, spelling)
        copyup.replace_unseen(draft, dir_fd, name)
    state.descriptors.drop_directory(directory.number)
    directory.above = {}
    directory.lowers, directory.below = (), None
    directory.attributes = None


def _is_empty_on_disk(state: State, directory: Directory) -> bool:
    fd = state.upper_fd(directory)
    while True:
        try:
            return not access.list_names(fd)
        except OSError as error:
            if not state.descriptors.may_try_again(error):
                raise


def _hide_below(state: State, draft: Draft, parent: Directory, name: bytes) -> None:
    """An opaque file would make a directory not empty; a whiteout beside it says the same."""
    if state.whiteout is WhiteoutFormat.OCI:
        whiteouts.oci_whiteout(state.upper_fd(parent), name)
        lookup.note(parent, name, _OPAQUE_DIRECTORY)
    else:
        whiteouts.make_opaque(state, draft.fd)
