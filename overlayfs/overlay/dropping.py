"""How does a live mount drop a snapshot, so that no layer of its own stays for it?

The name goes first, by one rename of `stack` (see history). A layer without a name is then merged into the frozen one
above it: what that lacks moves there by rename(2), name for name, so that the merged tree is the same after each; at
last `stack` is published without the layer, which is removed. A crash during a merge may leave the time of the crash as
the mtime of a directory.

Both layers are read first, and each file of the lower one gets its inode number as a mark. That takes most of the time
and changes nothing that the tree shows, so a thread may do it while requests are served. The moves then follow at once:
a directory that the layer above lacks takes one rename, whatever it holds.

The layer stays, without a name, where it is the lowest (the upperdir), where the layer above is the upper itself, and
where merging would take more than moving: it or the one above has redirects, metacopies, whiteouts of another format,
an index of hard links, or is used by a fork; or where a file to move has several links, of which the counts of deleted
names know. Each later drop tries again.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from overlayfs._log import Log
from overlayfs._typing import Final

from ..tree import access, marks, syscalls
from ..tree.marks import Opacity
from . import drafts, forks, going_back, snapshots, stack
from .descriptors import close_quietly
from .former import Former
from .history import History
from .inodes import Directory, Inode
from .layer import Layer, Location
from .next_layer import is_durable
from .redirects import join
from .stack import Entry
from .state import State

log = Log(__name__)

_DEEPEST: Final = 200  # one descriptor and one frame each
_PAUSE_S: Final = 50e-6  # after each directory: the thread that serves requests gets the lock of the interpreter
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def drop(state: State, name: str) -> str:
    """Drop a snapshot; its name. ENOENT where there is none, EINVAL where that is no name; otherwise as
    `snapshots.take`. The caller goes on with `merges`."""
    stack.check_name(name)
    present = snapshots.history_of(state)
    at = present.position(name)
    entries = list(present.entries)
    found = entries[at].snapshot or ""
    entries[at] = entries[at]._replace(snapshot=None, taken_at=0.0)
    going_back.with_room(present, lambda: present.publish(entries, durable=is_durable(state)))
    present.gives_way = False
    return found


def merges(state: State) -> Iterator[Callable[[], None]]:
    """Merge all layers without a name that can be. What this yields is to be called before it goes on, in any thread,
    and no snapshot may be taken, gone back to or dropped meanwhile."""
    present = snapshots.history_of(state)
    for position in range(len(present.entries) - 3, 0, -1):
        merge = _Merge(state, present, position)
        if merge.is_possible():
            yield merge.prepare
            if merge.is_prepared and merge.is_possible():
                with drafts.afterwards():  # the layer stays then, and the next drop goes on
                    merge.finish()


def give_way(state: State) -> None:
    """Let what `merges` prepares for this drop come to nothing, as another command waits."""
    if isinstance(state.history, History):
        state.history.gives_way = True


class _Merge:
    """Of the layer at a position into that above it."""

    def __init__(self, state: State, present: History, at: int) -> None:
        self._state, self._present = state, present
        self._entry, self._above = present.entries[at : at + 2]
        self._number, self._target = (state.frozen[len(state.frozen) - 1 - position] for position in (at, at + 1))
        self._layers = state.layers[self._number], state.layers[self._target]
        self.is_prepared = False

    def is_possible(self) -> bool:
        """Whether nothing that is known in memory speaks against it."""
        entry, state = self._entry, self._state
        if entry.snapshot is not None or entry.upper or not entry.directory:
            return False
        if self._present.has_stopped or self._present.gives_way:
            return False
        has_index = any(index.layer in (self._number, self._target) for index in state.frozen_indexes)
        return not (has_index or going_back.holds_unnamed(state, self._number))

    def prepare(self) -> None:
        """Find out whether the layers can be merged, and mark the files. Not done where the mount has ended."""
        with drafts.afterwards():
            self._present.unless_stopped(self._prepare)

    def _prepare(self) -> None:
        source, target = self._layers
        goes_on = self._present.check_goes_on
        with ExitStack() as held:  # forks need not wait for all the rest, which changes nothing for them
            if not self._holds_alone(held):
                return
        if _is_plain(source, goes_on, moves=True) and _is_plain(target, goes_on, moves=False):
            with _opened(source.root_fd, b".") as fd:
                _say_numbers(source, fd.number, goes_on)
            if is_durable(self._state):
                syscalls.sync_filesystem(target.root_fd)  # so that there is little left to sync after the moves
            self.is_prepared = True

    def _holds_alone(self, held: ExitStack) -> bool:
        """Keep forks from both layers; False where one uses them."""
        places = (self._present.place_of(entry) for entry in (self._entry, self._above))
        return all(held.enter_context(forks.alone(place)) for place in places)

    def finish(self) -> None:
        state, present, entry = self._state, self._present, self._entry
        is_safe = is_durable(state)
        with ExitStack() as held:
            if not self._holds_alone(held):
                return
            forks.forbid(present.place_of(entry))  # to one that was made of the snapshot, and is not mounted yet
            moves = _Moves(*self._layers)
            try:
                moves.run()
                if is_safe:
                    syscalls.sync_filesystem(self._layers[1].root_fd)
                left = [one for one in present.entries if one != entry]
                going_back.with_room(present, lambda: present.publish(left, durable=is_safe))
                state.frozen = tuple(frozen for frozen in state.frozen if frozen != self._number)
            finally:  # names may have moved in any case
                is_gone = self._number not in state.frozen
                _lead_up(state, self._number, self._target, moves, is_gone=is_gone)
        _forget_layer(state, present, entry, self._number)


def _forget_layer(state: State, present: History, entry: Entry, number: int) -> None:
    layer = state.layers[number]
    state.layers[number] = layer._replace(root_fd=-1)
    close_quietly(layer.root_fd)
    present.waste.append(entry.directory)


# -- on disk


def _is_plain(layer: Layer, goes_on: Callable[[], None], *, moves: bool) -> bool:
    """Whether the merged tree stays the same when the files of a layer move, or when others move into it. `goes_on` is
    called now and then, and raises where that does not matter any more."""
    with _opened(layer.root_fd, b".") as fd:
        root = marks.read_marks_of_descriptor(fd.number, layer.spelling)
        return root.opacity is Opacity.TRANSPARENT and _are_plain(layer, goes_on, fd.number, 0, moves)


def _are_plain(layer: Layer, goes_on: Callable[[], None], dir_fd: int, depth: int, moves: bool) -> bool:
    time.sleep(_PAUSE_S)
    goes_on()
    for name in access.list_names(dir_fd):
        found = marks.read_marks(dir_fd, name, layer.spelling)
        if found.redirect is not None or found.metacopy_value is not None or marks.is_reserved_name(name):
            return False
        if found.opacity is Opacity.XATTR_WHITEOUTS or depth > _DEEPEST:
            return False
        st = access.stat_at(dir_fd, name)
        if stat.S_ISDIR(st.st_mode):
            with _opened(dir_fd, name) as below:
                if not _are_plain(layer, goes_on, below.number, depth + 1, moves):
                    return False
        elif moves and st.st_nlink > 1 and not marks.is_whiteout_device(st):  # which are links of one
            return False
    return True


def _say_numbers(layer: Layer, dir_fd: int, goes_on: Callable[[], None]) -> None:
    """Have each file keep its inode number in another layer. Where a filesystem or the kernel takes no such mark, as of
    an ordinary user's symlink, the number will be another."""
    time.sleep(_PAUSE_S)
    goes_on()
    for name in access.list_names(dir_fd):
        st = access.stat_at(dir_fd, name)
        if marks.read_marks(dir_fd, name, layer.spelling).number is None:
            value = marks.integer_value(layer.number(st))
            with _opened(dir_fd, name, syscalls.OPEN_NODE) as node:
                _mark(node.number, layer.spelling.prefix + marks.NUMBER, value)
        if stat.S_ISDIR(st.st_mode):
            with _opened(dir_fd, name) as below:
                _say_numbers(layer, below.number, goes_on)


def _mark(fd: int, name: bytes, value: bytes) -> None:
    try:
        access.setxattr(fd, name, value)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
            raise


class _Moves:
    """Moves the names of one layer to another, and knows what is where then."""

    def __init__(self, source: Layer, target: Layer) -> None:
        self._source, self._target = source, target
        self._moved: set[bytes] = set()  # paths, with all that is below
        self._merged: set[bytes] = set()  # of directories that both layers have

    def run(self) -> None:
        with _opened(self._source.root_fd, b".") as below, _opened(self._target.root_fd, b".") as above:
            self._move_names(below.number, above.number, b"")

    def has_moved(self, path: bytes) -> bool:
        while path and path not in self._moved:
            path = path.rpartition(b"/")[0]
        return bool(path)

    def has_arrived(self, path: bytes) -> bool:
        """Whether the other layer has it, too, for a directory."""
        return path in self._merged or self.has_moved(path)

    def _move_names(self, source_fd: int, target_fd: int, path: bytes) -> None:
        self._merged.add(path)
        before = syscalls.stat_of(target_fd)
        try:
            for name in access.list_names(source_fd):
                try:
                    found = access.stat_at(target_fd, name)
                except FileNotFoundError:
                    access.rename(source_fd, name, target_fd, name, syscalls.RENAME_NOREPLACE)
                    self._moved.add(join(path, name))
                    continue
                if stat.S_ISDIR(found.st_mode):
                    self._merge_directory(source_fd, target_fd, name, join(path, name))
        finally:
            with drafts.afterwards():
                syscalls.copy_times(target_fd, before)

    def _merge_directory(self, source_fd: int, target_fd: int, name: bytes, path: bytes) -> None:
        """Both layers have the name, and the upper one a directory."""
        source, target = self._source, self._target
        with _opened(target_fd, name) as above:
            if marks.read_marks_of_descriptor(above.number, target.spelling).opacity is Opacity.OPAQUE:
                return
            hides = True
            if stat.S_ISDIR(access.stat_at(source_fd, name).st_mode):
                with _opened(source_fd, name) as below:
                    self._move_names(below.number, above.number, path)
                    hides = marks.read_marks_of_descriptor(below.number, source.spelling).opacity is Opacity.OPAQUE
            if hides:  # all that lies below both
                access.setxattr(above.number, target.spelling.prefix + marks.OPAQUE, b"y")


class _opened:  # noqa: N801 - used as a function
    """A block with a descriptor, by default of a directory, which is read without moving its access time where we
    may."""

    def __init__(self, dir_fd: int, name: bytes, flags: int = _OPEN) -> None:
        self.number = access.open_at(dir_fd, name, flags, quietly=flags == _OPEN)

    def __enter__(self) -> _opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.number)


# -- in memory


def _lead_up(state: State, source: int, target: int, moves: _Moves, *, is_gone: bool) -> None:
    """Have all that is known to be in one layer be in the other, as far as it moved there."""
    inodes = list(state.inodes.values())
    if isinstance(state.former, Former):
        inodes += state.former.inodes.values()
    for inode in inodes:  # before the directories: a file may be known by its position in them
        if not isinstance(inode, Directory):
            _lead_file(state, inode, source, target, moves, is_gone=is_gone)
    for inode in inodes:
        if isinstance(inode, Directory) and any(place.layer == source for place in inode.lowers):
            _lead_directory(state, inode, source, target, moves, is_gone=is_gone)
    for copy, place in state.copied_from.items():
        if place.layer == source and (is_gone or moves.has_moved(place.path)):
            state.copied_from[copy] = place._replace(layer=target)


def _lead_file(state: State, inode: Inode, source: int, target: int, moves: _Moves, *, is_gone: bool) -> None:
    place, parent = inode.lower, inode.parent
    if place is None:
        return
    if place.layer == source and moves.has_moved(place.path):
        inode.lower = place._replace(layer=target)
    elif inode.position >= 0 and parent is not None and any(one.layer == source for one in parent.lowers):
        inode.lower = place
    keys = inode.shared_as
    if is_gone and keys is not None and any(layer == source for layer, _, _ in keys):
        state.unshare(inode)
        inode.shared_as = [(target if layer == source else layer, device, number) for layer, device, number in keys]
        for key in inode.shared_as:
            state.by_real[key] = inode


def _lead_directory(
    state: State, directory: Directory, source: int, target: int, moves: _Moves, *, is_gone: bool
) -> None:
    places: list[Location] = []
    for place in directory.lowers:
        if place.layer != source:
            places.append(place)
            continue
        moved = place._replace(layer=target)
        if moved not in places and moves.has_arrived(place.path):
            places.append(moved)
        if not is_gone and not moves.has_moved(place.path):
            places.append(place)
        state.descriptors.drop_directory(place)
    directory.lowers, directory.below = tuple(places), None
