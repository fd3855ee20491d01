"""Which copy counts for the names of a hard-linked file, once snapshots have frozen the index that has it?

The index of a layer that was the upper once stays where it is (see `indexing` and `history`). A copy is found in an
index under the handle of the file that it was made of, and that file may be a copy itself, in the index of a layer
below. So one goes up from the file that a name leads to, and the last copy is the file under all its names. Nothing has
to be done for this when a snapshot is taken.
"""

from __future__ import annotations

import os

from ..tree import access, marks, syscalls, xattrs
from .layer import Location
from .state import FrozenIndex, State


def entry_name(state: State, location: Location) -> bytes | None:
    """The name under which an index keeps the copy of a lower file: its origin in hex, as the kernel has it."""
    dir_fd, name = state.lower_place(location)
    fd = state.descriptors.open_at(dir_fd, name, syscalls.OPEN_NODE)
    try:
        handle = syscalls.file_handle(fd)
    finally:
        os.close(fd)
    value = marks.origin_value(handle, state.uuid(state.layers[location.layer]))
    return value.hex().encode() or None


def newest_copy(state: State, location: Location, first: int) -> Location:
    """Where the newest copy of a file of several names is in the layers from `first` down; where the file itself is, if
    there is none.

    Remembers what each copy was made of: a copy of metadata alone has its data there.
    """
    start = location.layer
    handle = None
    for index in reversed(state.frozen_indexes):  # the lowest first
        if not index.names or not first <= index.layer <= start:
            continue
        if index.layer == start:
            name = _own_entry(state, location, index)
        else:
            name = handle = handle or entry_name(state, location)
        if name is not None and name in index.names:
            copy = Location(index.number, name)
            state.copied_from.setdefault(copy, location)
            location, handle = copy, None
    return location


def _own_entry(state: State, location: Location, index: FrozenIndex) -> bytes | None:
    """The entry of which a name in the same layer is a link."""
    dir_fd, name = state.lower_place(location)
    origin = xattrs.read_xattr(dir_fd, name, state.prefix + marks.ORIGIN)
    entry = origin.hex().encode() if origin else b""
    if entry not in index.names:
        return None
    found = access.stat_at(state.layers[index.number].root_fd, entry)
    return entry if found.is_same_file(access.stat_at(dir_fd, name)) else None
