"""What becomes of what is known in memory when the upper becomes a read-only layer, or goes with its snapshot?

Nothing here fails: it follows the rename that published. Neighbours: snapshots, which calls it, and former, which keeps
the inodes of a tree that a rollback has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import redirects
from .descriptors import close_quietly
from .former import NO_NAMES, Former, path_of
from .history import History
from .inodes import ROOT, Directory, Inode
from .layer import UPPER_INDEX, Layer, Location
from .next_layer import NextLayer, upper_of
from .state import Changed, FrozenIndex, State


def number_for(state: State) -> int:
    """Make what was the upper a layer among the others, and its index too; the number of the former."""
    upper = upper_of(state)
    count_from(state, upper)
    index_fd, state.index_fd = state.index_fd, None
    if index_fd is None:
        return _insert(state, upper)
    index_number = _insert(state, upper._replace(path=upper.path + b" (index)", root_fd=index_fd))
    number = _insert(state, upper)
    state.frozen_indexes.insert(0, FrozenIndex(number, index_number, state.index_names))
    state.index_names = set()
    return number


def count_from(state: State, upper: Layer) -> None:
    """Have the upper in the list, too: the numbers of frozen layers count from its place."""
    if len(state.layers) == state.data_end:
        state.layers.append(upper)


def _insert(state: State, layer: Layer) -> int:
    former = state.layers[state.data_end : -1]
    number = UPPER_INDEX - 1 - len(former)
    state.layers[state.data_end : -1] = [layer._replace(index=number), *former]
    return number


def freeze(state: State, fresh: NextLayer) -> None:
    """The upper is a lower layer from now on."""
    number = number_for(state)
    state.frozen = (number, *state.frozen)
    files: list[Inode] = []
    for inode in state.inodes.of_upper():
        if inode.number in state.orphans:
            continue
        if isinstance(inode, Directory):
            _freeze_directory(inode, number)
        elif inode.index_name is not None:
            _freeze_copy(state, inode, state.frozen_indexes[0].number)
        elif inode.parent is not None:
            files.append(inode)
    for inode in files:  # after the directories that they are in
        inode.upper = inode.metacopy = False
        inode.provided_by(0)
        _share_anew(state, inode, number)
    state.descriptors.freeze(state.orphans)
    _use(state, fresh)


def _freeze_copy(state: State, inode: Inode, index_number: int) -> None:
    """A copy in the index: that is where it goes on being found, under whatever names."""
    assert inode.index_name is not None
    place = Location(index_number, inode.index_name)
    if inode.metacopy and inode.lower is not None:
        state.copied_from[place] = inode.lower
    inode.upper = inode.metacopy = False
    inode.lower, inode.index_name = place, None
    _share_anew(state, inode, index_number)


def _share_anew(state: State, inode: Inode, number: int) -> None:
    keys = inode.shared_as
    if keys is None:
        return
    state.unshare(inode)
    inode.shared_as = [(number if layer == UPPER_INDEX else layer, dev, ino) for layer, dev, ino in keys]
    for key in inode.shared_as:
        state.by_real[key] = inode


def _freeze_directory(directory: Directory, number: int) -> None:
    path = b"" if directory.parent is None else path_of(directory.parent, directory.name)
    directory.upper = directory.number == ROOT
    for name, child in directory.children.items():
        if child.position >= 0 and child.parent is directory and child.name == name and not child.upper:
            child.provided_by(child.position + 1)
    directory.lowers = (Location(number, path), *directory.lowers)
    directory.below = None
    _forget_upper(directory)
    if directory.lower_path != path:
        _say_paths(directory, path)


def _forget_upper(directory: Directory) -> None:
    directory.above = {}
    directory.impure, directory.inheritance = False, None


def _say_paths(directory: Directory, path: bytes) -> None:
    """A renamed directory has its new path in the lower layers now, and so has all that is below it."""
    waiting = [(directory, path)]
    while waiting:
        here, where = waiting.pop()
        here.lower_path = where
        for name, child in here.children.items():
            if isinstance(child, Directory):
                waiting.append((child, where + b"/" + name))


def _use(state: State, fresh: NextLayer) -> None:
    """Go on in another upper."""
    present = state.history
    assert isinstance(present, History)
    used = (state.index_fd, state.links_fd, state.workdir_fd)
    state.index_fd, state.index_names, state.links_fd = fresh.index_fd, set(fresh.index_names), None
    state.workdir_fd = fresh.directory_fd
    state.upper = state.layers[-1] = fresh.upper
    state.synced_names.clear()
    state.names_to_link.clear()
    for fd in used:
        if fd is not None and fd != present.work_fd:  # which has the lock
            close_quietly(fd)


def drop(
    state: State,
    fresh: NextLayer,
    kept: int,
    directories: Sequence[str],
    lost_links: dict[int, int],
    resumed: int | None = None,
) -> Changed:
    """All above the first `kept` frozen layers counts no more, but for a layer that is the upper again."""
    number = number_for(state)
    gone = state.frozen[: len(state.frozen) - kept]
    unused = [index for index in state.frozen_indexes if index.layer in (number, *gone)]
    dropped = [layer for layer in (number, *gone) if layer != resumed]
    indexes = [index for index in unused if index.layer != resumed]
    former = state.former
    if former is None:
        former = state.former = Former()
    assert isinstance(former, Former)
    remove = _remover(state, [number, *gone, *(index.number for index in unused)], directories)
    changed = former.absorb(state, number, dropped, [index.number for index in indexes], remove)
    for inode in state.inodes.values():
        if inode.index_name is not None:  # its names that were known are gone, and the others are another file's now
            _freeze_copy(state, inode, indexes[0].number)
            inode.lost_links = NO_NAMES
    state.frozen = state.frozen[len(gone) :]
    del state.frozen_indexes[: len(unused)]
    root = state.root
    root.below = root.attributes = root.xattr_names = None
    root.default_acl = False
    root.protection = None
    _forget_upper(root)
    root.above = {} if resumed is None else None
    for opened in state.created.values():
        opened.unpin()
    state.created.clear()
    state.descriptors.close()
    _use(state, fresh)
    redirects.show_roots(state)  # a layer that is gone may have hidden others
    state.lost_links = lost_links
    former.sweep()
    return changed


def _remover(state: State, numbers: Sequence[int], directories: Sequence[str]) -> Callable[[], object]:
    """Removes the dropped layers, once nothing needs them any more."""
    present = state.history

    def remove() -> None:
        if state.work_fd is None:  # going back failed, and what is shown may be in these
            return
        for number in numbers:
            layer = state.layers[number]
            if layer.path == state.options.upper:  # its descriptor has the lock
                continue
            state.layers[number] = layer._replace(root_fd=-1)
            close_quietly(layer.root_fd)
        assert isinstance(present, History)
        present.waste.extend(directories)

    return remove
