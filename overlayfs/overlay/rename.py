# cython: language_level=3, annotation_typing=False
"""How does a file or directory move, in one step for observers and for a crash?

All steps that may fail and that nobody sees come first: checks, copy-ups, redirect and opaque marks. One rename on disk
follows, which also leaves the whiteout if the whiteout format allows it. A merged directory gets a redirect; if no
redirect can be written, the directory is first copied up with its whole content. Compiled; C types are in rename.pxd.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from overlayfs._log import Log

from ..tree import access, marks, syscalls
from . import copyup, copyup_tree, drafts, impure, lookup, making, names, protection, whiteouts
from .inodes import Directory, Inode
from .merge import Kind
from .options import RedirectDir, WhiteoutFormat
from .state import State

log = Log(__name__)

_WHITEOUT, _OPAQUE_DIRECTORY, _OVERLAY = Kind.WHITEOUT, Kind.OPAQUE_DIRECTORY, WhiteoutFormat.OVERLAY
NOREPLACE, EXCHANGE, WHITEOUT = syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE, syscalls.RENAME_WHITEOUT


class _Side:
    """One end of a rename: a name in a directory, and what it names."""

    def __init__(self, state: State, parent: Directory, name: bytes) -> None:
        self.parent, self.name = parent, name
        self.inode = lookup.child(state, parent, name)


def rename(state: State, parent: Directory, name: bytes, new_parent: Directory, new_name: bytes, flags: int) -> None:
    """renameat2(2) in the merged tree, with NOREPLACE and EXCHANGE.

    A whiteout in the merged tree cannot be shown, so that none can be asked for, as of the kernel's overlayfs.
    """
    lookup.check_name(name)
    lookup.check_new_name(new_name)
    making.check_alive(state, new_parent)
    source, target = _Side(state, parent, name), _Side(state, new_parent, new_name)
    _check(state, source, target, flags)
    if source.inode is target.inode:
        return
    if flags & WHITEOUT:
        _fail(errno.EINVAL)
    _keep(source.inode)
    _keep(target.inode)
    try:
        _copy_up(state, source)
        copyup.ensure_upper_directory(state, new_parent)
        if flags & EXCHANGE:
            _copy_up(state, target)
            _exchange(state, source, target)
        else:
            _move(state, source, target)
    finally:
        _let_go(state, target.inode)
        _let_go(state, source.inode)
    drafts.note_changed(state, parent)
    drafts.note_changed(state, new_parent)
    drafts.sync_changed(state)


def _keep(inode: Inode | None) -> None:
    """Keep an inode in the table, whoever else lets go of it, until `_let_go`."""
    if inode is not None:
        inode.nlookup += 1


def _let_go(state: State, inode: Inode | None) -> None:
    if inode is not None:
        inode.nlookup -= 1
        state.drop_if_unused(inode)


def _check(state: State, source: _Side, target: _Side, flags: int) -> None:
    if flags & ~(NOREPLACE | EXCHANGE | WHITEOUT) or (flags & EXCHANGE and flags & (NOREPLACE | WHITEOUT)):
        _fail(errno.EINVAL)
    if source.inode is None or (target.inode is None and flags & EXCHANGE):
        _fail(errno.ENOENT)
    if target.inode is not None and flags & NOREPLACE:
        _fail(errno.EEXIST)
    if _is_below(target.parent, source.inode):
        _fail(errno.EINVAL)
    if source.inode is target.inode:
        return
    if flags & EXCHANGE and _is_below(source.parent, target.inode):
        _fail(errno.EINVAL)
    _refuse_protected(state, source, target)
    if not flags & EXCHANGE:
        _check_replacement(state, source, target)


def _check_replacement(state: State, source: _Side, target: _Side) -> None:
    if source.inode is None or target.inode is None:
        return
    if source.inode.is_directory and not target.inode.is_directory:
        _fail(errno.ENOTDIR)
    if target.inode.is_directory and not source.inode.is_directory:
        _fail(errno.EISDIR)
    if _is_below(source.parent, target.inode):
        _fail(errno.ENOTEMPTY)
    if isinstance(target.inode, Directory):
        names.check_empty(state, target.inode)


def _refuse_protected(state: State, source: _Side, target: _Side) -> None:
    assert source.inode is not None
    try:
        protection.refuse_removal(state, source.parent, source.inode)
        if target.inode is None:
            protection.refuse_new_name(state, target.parent)
        else:
            protection.refuse_removal(state, target.parent, target.inode)
    except OSError:
        for side in (source, target):
            if side.inode is not None:
                state.drop_if_unused(side.inode)
        raise


def _fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


def _is_below(directory: Directory | None, ancestor: Inode | None) -> bool:
    while directory is not None:
        if directory is ancestor:
            return True
        directory = directory.parent
    return False


def _copy_up(state: State, side: _Side) -> None:
    """Have the side in the upper, under this very name."""
    if isinstance(side.inode, Directory):
        copyup.ensure_upper_directory(state, side.inode)
    else:
        assert side.inode is not None
        copyup.copy_up_name(state, side.inode, side.parent, side.name, copyup.Need.METADATA)


def _prepare_to_move(state: State, inode: Inode, new_parent: Directory, new_name: bytes) -> None:
    """Write into the upper file what lets it stay itself under another path. Changes nothing at the old one."""
    impure.mark_for(state, new_parent, inode)
    if isinstance(inode, Directory):
        if needs_whole_copy(state, inode):
            copyup_tree.copy_up_everything(state, inode)
        elif inode.lowers:
            _write_redirect(state, inode, b"/" + inode.lower_path)
        if not inode.lowers and lookup.in_lower(state, new_parent, new_name):
            whiteouts.make_opaque(state, state.upper_fd(inode))
    elif inode.metacopy and inode.lower is not None:
        target = b"/" + inode.lower.path
        # a redirect is followed from the topmost lower layer, and a frozen one may hide or move what lies at that path
        if len(target) > marks.LONGEST_REDIRECT or not state.follows_redirects or state.frozen:
            copyup.copy_up(state, inode)
        else:
            _write_redirect(state, inode, target)


def needs_whole_copy(state: State, inode: Inode) -> bool:
    """True for a directory that is merged with lower layers and cannot be moved with a redirect."""
    if not isinstance(inode, Directory) or not inode.lowers:
        return False
    wanted = state.options.redirect_dir is RedirectDir.ON and state.whiteout is not WhiteoutFormat.OCI
    return not wanted or not state.xattrs_work or len(inode.lower_path) >= marks.LONGEST_REDIRECT


def _write_redirect(state: State, inode: Inode, target: bytes) -> None:
    with state.upper_node(inode) as fd:
        access.setxattr(fd, state.prefix + marks.REDIRECT, target)


def _move(state: State, source: _Side, target: _Side) -> None:
    inode, replaced = source.inode, target.inode
    assert inode is not None
    _prepare_to_move(state, inode, target.parent, target.name)
    covered = lookup.in_lower(state, source.parent, source.name)
    if replaced is None:
        left = _rename_on_disk(state, source, target, covered)
    else:
        left = _rename_over(state, source, target, replaced, covered)
    lookup.note(source.parent, source.name, _WHITEOUT if left else None)
    lookup.note(target.parent, target.name, Kind.DIRECTORY if inode.is_directory else Kind.FILE)
    if replaced is not None:
        names.forget_name(state, replaced, target.parent, target.name)
    _reassign(source, target, inode)
    inode.attributes = source.parent.attributes = target.parent.attributes = None


def _rename_over(state: State, source: _Side, target: _Side, replaced: Inode, covered: bool) -> bool:
    if isinstance(replaced, Directory) and replaced.upper:
        names.replace_by_empty(state, replaced)
    if names.prepare_to_hide(state, target.parent, target.name, replaced):
        holds = names.hold(state, replaced)
        try:
            return _rename_on_disk(state, source, target, covered)
        except BaseException:
            if holds:
                state.drop_orphan(replaced)
            raise
    left = _rename_on_disk(state, source, target, covered)
    names.note_hidden(state, replaced)
    return left


def _reassign(source: _Side, target: _Side, inode: Inode) -> None:
    if source.parent.children.get(source.name) is inode:
        del source.parent.children[source.name]
    inode.remove_name(source.parent, source.name)
    inode.add_name(target.parent, target.name)
    target.parent.children[target.name] = inode


def _rename_on_disk(state: State, source: _Side, target: _Side, covered: bool) -> bool:
    """Move, replacing what is there, and leave a whiteout where `covered`. Done, or failed with nothing changed.

    True where there is a whiteout now.
    """
    from_fd, to_fd = state.upper_fd(source.parent), state.upper_fd(target.parent)
    there = lookup.above(state, target.parent).get(target.name)
    hidden, left = there is _WHITEOUT, covered
    if state.whiteout is _OVERLAY:
        left = _rename_with_whiteout(source, target, from_fd, to_fd, hidden, covered)
    elif not covered:
        left = _replace(source, target, from_fd, to_fd)
    elif state.whiteout is WhiteoutFormat.OCI:
        with whiteouts.oci_whiteout_beside(from_fd, source.name):
            _replace(source, target, from_fd, to_fd)
    else:
        _rename_and_xattr_whiteout(state, source, target, from_fd, to_fd, hidden)
    if hidden or there is _OPAQUE_DIRECTORY:  # what was moved hides what lies below by itself
        whiteouts.remove_oci_whiteout(to_fd, target.name)
    return left


def _rename_with_whiteout(source: _Side, target: _Side, from_fd: int, to_fd: int, hidden: bool, covered: bool) -> bool:
    if hidden and source.inode is not None and source.inode.is_directory:
        # a directory cannot replace the whiteout, but they can change places: then the whiteout is where it is wanted
        with suppress(FileNotFoundError):
            access.rename(from_fd, source.name, to_fd, target.name, EXCHANGE)
            return covered or not _removed(from_fd, source.name)
    access.rename(from_fd, source.name, to_fd, target.name, WHITEOUT if covered else 0)
    return covered


def _replace(source: _Side, target: _Side, from_fd: int, to_fd: int) -> bool:
    """Plain rename over anything that can be replaced; True where a whiteout had to change places and is left."""
    try:
        access.rename(from_fd, source.name, to_fd, target.name)
        return False
    except NotADirectoryError:
        access.rename(from_fd, source.name, to_fd, target.name, EXCHANGE)
    return not _removed(from_fd, source.name)


def _removed(dir_fd: int, name: bytes) -> bool:
    """Remove a whiteout that is not wanted; False where it stays, hiding nothing."""
    try:
        access.unlink(dir_fd, name)
    except OSError as error:
        log.warning("left over after a change: %s", error)
        return False
    return True


def _rename_and_xattr_whiteout(
    state: State, source: _Side, target: _Side, from_fd: int, to_fd: int, hidden: bool
) -> None:
    """rename(2) cannot leave an xattr whiteout: have one at the target first, then let the two change places.

    Where the target is something visible, that would show; there an OCI whiteout guards the source meanwhile.
    """
    whiteouts.announce(state, from_fd)
    whiteouts.announce(state, to_fd)
    if hidden and _exists(to_fd, target.name):
        access.rename(from_fd, source.name, to_fd, target.name, EXCHANGE)
        return
    with whiteouts.draft_xattr_whiteout(state, to_fd) as draft:
        if target.inode is None and not hidden:
            draft.publish(to_fd, target.name)
            try:
                access.rename(from_fd, source.name, to_fd, target.name, EXCHANGE)
            except OSError:
                with drafts.afterwards():
                    access.unlink(to_fd, target.name)
                raise
            return
        with whiteouts.oci_whiteout_beside(from_fd, source.name):
            _replace(source, target, from_fd, to_fd)
        with drafts.afterwards():  # until then, and if it fails, the guard hides the source as well
            draft.publish(from_fd, source.name)
            whiteouts.remove_oci_whiteout(from_fd, source.name)


def _exists(dir_fd: int, name: bytes) -> bool:
    try:
        access.stat_at(dir_fd, name)
    except FileNotFoundError:
        return False
    return True


def _exchange(state: State, source: _Side, target: _Side) -> None:
    first, second = source.inode, target.inode
    assert first is not None and second is not None
    _prepare_to_move(state, first, target.parent, target.name)
    _prepare_to_move(state, second, source.parent, source.name)
    from_fd, to_fd = state.upper_fd(source.parent), state.upper_fd(target.parent)
    access.rename(from_fd, source.name, to_fd, target.name, EXCHANGE)
    for inode, old, new in ((first, source, target), (second, target, source)):
        inode.remove_name(old.parent, old.name)
        inode.attributes = new.parent.attributes = None
    for inode, new in ((first, target), (second, source)):
        inode.add_name(new.parent, new.name)
        new.parent.children[new.name] = inode
        lookup.note(new.parent, new.name, Kind.DIRECTORY if inode.is_directory else Kind.FILE)
