"""Which directory takes changes after a snapshot or rollback, and how does it come to be?

An empty one with a root like the former's, or a frozen layer that takes changes again. Nothing refers to it until
`stack` is published (see history); neighbours: snapshots, which decides, and freezing, which goes on in it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress

from ..tree import access, fileflags, marks, metadata, syscalls, xattrs
from . import history, indexing
from .history import History
from .layer import UPPER_INDEX, Layer, describe
from .options import FsyncPolicy
from .stack import Entry
from .state import State


class NextLayer:  # a NamedTuple takes longer to make
    """The layer that is to take changes: an empty one that nothing refers to yet, or one that was the upper before."""

    __slots__ = ("directory_fd", "entry", "index_fd", "index_names", "upper")

    def __init__(
        self,
        entry: Entry,
        directory_fd: int,
        upper: Layer,
        index_fd: int | None = None,
        index_names: Collection[bytes] = (),
    ) -> None:
        self.entry, self.directory_fd, self.upper = entry, directory_fd, upper
        self.index_fd, self.index_names = index_fd, index_names


def upper_of(state: State) -> Layer:
    assert state.upper is not None
    return state.upper


def make(state: State, present: History, model: Layer, lost_links: dict[int, int]) -> NextLayer:
    """An empty layer whose root is like that of another."""
    assert state.work_fd is not None
    present.guard(state.work_fd)
    entry, directory_fd = present.make_layer()
    root_fd = -1
    try:
        root_fd = history.open_upper(directory_fd)
        copy_root(state.prefix, model, root_fd)
        write_lost_links(directory_fd, lost_links)
        if is_durable(state):
            _sync(root_fd, directory_fd, present.fd, present.work_fd)
        return NextLayer(entry, directory_fd, as_upper(state, root_fd, entry))
    except OSError:
        _give_up(present, directory_fd, root_fd)
        raise


def _give_up(present: History, *descriptors: int) -> None:
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)
    present.give_up_layer()


def as_upper(state: State, root_fd: int, entry: Entry) -> Layer:
    """The layer as the mount holds the present upper: in the same copy of the disk's mount."""
    upper = upper_of(state)
    path = os.fsencode(entry.as_shared(b"", state.options.work or b"").upper)
    found = describe(UPPER_INDEX, path, root_fd)
    return upper._replace(
        path=path,
        root_fd=root_fd,
        device=found.device,
        identity=found.identity,
        hides_below=found.hides_below,
    )


def copy_root(prefix: bytes, model: Layer, root_fd: int) -> None:
    """Owner, mode, times, xattrs and flags of the root, and of our marks the protecting flags alone."""
    st = syscalls.stat_of(model.root_fd)
    protecting = xattrs.read_xattr_of_descriptor(model.root_fd, prefix + marks.PROTECTION)
    if protecting is not None:
        access.setxattr(root_fd, prefix + marks.PROTECTION, protecting)
    fileflags.copy_flags(model.root_fd, root_fd)
    metadata.copy_metadata(model.root_fd, root_fd, st.st_uid, st.st_gid, st.st_mode, st, model.spelling)


def write_lost_links(directory_fd: int, counts: dict[int, int]) -> None:
    if not counts:
        return
    os.mkdir(history.LINKS, 0o700, dir_fd=directory_fd)
    for number, count in counts.items():
        os.symlink(b"%d" % count, history.LINKS + b"/%016x" % number, dir_fd=directory_fd)


def lost_links_of(fd: int | None) -> dict[int, int]:
    """The counts of deleted names as they were when a snapshot was taken: its layer has not changed since. Closes the
    descriptor of their directory."""
    if fd is None:
        return {}
    found = {}
    try:
        for name in map(os.fsencode, os.listdir(fd)):
            with suppress(OSError, ValueError):
                count = os.readlink(name, dir_fd=fd).partition(b" ")[0]
                found[indexing.read_number(name)] = indexing.read_count(count)
    finally:
        os.close(fd)
    return found


def is_durable(state: State) -> bool:
    return state.options.fsync is not FsyncPolicy.VOLATILE and not syscalls.is_in_memory(upper_of(state).root_fd)


def _sync(*directories: int) -> None:
    for directory in directories:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def publish(state: State, present: History, entries: Sequence[Entry], fresh: NextLayer) -> None:
    try:
        present.publish(entries, durable=is_durable(state))
    except OSError:
        give_up(present, fresh)
        raise


def give_up(present: History, fresh: NextLayer) -> None:
    """Remove a layer that was made last and that nothing refers to."""
    _give_up(present, fresh.directory_fd, fresh.upper.root_fd)


def reopen(state: State, present: History, entry: Entry, number: int, undoing: ExitStack) -> NextLayer:
    """A frozen layer as the upper, with descriptors of its own: what is frozen keeps those that it has."""
    layer = state.layers[number]
    directory_fd = present.open_directory(entry)
    if directory_fd != present.work_fd:
        undoing.callback(os.close, directory_fd)
    root_fd = layer.root_fd
    if layer.path != state.options.upper:  # whose descriptor has the lock, and stays
        root_fd = os.dup(root_fd)
        undoing.callback(os.close, root_fd)
    index_fd, names = None, set()
    for index in state.frozen_indexes:
        if index.layer == number:
            index_fd, names = os.dup(state.layers[index.number].root_fd), set(index.names)
            undoing.callback(os.close, index_fd)
    return NextLayer(
        Entry(entry.directory), directory_fd, layer._replace(index=UPPER_INDEX, root_fd=root_fd), index_fd, names
    )
