"""How does a directory come into the upper with all that is below it?

Step by step, each of which leaves the merged tree as it is; at the end the directory hides its lower part, and can be
moved as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import copyup, lookup, whiteouts
from .copyup import Need
from .inodes import Directory, Inode
from .merge import Kind
from .state import State


def _make_opaque(state: State, directory: Directory) -> None:
    """Make an upper directory hide its lower part, which must be empty or copied up; nothing changes in the view."""
    whiteouts.make_opaque(state, state.upper_fd(directory))
    directory.lowers, directory.below = (), None
    directory.attributes = None


def copy_up_everything(state: State, directory: Directory) -> None:
    """Copy up a directory with all below it and make all of it opaque: then it can be moved as it is."""
    for inode in steps_to_copy_everything(state, directory):
        if not inode.is_directory:
            copyup.copy_up(state, inode)


def steps_to_copy_everything(state: State, directory: Directory) -> Iterator[Inode]:
    """What `copy_up_everything` does, step by step: the next file to copy up, or a directory that needs nothing more.

    Every step leaves the merged tree as it is, so it may stop anywhere; others may change the tree between. Only
    directories with a lower part are walked: what is in others is in the upper.
    """
    with _kept_live(state) as directories:
        directory.nlookup += 1
        directories.append(directory)
        for here in directories:  # which grows: parents before what is in them
            if not here.lowers or not _is_in_tree(here, directory):
                continue
            copyup.ensure_upper_directory(state, here)
            for inode in _children(state, here):
                if isinstance(inode, Directory):
                    inode.nlookup += 1
                    directories.append(inode)
                elif not inode.upper or inode.metacopy:
                    yield inode
        for here in reversed(directories):
            if here.lowers and _is_in_tree(here, directory):
                _seal(state, here)
                yield here


@contextmanager
def _kept_live(state: State) -> Iterator[list[Directory]]:
    """A list of directories that were given one lookup each; it is given back at the end."""
    directories: list[Directory] = []
    try:
        yield directories
    finally:
        for directory in directories:
            directory.nlookup -= 1
        for directory in reversed(directories):
            state.drop_if_unused(directory)


def _is_in_tree(directory: Directory, top: Directory) -> bool:
    here: Directory | None = directory
    while here is not None and here is not top:
        here = here.parent
    return here is top and top.parent is not None


def _children(state: State, directory: Directory) -> Iterator[Inode]:
    """What a directory shows, one after the other, each live until the next is asked for."""
    for name in lookup.names(state, directory):
        inode = lookup.child(state, directory, name)
        if inode is None:
            continue
        inode.nlookup += 1
        try:
            yield inode
        finally:
            inode.nlookup -= 1
            if not inode.is_directory:
                state.drop_if_unused(inode)


def _seal(state: State, directory: Directory) -> None:
    """Hide all below a directory whose files are copied up. Some names may not have their link yet; and directories
    that came here meanwhile are not copied yet."""
    upper = lookup.above(state, directory)
    for name in [name for name in lookup.names(state, directory) if upper.get(name) is not Kind.FILE]:
        inode = lookup.child(state, directory, name)
        if isinstance(inode, Directory):
            copy_up_everything(state, inode)
        elif inode is not None:
            copyup.copy_up_name(state, inode, directory, name, Need.DATA)
            state.drop_if_unused(inode)
    _forget_whiteouts(state, directory)
    _make_opaque(state, directory)


def _forget_whiteouts(state: State, directory: Directory) -> None:
    """Whiteouts mean nothing in a directory that is about to hide all below it."""
    upper = lookup.above(state, directory)
    if Kind.WHITEOUT not in upper.values():
        return
    whiteouts.make_opaque(state, state.upper_fd(directory))
    for name in [name for name, kind in upper.items() if kind is Kind.WHITEOUT]:
        whiteouts.remove_whiteout(state.upper_fd(directory), name)
        del upper[name]
