"""What becomes of what is known in memory when the upper becomes a read-only layer?

Nothing here fails: it follows the rename that published. Neighbours: snapshots and going_back, which call it.
"""

from __future__ import annotations

from .descriptors import close_quietly
from .history import History
from .inodes import Directory, Inode, freeze_files, path_of
from .layer import UPPER_INDEX, Layer, Location
from .next_layer import NextLayer, upper_of
from .state import FrozenIndex, State


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
    directories, indexed, files = state.inodes.of_upper(state.orphans)
    for directory in directories:
        _freeze_directory(directory, number)
    for inode in indexed:
        freeze_copy(state, inode, state.frozen_indexes[0].number)
    for inode in freeze_files(files):  # after the directories that they are in
        _share_anew(state, inode, number)
    state.descriptors.freeze(state.orphans)
    use(state, fresh)


def freeze_copy(state: State, inode: Inode, index_number: int) -> None:
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
    directory.freeze(Location(number, path))
    if directory.lower_path != path:
        _say_paths(directory, path)


def _say_paths(directory: Directory, path: bytes) -> None:
    """A renamed directory has its new path in the lower layers now, and so has all that is below it."""
    waiting = [(directory, path)]
    while waiting:
        here, where = waiting.pop()
        here.lower_path = where
        for name, child in here.children.items():
            if isinstance(child, Directory):
                waiting.append((child, where + b"/" + name))


def use(state: State, fresh: NextLayer) -> None:
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
