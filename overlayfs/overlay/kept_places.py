"""Which places keep their inodes in a reset, so that what is mounted on them stays mounted?

The kernel unmounts what is mounted on a name, or below it, once the name leads to another inode. A place of the lower
layers leads to the same one after the reset, whatever was changed in it. A place that was made in the upper is made
again in the layer that follows, empty, with its number as a mark and its metadata; so are the directories that it is
in. All others are refused: a file or directory of the lower layers at another path, or something else in its place.

Nothing refers to that layer yet (see next_layer), so all this may fail. Neighbour: going_back, which calls it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Sequence

from overlayfs._typing import Final, NamedTuple

from ..tree import access, fileflags, marks, metadata, syscalls
from ..tree.syscalls import stat_of
from . import attributes, copyup_plan, drafts, lookup, protection, redirects, xattrs
from .inodes import Directory, Inode
from .layer import UPPER_INDEX, Layer, Location
from .next_layer import NextLayer, is_durable
from .ownership import Owner
from .state import State

_KINDS: Final = (stat.S_IFDIR, stat.S_IFREG)
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Below(NamedTuple):
    """What the lower layers have at a path; `directory` is in no table."""

    number: int
    directory: Directory | None


class _Place(NamedTuple):
    """A name on the way to a place: what it leads to, and what it would lead to without the upper."""

    parent: Directory
    inode: Inode
    below: _Below | None


class Kept(NamedTuple):
    """Names, each with its directory's number: all on the way to the places; and those in directories on the way that
    were deleted in a layer that is dropped, which the kernel knows for absent."""

    names: Collection[tuple[int, bytes]]
    shown: Sequence[tuple[int, bytes]]


def keep(state: State, fresh: NextLayer, layers_kept: Sequence[int], paths: Iterable[bytes]) -> Kept:
    """Have the layer that follows the upper keep these paths. `layers_kept` are the frozen layers that stay, top first.
    EXDEV where one cannot be kept; any error of the disk."""
    places: dict[bytes, _Place] = {}  # directories before their entries
    numbers = (*layers_kept, *range(state.data_start))
    for path in paths:
        _follow(state, numbers, path, places)
    needed: set[bytes] = set()  # those without a part in the lower layers, and all on the way to them
    for path in [path for path, place in places.items() if place.below is None]:
        while path and path not in needed:
            needed.add(path)
            path = path.rpartition(b"/")[0]
    if needed:
        if not state.xattrs_work:
            raise _cannot_be_kept(min(needed))
        _make(state, fresh, {path: place for path, place in places.items() if path in needed})
    names = {(place.parent.number, path.rpartition(b"/")[2]) for path, place in places.items()}
    return Kept(names, [name for place in places.values() for name in _shown_again(state, place)])


def _shown_again(state: State, place: _Place) -> Iterable[tuple[int, bytes]]:
    inode, below = place.inode, None if place.below is None else place.below.directory
    if below is None or not isinstance(inode, Directory):
        return ()
    before = lookup.below(state, inode)
    return [(inode.number, name) for name in lookup.below(state, below) if name not in before]


def _cannot_be_kept(path: bytes) -> OSError:
    return OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)


# -- which places


def _follow(state: State, numbers: Sequence[int], path: bytes, places: dict[bytes, _Place]) -> None:
    here, way = state.root, b""
    below: Directory | None = _roots_below(state, numbers)
    for name in path.split(b"/"):
        way = redirects.join(way, name)
        if way not in places:
            inode = lookup.child(state, here, name)
            found = None if below is None else _in_lowers(state, below, name)
            if inode is None or not _can_be_kept(state, numbers, inode, found):
                raise _cannot_be_kept(way)
            places[way] = _Place(here, inode, found)
        inode, found = places[way].inode, places[way].below
        below = None if found is None else found.directory
        if way == path:
            return
        if not isinstance(inode, Directory):
            raise _cannot_be_kept(way)
        here = inode


def _roots_below(state: State, numbers: Sequence[int]) -> Directory:
    """The root of the tree of these layers."""
    root = Directory(state.root.number, None, b"")
    locations = []
    for number in numbers:
        locations.append(Location(number, b""))
        if state.layers[number].hides_below:
            break
    root.lowers = tuple(locations)
    return root


def _in_lowers(state: State, parent: Directory, name: bytes) -> _Below | None:
    candidates = lookup.below(state, parent).get(name)
    if candidates is None:
        return None
    if isinstance(candidates, tuple):
        lowers = redirects.stack_of(state, parent, name, candidates)
        place = lowers[0]
    else:
        lowers, place = (), parent.lowers[candidates].child(name)
    layer = state.layers[place.layer]
    dir_fd, last = state.lower_place(place)
    st = access.stat_at(dir_fd, last)
    if not lowers and not st.st_size and marks.is_whiteout(dir_fd, last, st, layer.spelling):
        return None
    was_upper = layer.index < UPPER_INDEX
    marked = marks.read_marks(dir_fd, last, layer.spelling).number if was_upper else None
    number = layer.number(st) if marked is None else marked
    directory = None
    if lowers:
        directory = Directory(number, parent, name)
        directory.lowers = lowers
    return _Below(number, directory)


def _can_be_kept(state: State, numbers: Sequence[int], inode: Inode, below: _Below | None) -> bool:
    if below is not None:
        return inode.number == below.number
    if isinstance(inode, Directory):
        return all(place.layer not in numbers for place in inode.lowers)
    is_copy = state.prefix + marks.ORIGIN in xattrs.stored_names(state, inode)
    return inode.kind in _KINDS and not is_copy and (inode.upper or inode.lower_layer not in numbers)


# -- in the layer that follows


def _make(state: State, fresh: NextLayer, places: dict[bytes, _Place]) -> None:
    """Make these places, which have their directories before them."""
    root_fd = fresh.upper.root_fd
    before = stat_of(root_fd)
    for path, place in places.items():
        if isinstance(place.inode, Directory):
            os.mkdir(path, 0o700, dir_fd=root_fd)
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=root_fd))
        if place.below is not None:
            _mark_as_impure(state, root_fd, path.rpartition(b"/")[0] or b".")
    for path, place in reversed(places.items()):  # what is made in a directory changes its times
        fd = os.open(path, _OPEN, dir_fd=root_fd)
        try:
            access.setxattr(fd, state.prefix + marks.NUMBER, marks.integer_value(place.inode.number))
            _dress(state, place, fd)
            if is_durable(state):
                os.fsync(fd)
        finally:
            os.close(fd)
    syscalls.copy_times(root_fd, before)
    if is_durable(state):
        fd = os.open(b".", _OPEN | os.O_DIRECTORY, dir_fd=root_fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _mark_as_impure(state: State, root_fd: int, path: bytes) -> None:
    fd = os.open(path, _OPEN | os.O_DIRECTORY, dir_fd=root_fd)
    try:
        access.setxattr(fd, state.prefix + marks.IMPURE, b"y")
    finally:
        os.close(fd)


def _dress(state: State, place: _Place, fd: int) -> None:
    """Give a place the metadata that it has without changes; one that was made in the upper, what it has there."""
    directory = None if place.below is None else place.below.directory
    if directory is None:
        with copyup_plan.readable(state, place.inode) as source:
            owner = copyup_plan.owner_on_disk(state, place.inode, stat_of(source))
            _copy_metadata(state, attributes.layer_of(state, place.inode), source, owner, fd)
        protecting = protection.flags_of(state, place.inode)
        if protecting:
            access.setxattr(fd, state.prefix + marks.PROTECTION, marks.protection_value(protecting))
        return
    layer, source = state.layers[directory.lowers[0].layer], state.lower_fd(directory.lowers[0])
    st = stat_of(source)
    owner = Owner(st.st_uid, st.st_gid, st.st_mode, st.st_rdev)
    if layer.override is not None:
        owner = attributes.read_override(layer, source, owner)
    _copy_metadata(state, layer, source, owner, fd)


def _copy_metadata(state: State, layer: Layer, source: int, owner: Owner, fd: int) -> None:
    fileflags.copy_flags(source, fd)
    st = stat_of(source)
    owner = drafts.written_owner(state, fd, owner)
    metadata.copy_metadata(source, fd, owner.uid, owner.gid, owner.mode, st, layer.spelling)
