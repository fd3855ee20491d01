"""How does a live mount take a snapshot of its tree, and how does it go back to one?

A snapshot makes the upper the topmost of the read-only layers, and an empty directory takes its place (`history` says
how that lies on disk). Nothing that the mount shows changes by it. A rollback drops the upper and the layers above the
snapshot, and goes on in an empty upper; what the kernel knows of the tree is then partly wrong, see `former`. A
rollback that drops the snapshot too goes on in the layer of that snapshot, which is what was the upper then. A reset is
a rollback to before the first layer, and drops all snapshots; the root of the tree keeps its owner, mode and xattrs.

The rule for files that are open at such a moment: a descriptor belongs to its file, and not to a version of it.

- After a snapshot it goes on reading and writing the live tree. The snapshot keeps what had been written by then; the
  next write copies the file up again.
- After a rollback it reads the file as the snapshot has it, and a write changes the file in the live tree. So do
  mappings. Where the snapshot has no such file, it was made since, and behaves as an unlinked file does.
- A file that has no name any more belongs to no snapshot: it stays what it is.

Everything that can fail comes before the one rename that publishes; after that only memory changes. No await anywhere.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress

from overlayfs._typing import NamedTuple

from ..tree import access, fileflags, marks, metadata, syscalls, xattrs
from . import forks, history, indexing, redirects
from .former import NO_NAMES, Former, path_of
from .history import Entry, History
from .inodes import ROOT, Directory, Inode
from .layer import UPPER_INDEX, Access, Layer, Location, describe, hold_apart
from .options import FsyncPolicy, MountError
from .state import Changed, FrozenIndex, State


class _Next(NamedTuple):
    """The layer that is to take changes: an empty one that nothing refers to yet, or one that was the upper before."""

    entry: Entry
    directory_fd: int
    upper: Layer
    index_fd: int | None = None
    index_names: Collection[bytes] = ()


def take(state: State, name: str) -> str:
    """Take a snapshot; its name, which is a number where none is given. EEXIST, EINVAL for a name; EBUSY where the
    kernel writes to files without us; any error of the disk, and then nothing has happened."""
    present = history_of(state)
    name = present.free_name(name)
    fresh = _make(state, present, _upper(state), state.lost_links)
    named = present.entries[-1]._replace(snapshot=name, taken_at=history.now())
    _publish(state, present, [*present.entries[:-1], named, fresh.entry], fresh)
    _freeze(state, fresh)
    return name


def roll_back(state: State, name: str) -> tuple[str, Changed]:
    """Go back to a snapshot, the newest where none is named; its name, and what the kernel has to forget.

    ENOENT where there is none of that name; otherwise as `take`.
    """
    present = history_of(state)
    at = present.position(name)
    kept, dropped = present.entries[: at + 1], present.entries[at + 1 :]
    base = state.layers[state.frozen[len(state.frozen) - 1 - at]]
    lost_links = lost_links_of(present.open_links(kept[-1]))
    fresh = _make(state, present, base, lost_links)
    _publish(state, present, [*kept, fresh.entry], fresh)
    directories = [entry.directory for entry in dropped if entry.directory and not entry.upper]
    return kept[-1].snapshot or "", _drop(state, fresh, at + 1, directories, lost_links)


def reset(state: State) -> Changed:
    """Go back to the lower layers alone, in a fork to the layers that it was made of; what the kernel has to forget.
    Otherwise as `take`."""
    present = history_of(state)
    kept = tuple(entry for entry in present.entries if entry.upper)
    lost_links = lost_links_of(present.open_links(kept[-1])) if kept else {}
    fresh = _make(state, present, _upper(state), lost_links)
    dropped = [entry.directory for entry in present.entries[len(kept) :]]
    _publish(state, present, [*kept, fresh.entry], fresh)
    directories = [directory for directory in dropped if directory or not kept]
    return _drop(state, fresh, len(kept), directories, lost_links)


def undo(state: State, name: str) -> tuple[str, Changed]:
    """Go back to a snapshot and drop it: its layer takes changes again. Otherwise as `roll_back`, which is what is done
    where that layer must stay as it is: a fork uses it, or it has the content of an open file that has no name."""
    present = history_of(state)
    at = present.position(name)
    entry = present.entries[at]
    number = state.frozen[len(state.frozen) - 1 - at]
    if entry.upper or holds_unnamed(state, number):
        return roll_back(state, name)
    with forks.alone(present.place_of(entry)) as is_alone:
        if not is_alone:
            return roll_back(state, name)
        return entry.snapshot or "", _go_on_in(state, present, at)


def _go_on_in(state: State, present: History, at: int) -> Changed:
    """Have the layer at a position take changes again, without those above."""
    entry, above = present.entries[at], present.entries[at + 1 :]
    number = state.frozen[len(state.frozen) - 1 - at]
    lost_links = lost_links_of(present.open_links(entry))
    with ExitStack() as undoing:
        again = _reopen(state, present, entry, number, undoing)
        present.publish([*present.entries[:at], Entry(entry.directory)], durable=is_durable(state))
        undoing.pop_all()
    forks.forbid(present.place_of(entry))
    return _drop(state, again, at, [one.directory for one in above], lost_links, number)


def _reopen(state: State, present: History, entry: Entry, number: int, undoing: ExitStack) -> _Next:
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
    return _Next(
        Entry(entry.directory), directory_fd, layer._replace(index=UPPER_INDEX, root_fd=root_fd), index_fd, names
    )


def holds_unnamed(state: State, number: int) -> bool:
    """Whether a file that is open and has no name has its content in a frozen layer."""
    numbers = {number, *(index.number for index in state.frozen_indexes if index.layer == number)}
    unnamed = (inode for inode in state.inodes.values() if inode.parent is None and inode.number != ROOT)
    return any(
        location is not None and location.layer in numbers
        for inode in unnamed
        for location in (inode.lowers if isinstance(inode, Directory) else (inode.lower,))
    )


def history_of(state: State) -> History:
    """The history of a mount in which no change is under way."""
    if state.upper is None or state.work_fd is None or state.workdir_fd is None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if state.written_unseen or state.passed_through:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    if state.history is None:
        state.history = history.new(state.workdir_fd)
        state.history.upperdir_fd = _upper(state).root_fd
    assert isinstance(state.history, History)
    return state.history


def _upper(state: State) -> Layer:
    assert state.upper is not None
    return state.upper


# -- on disk


def _make(state: State, present: History, model: Layer, lost_links: dict[int, int]) -> _Next:
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
        return _Next(entry, directory_fd, _as_upper(state, root_fd, entry))
    except OSError:
        _give_up(present, directory_fd, root_fd)
        raise


def _give_up(present: History, *descriptors: int) -> None:
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)
    present.give_up_layer()


def _as_upper(state: State, root_fd: int, entry: Entry) -> Layer:
    """The layer as the mount holds the present upper: in the same copy of the disk's mount."""
    upper = _upper(state)
    path = os.fsencode(entry.as_shared(b"", state.options.work or b"").upper)
    found = describe(UPPER_INDEX, path, root_fd)
    return upper._replace(path=path, root_fd=root_fd, device=found.device, identity=found.identity)


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
        for name in os.listdir(fd):
            with suppress(OSError, ValueError):
                count = os.readlink(os.fsencode(name), dir_fd=fd).partition(b" ")[0]
                found[int(name, 16)] = indexing.read_count(count)
    finally:
        os.close(fd)
    return found


def is_durable(state: State) -> bool:
    return state.options.fsync is not FsyncPolicy.VOLATILE and not syscalls.is_in_memory(_upper(state).root_fd)


def _sync(*directories: int) -> None:
    for directory in directories:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _publish(state: State, present: History, entries: Sequence[Entry], fresh: _Next) -> None:
    try:
        present.publish(entries, durable=is_durable(state))
    except OSError:
        _give_up(present, fresh.directory_fd, fresh.upper.root_fd)
        raise


# -- in memory


def _number_for(state: State) -> int:
    """Make what was the upper a layer among the others, and its index too; the number of the former."""
    upper = _upper(state)
    _count_from(state, upper)
    index_fd, state.index_fd = state.index_fd, None
    if index_fd is None:
        return _insert(state, upper)
    index_number = _insert(state, upper._replace(path=upper.path + b" (index)", root_fd=index_fd))
    number = _insert(state, upper)
    state.frozen_indexes.insert(0, FrozenIndex(number, index_number, state.index_names))
    state.index_names = set()
    return number


def _count_from(state: State, upper: Layer) -> None:
    """Have the upper in the list, too: the numbers of frozen layers count from its place."""
    if len(state.layers) == state.data_end:
        state.layers.append(upper)


def _insert(state: State, layer: Layer) -> int:
    former = state.layers[state.data_end : -1]
    number = UPPER_INDEX - 1 - len(former)
    state.layers[state.data_end : -1] = [layer._replace(index=number), *former]
    return number


def _freeze(state: State, fresh: _Next) -> None:
    """The upper is a lower layer from now on."""
    number = _number_for(state)
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


def _use(state: State, fresh: _Next) -> None:
    """Go on in another upper."""
    for opened in state.created.values():
        opened.unpin()
    state.created.clear()
    state.descriptors.close()
    state.synced_names.clear()
    state.names_to_link.clear()
    present = state.history
    assert isinstance(present, History)
    for fd in (state.index_fd, state.links_fd, state.workdir_fd):
        if fd is not None and fd != present.work_fd:  # which has the lock
            os.close(fd)
    state.index_fd, state.index_names, state.links_fd = fresh.index_fd, set(fresh.index_names), None
    state.workdir_fd = fresh.directory_fd
    state.upper = state.layers[-1] = fresh.upper


def _drop(
    state: State,
    fresh: _Next,
    kept: int,
    directories: Sequence[str],
    lost_links: dict[int, int],
    resumed: int | None = None,
) -> Changed:
    """All above the first `kept` frozen layers counts no more, but for a layer that is the upper again."""
    number = _number_for(state)
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
    _use(state, fresh)
    redirects.show_roots(state)  # a layer that is gone may have hidden others
    state.lost_links = lost_links
    former.sweep()
    return changed


def _remover(state: State, numbers: Sequence[int], directories: Sequence[str]) -> Callable[[], object]:
    """Removes the dropped layers, once nothing needs them any more."""
    present = state.history

    def remove() -> None:
        for number in numbers:
            layer = state.layers[number]
            if layer.path == state.options.upper:  # its descriptor has the lock
                continue
            os.close(layer.root_fd)
            state.layers[number] = layer._replace(root_fd=-1)
        assert isinstance(present, History)
        present.waste.extend(directories)

    return remove


# -- at the next mount


def resume(state: State, present: History, undo: ExitStack) -> None:
    """Have a state that was opened on the upperdir alone use all layers of a history. MountError where one is gone."""
    shared = [os.fsencode(entry.directory) for entry in present.entries if entry.upper]
    if shared:
        used = (forks.home_of(shared[0]), *shared, state.options.work or b"")
        present.locks = [_hold(directory, undo) for directory in dict.fromkeys(used)]
        if used[0] == shared[0] and history.has_lost_upperdir(used[0]):  # after the lock: see `History.remove`
            raise MountError("workdir: a reset of the other mount has just dropped the layers of this fork")
    layers = [_layer_of(state, present, entry, undo) for entry in present.entries]
    if shared:
        count = len(shared)
        layers[:count] = hold_apart([layer._replace(apart=False) for layer in layers[:count]], Access.READS)
    indexes = [_index_of(present, entry, undo) for entry in present.entries[:-1]]
    directory_fd = present.open_directory(present.entries[-1])
    if directory_fd != present.work_fd:
        undo.callback(os.close, directory_fd)
    _count_from(state, layers[-1])
    for layer, index in zip(layers[:-1], indexes, strict=True):
        state.upper = layer
        state.index_fd, state.index_names = index
        number = _number_for(state)
        state.frozen = (number, *state.frozen)
        state.root.lowers = (Location(number, b""), *state.root.lowers)
    state.upper = state.layers[-1] = layers[-1]
    state.history, state.workdir_fd = present, directory_fd


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
        raise MountError(f"workdir: layer {os.fsdecode(directory)} of another mount: {error.strerror}") from None
    undo.callback(os.close, fd)
    return fd


def _layer_of(state: State, present: History, entry: Entry, undo: ExitStack) -> Layer:
    if not entry.directory:
        return _upper(state)
    try:
        root_fd = present.open_layer(entry)
    except OSError as error:
        raise MountError(f"workdir: layer {entry.directory} of a snapshot: {error.strerror}") from None
    undo.callback(os.close, root_fd)
    return _as_upper(state, root_fd, entry)


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
