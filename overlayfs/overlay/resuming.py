"""How does a mount go on with the layers that snapshots left, after it was unmounted?

Neighbours: history, which says how they lie on disk, and opening, which opens the upperdir alone first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from . import forks, history, indexing
from .freezing import count_from, number_for
from .history import History
from .layer import Access, Layer, Location, hold_apart
from .next_layer import as_upper, upper_of
from .options import MountError
from .stack import Entry
from .state import FrozenIndex, State


def resume(state: State, present: History, undo: ExitStack) -> None:
    """Have a state that was opened on the upperdir alone use all layers of a history. MountError where one is gone."""
    shared = [os.fsencode(entry.directory) for entry in present.entries if entry.upper]
    if shared:
        home = forks.home_of(shared[0])
        used = (home, *shared, state.options.work or b"")
        present.locks = [_hold(directory, undo) for directory in dict.fromkeys(used)]
        if home == shared[0] and history.has_lost_upperdir(home):  # after the lock: see `History.remove`
            raise MountError("workdir: a reset of the other mount has just dropped the layers of this fork")
    layers = [_layer_of(state, present, entry, undo) for entry in present.entries]
    if shared:
        count = len(shared)
        layers[:count] = hold_apart([layer._replace(apart=False) for layer in layers[:count]], Access.READS)
    indexes = [_index_of(present, entry, undo) for entry in present.entries[:-1]]
    directory_fd = present.open_directory(present.entries[-1])
    if directory_fd != present.work_fd:
        undo.callback(os.close, directory_fd)
    count_from(state, layers[-1])
    for layer, index in zip(layers[:-1], indexes, strict=True):
        state.upper = layer
        state.index_fd, state.index_names = index
        number = number_for(state)
        state.frozen = (number, *state.frozen)
        state.root.lowers = (Location(number, b""), *state.root.lowers)
    state.upper = state.layers[-1] = layers[-1]
    state.history, state.workdir_fd = present, directory_fd
    undo.callback(present.room.give_up)
    present.room.keep()


def look_at_indexes(state: State, layers: Sequence[Layer], undo: ExitStack) -> None:
    """Have a read-only state that was opened on all layers of a history use their indexes: these are the frozen ones,
    top first."""
    paths = history.indexes(state.options.upper or b"", state.options.work or b"")
    for layer in layers:
        path = paths.get(layer.path)  # None: a rollback has just dropped it
        index_fd, names = (None, set()) if path is None else _open_index(os.path.dirname(path), undo)
        if index_fd is not None and path is not None:
            state.frozen_indexes.append(FrozenIndex(layer.index, len(state.layers), names))
            index = layer._replace(index=len(state.layers), path=path, root_fd=index_fd)
            state.layers.append(hold_apart([index], Access.READS)[0])


def _hold(directory: bytes, undo: ExitStack) -> int:
    try:
        fd = forks.hold(directory)
    except OSError as error:
        reason = "it has just been dropped" if isinstance(error, FileNotFoundError) else error.strerror
        raise MountError(f"workdir: layer {os.fsdecode(directory)} of another mount: {reason}") from None
    undo.callback(os.close, fd)
    return fd


def _layer_of(state: State, present: History, entry: Entry, undo: ExitStack) -> Layer:
    if not entry.directory:
        return upper_of(state)
    try:
        root_fd = present.open_layer(entry)
    except OSError as error:
        raise MountError(f"workdir: layer {entry.directory} of a snapshot: {error.strerror}") from None
    undo.callback(os.close, root_fd)
    return as_upper(state, root_fd, entry)


def _index_of(present: History, entry: Entry, undo: ExitStack) -> tuple[int | None, set[bytes]]:
    directory_fd = present.open_directory(entry)
    try:
        return _open_index(directory_fd, undo)
    finally:
        if directory_fd != present.work_fd:
            os.close(directory_fd)


def _open_index(directory: int | bytes, undo: ExitStack) -> tuple[int | None, set[bytes]]:
    index_fd, names = indexing.open_index(directory)
    if index_fd is not None:
        undo.callback(os.close, index_fd)
    return index_fd, names
