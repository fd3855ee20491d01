"""How does a live mount drop a snapshot, so that no layer of its own stays for it?

The name goes first, by one rename of `stack` (see history). A layer without a name is then merged into the frozen one
above it: what that lacks moves there by rename(2), name for name, so that the merged tree is the same after each; at
last `stack` is published without the layer, which is removed. A crash during a merge may leave the time of the crash as
the mtime of a directory.

The layer stays, without a name, where it is the lowest (the upperdir), where the layer above is the upper itself, and
where merging would take more than moving: it or the one above has redirects, metacopies, whiteouts of another format,
an index of hard links, or is used by a fork; or where a file to move has several links, of which the counts of deleted
names know. Each later drop tries again.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress

from overlayfs._log import Log
from overlayfs._typing import Final

from ..tree import access, marks, syscalls
from ..tree.marks import Opacity
from . import drafts, forks, snapshots, stack
from .former import Former
from .history import History
from .inodes import Directory, Inode
from .layer import Layer, Location
from .next_layer import is_durable
from .stack import Entry
from .state import State

log = Log(__name__)

_DEEPEST: Final = 200  # one descriptor and one frame each
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def drop(state: State, name: str) -> str:
    """Drop a snapshot; its name. ENOENT where there is none, EINVAL where that is no name; otherwise as
    `snapshots.take`."""
    stack.check_name(name)
    present = snapshots.history_of(state)
    at = present.position(name)
    entries = list(present.entries)
    found = entries[at].snapshot or ""
    entries[at] = entries[at]._replace(snapshot=None, taken_at=0.0)
    durable = is_durable(state)
    present.publish(entries, durable=durable)
    for position in range(len(entries) - 3, 0, -1):
        with drafts.afterwards():  # the layer stays then, and the next drop goes on
            _merge(state, present, position, durable=durable)
    return found


def _merge(state: State, present: History, at: int, *, durable: bool) -> None:
    entry, above = present.entries[at : at + 2]
    if entry.snapshot is not None or entry.upper or not entry.directory:
        return
    number, target = (state.frozen[len(state.frozen) - 1 - position] for position in (at, at + 1))
    layers = state.layers[number], state.layers[target]
    has_index = any(index.layer in (number, target) for index in state.frozen_indexes)
    if has_index or snapshots.holds_unnamed(state, number):
        return
    if not (_is_plain(layers[0], moves=True) and _is_plain(layers[1], moves=False)):
        return
    with ExitStack() as stack:
        if not all(stack.enter_context(forks.alone(present.place_of(one))) for one in (entry, above)):
            return
        forks.forbid(present.place_of(entry))  # to one that was made of the snapshot, and is not mounted yet
        try:
            _move_up(*layers)
            if durable:
                syscalls.sync_filesystem(layers[1].root_fd)
            present.publish([*present.entries[:at], *present.entries[at + 1 :]], durable=durable)
            state.frozen = tuple(frozen for frozen in state.frozen if frozen != number)
        finally:  # names may have moved in any case
            _lead_up(state, number, target, is_gone=number not in state.frozen)
    _forget_layer(state, present, entry, number)


def _forget_layer(state: State, present: History, entry: Entry, number: int) -> None:
    layer = state.layers[number]
    state.layers[number] = layer._replace(root_fd=-1)
    os.close(layer.root_fd)
    present.waste.append(entry.directory)


# -- on disk


def _is_plain(layer: Layer, *, moves: bool) -> bool:
    """Whether the merged tree stays the same when the files of a layer move, or when others move into it."""
    with _opened(layer.root_fd, b".") as fd:
        root = marks.read_marks_of_descriptor(fd.number, layer.spelling)
        return root.opacity is Opacity.TRANSPARENT and _are_plain(layer, fd.number, 0, moves)


def _are_plain(layer: Layer, dir_fd: int, depth: int, moves: bool) -> bool:
    for name in access.list_names(dir_fd):
        found = marks.read_marks(dir_fd, name, layer.spelling)
        if found.redirect is not None or found.metacopy_value is not None or marks.is_reserved_name(name):
            return False
        if found.opacity is Opacity.XATTR_WHITEOUTS or depth > _DEEPEST:
            return False
        st = access.stat_at(dir_fd, name)
        if stat.S_ISDIR(st.st_mode):
            with _opened(dir_fd, name) as below:
                if not _are_plain(layer, below.number, depth + 1, moves):
                    return False
        elif moves and st.st_nlink > 1 and not marks.is_whiteout_device(st):  # which are links of one
            return False
    return True


def _move_up(source: Layer, target: Layer) -> None:
    with _opened(source.root_fd, b".") as below, _opened(target.root_fd, b".") as above:
        _say_numbers(source, below.number)
        _move_names(source, below.number, target, above.number)


def _say_numbers(layer: Layer, dir_fd: int) -> None:
    """Have each file keep its inode number in another layer. Where a filesystem or the kernel takes no such mark, as of
    an ordinary user's symlink, the number will be another."""
    for name in access.list_names(dir_fd):
        st = access.stat_at(dir_fd, name)
        if marks.read_marks(dir_fd, name, layer.spelling).number is None:
            value = marks.integer_value(layer.number(st))
            with suppress(OSError), access.node(dir_fd, name) as fd:
                access.setxattr(fd, layer.spelling.prefix + marks.NUMBER, value)
        if stat.S_ISDIR(st.st_mode):
            with _opened(dir_fd, name) as below:
                _say_numbers(layer, below.number)


def _move_names(source: Layer, source_fd: int, target: Layer, target_fd: int) -> None:
    before = syscalls.stat_of(target_fd)
    try:
        for name in access.list_names(source_fd):
            try:
                found = access.stat_at(target_fd, name)
            except FileNotFoundError:
                access.rename(source_fd, name, target_fd, name, syscalls.RENAME_NOREPLACE)
                continue
            if stat.S_ISDIR(found.st_mode):
                _merge_directory(source, source_fd, target, target_fd, name)
    finally:
        with drafts.afterwards():
            syscalls.set_times(target_fd, before.st_atime_ns, before.st_mtime_ns)


def _merge_directory(source: Layer, source_fd: int, target: Layer, target_fd: int, name: bytes) -> None:
    """Both layers have the name, and the upper one a directory."""
    with _opened(target_fd, name) as above:
        if marks.read_marks_of_descriptor(above.number, target.spelling).opacity is Opacity.OPAQUE:
            return
        hides = True
        if stat.S_ISDIR(access.stat_at(source_fd, name).st_mode):
            with _opened(source_fd, name) as below:
                _move_names(source, below.number, target, above.number)
                hides = marks.read_marks_of_descriptor(below.number, source.spelling).opacity is Opacity.OPAQUE
        if hides:  # all that lies below both
            access.setxattr(above.number, target.spelling.prefix + marks.OPAQUE, b"y")


class _opened:  # noqa: N801 - used as a function
    """A block with a descriptor of a directory, which is read without moving its access time where we may."""

    def __init__(self, dir_fd: int, name: bytes) -> None:
        self.number = access.open_at(dir_fd, name, _OPEN, quietly=True)

    def __enter__(self) -> _opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.number)


# -- in memory


def _lead_up(state: State, source: int, target: int, *, is_gone: bool) -> None:
    """Have all that is known to be in one layer be in the other, as far as it moved there."""
    inodes = list(state.inodes.values())
    if isinstance(state.former, Former):
        inodes += state.former.inodes.values()
    for inode in inodes:  # before the directories: a file may be known by its position in them
        if not isinstance(inode, Directory):
            _lead_file(state, inode, source, target, is_gone=is_gone)
    for inode in inodes:
        if isinstance(inode, Directory) and any(place.layer == source for place in inode.lowers):
            _lead_directory(state, inode, source, target, is_gone=is_gone)
    for copy, place in state.copied_from.items():
        if place.layer == source and (is_gone or not _is_there(state, place)):
            state.copied_from[copy] = place._replace(layer=target)


def _lead_file(state: State, inode: Inode, source: int, target: int, *, is_gone: bool) -> None:
    place, parent = inode.lower, inode.parent
    if place is None:
        return
    if place.layer == source and not _is_there(state, place):
        inode.lower = place._replace(layer=target)
    elif inode.position >= 0 and parent is not None and any(one.layer == source for one in parent.lowers):
        inode.lower = place
    keys = inode.shared_as
    if is_gone and keys is not None and any(layer == source for layer, _, _ in keys):
        state.unshare(inode)
        inode.shared_as = [(target if layer == source else layer, device, number) for layer, device, number in keys]
        for key in inode.shared_as:
            state.by_real[key] = inode


def _lead_directory(state: State, directory: Directory, source: int, target: int, *, is_gone: bool) -> None:
    places: list[Location] = []
    for place in directory.lowers:
        if place.layer != source:
            places.append(place)
            continue
        moved = place._replace(layer=target)
        if moved not in places and _is_there(state, moved):
            places.append(moved)
        if not is_gone and _is_there(state, place):
            places.append(place)
        state.descriptors.drop_directory(place)
    directory.lowers, directory.below = tuple(places), None


def _is_there(state: State, place: Location) -> bool:
    """Whether a layer has this path, of any length, through directories of ours."""
    above, _, name = place.path.rpartition(b"/")
    try:
        fd = access.open_beneath(state.layers[place.layer].root_fd, above or b".", _OPEN)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        access.stat_at(fd, name or b".")
    except FileNotFoundError:
        return False
    finally:
        os.close(fd)
    return True
