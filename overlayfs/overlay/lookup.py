# cython: language_level=3, annotation_typing=False
"""Which inode does a name in a directory lead to?

A directory is read once per layer; then every lookup in it, of absent names too, is a dict lookup. `child` is the
only way from a name to an inode; it does not raise nlookup. Neighbours: merge (which names), redirects (where a
renamed directory's lower part is), attributes (what stat says of the result). Compiled; C types are in lookup.pxd.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from overlayfs._typing import Final, TypeVar

from ..tree import access, marks, xattrs
from ..tree.marks import Marks, Opacity
from ..tree.syscalls import Stat
from . import attributes, linked, redirects
from .inodes import Directory, Inode, is_shown_as_on_disk, lower_file, stable_number
from .layer import UPPER_INDEX, Layer, Location
from .merge import Candidates, Kind, Names, merge
from .scanning import scan
from .state import State
from .whiteouts import LONGEST_NAME

_AnyInode = TypeVar("_AnyInode", bound=Inode)


def check_name(name: bytes) -> None:
    if len(name) > LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)


def check_new_name(name: bytes) -> None:
    """Refuse names that readers of layers would take for a deletion."""
    check_name(name)
    if marks.is_reserved_name(name):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), name)


def above(state: State, directory: Directory) -> dict[bytes, Kind]:
    """What the upper holds of a directory, whiteouts included; kept current by every operation."""
    if directory.above is None:
        directory.above = {}
        if directory.upper and directory.number not in state.orphans:
            directory.above = None
            assert state.upper is not None
            directory.above = _scan(state, state.upper, state.upper_fd(directory)).kinds
            attributes.note_read(state, directory)
    return directory.above


def below(state: State, directory: Directory) -> dict[bytes, Candidates]:
    """The merged lower layers of a directory: visible names, each with the layers that provide it."""
    if directory.below is None:
        stack = []
        for location in directory.lowers:
            here = _scan(state, state.layers[location.layer], state.lower_fd(location))
            stack.append(here)
            if here.opaque:
                break
        directory.below = merge(stack)
    return directory.below


def _scan(state: State, layer: Layer, dir_fd: int) -> Names:
    """Read a directory of one layer. Opaque xattrs were honoured when the stack was made, and on the root of a layer
    they mean nothing (as for the kernel); here only the announcement of xattr whiteouts counts."""
    opacity = marks.read_marks_of_descriptor(dir_fd, layer.spelling).opacity
    counts = opacity if opacity is Opacity.XATTR_WHITEOUTS else Opacity.TRANSPARENT
    while True:
        try:
            return scan(dir_fd, counts, layer.spelling, layer.opens_quietly)
        except OSError as error:
            if not state.descriptors.may_try_again(error):
                raise


def note(parent: Directory, name: bytes, kind: Kind | None) -> None:
    """Update the cached names of the upper directory after an operation changed one; None says that the name is gone.

    Cannot fail: a directory that was not read yet is read later, in its state then.
    """
    if parent.above is not None and kind is not None:
        parent.above[name] = kind
    elif parent.above is not None:
        parent.above.pop(name, None)


def names(state: State, directory: Directory) -> list[bytes]:
    """The visible names of a directory, the upper's first."""
    upper = above(state, directory)
    listed = [name for name, kind in upper.items() if kind is not Kind.WHITEOUT]
    if directory.lowers:
        listed += [name for name in below(state, directory) if name not in upper]
    return listed


def in_lower(state: State, directory: Directory, name: bytes) -> bool:
    """True where a lower layer would show `name` if the upper had nothing under it."""
    return bool(directory.lowers) and name in below(state, directory)


def child(state: State, parent: Directory, name: bytes) -> Inode | None:
    """The inode under `name`, None where there is none."""
    if state.revalidates:
        _revalidate(state, parent, name)
    found = parent.children.get(name)
    if found is None and not marks.is_reserved_name(name):
        check_name(name)
        found = _resolve(state, parent, name)
        if found is not None:
            parent.children[name] = found
    return found


class Finder:
    """`child` for many names of one directory: what they have in common is found out once.

    That is for files of a lower layer with one name and some content, which most are; others go the long way.
    """

    def __init__(self, state: State, parent: Directory) -> None:
        self.state = state
        self.parent = parent
        self.visible: dict[bytes, Candidates] = {}
        self.upper: dict[bytes, Kind] = {}
        self.sources: list[tuple[bytes, int, int] | None] = []  # identity, device and descriptor of each lower
        self.begun = False
        self.operation = 0

    def _begin(self) -> None:
        """Descriptors of the pool are good for one operation, and between two the directory may change."""
        state, parent = self.state, self.parent
        self.begun, self.operation, self.sources = True, state.descriptors.operation, []
        if parent.lowers and state.ownership.plain and not state.revalidates:
            self.visible, self.upper = below(state, parent), above(state, parent)
            for location in parent.lowers:
                layer = state.layers[location.layer]
                source = (layer.identity, layer.device, state.lower_fd(location))
                is_plain = layer.override is None and layer.index > UPPER_INDEX
                self.sources.append(source if is_plain else None)

    def find(self, name: bytes) -> Inode | None:
        state, parent = self.state, self.parent
        found = parent.children.get(name)
        if found is not None and not state.revalidates:
            return found
        if not self.begun or self.operation != state.descriptors.operation:
            self._begin()
        position = self.visible.get(name)
        if type(position) is int and name not in self.upper:
            source = self.sources[position]
            if source is not None:
                identity, device, dir_fd = source
                st = _stat(dir_fd, name)
                if is_shown_as_on_disk(st):
                    number = state.free_number(stable_number(identity, device, st))
                    found = parent.children[name] = lower_file(number, parent, name, position, st)
                    state.add(found)
                    return found
        state.descriptors.begin()
        return child(state, parent, name)


def existing_child(state: State, parent: Directory, name: bytes) -> Inode:
    found = child(state, parent, name)
    if found is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return found


def _resolve(state: State, parent: Directory, name: bytes) -> Inode | None:
    kind = above(state, parent).get(name) if parent.upper else None
    if kind is Kind.WHITEOUT:
        return None
    if kind is not None:
        return _from_upper(state, parent, name, kind)
    if not parent.lowers:
        return None
    known = parent.below
    candidates = (below(state, parent) if known is None else known).get(name)
    if candidates is None:
        return None
    if isinstance(candidates, tuple):
        return _lower_directory(state, parent, name, candidates)
    return _lower_file(state, parent, name, candidates)


def _stat(dir_fd: int, name: bytes) -> Stat:
    try:
        return access.stat_at(dir_fd, name)
    except FileNotFoundError:  # it was listed, so somebody changed the layer
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name) from None


# -- lower


def _lower_file(state: State, parent: Directory, name: bytes, position: int) -> Inode | None:
    above_it = parent.lowers[position]
    layer, dir_fd = state.layers[above_it.layer], state.lower_fd(above_it)
    st = _stat(dir_fd, name)
    if not st.st_size and marks.is_whiteout(dir_fd, name, st, layer.spelling):
        below(state, parent).pop(name, None)
        return None
    if st.st_nlink > 1:
        return _linked_lower_file(state, parent, name, position, st)
    found = _frozen_marks(layer, dir_fd, name)
    number = layer.number(st) if found is None or found.number is None else found.number
    inode = _new_inode(state, parent, name, st, number)
    inode.provided_by(position)
    if found is not None:
        inode.protection = found.protection
    return _known(state, inode, st)


def _linked_lower_file(state: State, parent: Directory, name: bytes, position: int, st: Stat) -> Inode:
    """The file of several names that `name` is one of: its newest copy, in the upper or in a frozen index."""
    itself = place = parent.lowers[position].child(name)
    lower_links = st.st_nlink
    if state.frozen_indexes:
        place = linked.newest_copy(state, itself, state.top)
    layer = state.layers[place.layer]
    dir_fd, last = state.lower_place(place)
    if place != itself:
        st = _stat(dir_fd, last)
    known = state.shared(place.layer, st) or _from_index(state, place, st)
    if known is not None:
        known.add_name(parent, name)
        if known.index_name is not None:
            state.names_to_link.add(known.number)
        return known
    found = _frozen_marks(layer, dir_fd, last)
    number = layer.number(st) if found is None or found.number is None else found.number
    inode = _new_inode(state, parent, name, st, number)
    inode.provided_by(position)
    if found is not None:
        inode.protection = found.protection
    inode.lost_links = state.lost_links.get(number, 0)
    if place != itself:
        inode.lower = place
        if found is not None and number not in state.lost_links:
            inode.lost_links = _lost_links(found, st, found.lower_links or lower_links)
    state.share(inode, place.layer, st)
    return _known(state, inode, st)


def _lower_directory(state: State, parent: Directory, name: bytes, positions: tuple[int, ...]) -> Directory:
    lowers = redirects.stack_of(state, parent, name, positions)
    dir_fd, last = state.lower_place(lowers[0])
    st = _stat(dir_fd, last)
    layer = state.layers[lowers[0].layer]
    found = _frozen_marks(layer, dir_fd, last)
    number = layer.number(st) if found is None or found.number is None else found.number
    directory = _new_directory(state, parent, name, number)
    directory.lowers = lowers
    if found is not None:
        directory.protection = found.protection
    directory.lower_path = redirects.join(parent.lower_path, name)
    return _known(state, directory, st)


def _frozen_marks(layer: Layer, dir_fd: int, name: bytes) -> Marks | None:
    """The marks of a file that was in the upper once, which say its number and flags; None for other lower files."""
    return marks.read_marks(dir_fd, name, layer.spelling) if layer.index < UPPER_INDEX else None


# -- upper


def _from_upper(state: State, parent: Directory, name: bytes, kind: Kind) -> Inode | None:
    assert state.upper is not None
    dir_fd = state.upper_fd(parent)
    st = _stat(dir_fd, name)
    found = marks.read_marks(dir_fd, name, state.upper.spelling)
    number = found.number if found.number is not None else state.upper.number(st)
    if stat.S_ISDIR(st.st_mode):
        return _upper_directory(state, parent, name, st, found, number, kind)
    if not st.st_size and marks.is_whiteout(dir_fd, name, st, state.upper.spelling):
        above(state, parent)[name] = Kind.WHITEOUT
        return None
    known = state.shared(UPPER_INDEX, st)  # one link is no reason not to ask: its other names may just have gone
    if known is not None:
        known.add_name(parent, name)
        state.drop_orphan(known)
        return known
    metacopy = stat.S_ISREG(st.st_mode) and found.metacopy
    data = redirects.data_below(state, parent, name, found.redirect) if metacopy else None
    inode = _new_inode(state, parent, name, st, number)
    inode.upper, inode.metacopy, inode.lower = True, metacopy, data
    inode.protection = found.protection
    if st.st_nlink > 1:
        try:
            _share_upper(state, inode, dir_fd, st, found)
        except OSError:
            state.discard(inode)
            raise
    return _known(state, inode, st)


def _share_upper(state: State, inode: Inode, dir_fd: int, st: Stat, found: Marks) -> None:
    """Let the other names of an upper file find it, and recognise a file of the index."""
    state.share(inode, UPPER_INDEX, st)
    if not state.index_names or state.index_fd is None or inode.parent is None:
        return
    origin = xattrs.read_xattr(dir_fd, inode.name, state.prefix + marks.ORIGIN)
    name = origin.hex().encode() if origin else b""
    if name not in state.index_names:
        return
    entry = os.stat(name, dir_fd=state.index_fd, follow_symlinks=False)
    if (entry.st_dev, entry.st_ino) == (st.st_dev, st.st_ino):
        inode.index_name = name
        inode.lost_links = _lost_links(found, st, found.lower_links or _lower_links(state, inode.parent, inode.name))


def _lower_links(state: State, parent: Directory, name: bytes) -> int | None:
    """How many links the lower file under a name has, None where there is none."""
    position = below(state, parent).get(name) if parent.lowers else None
    if not isinstance(position, int):
        return None
    dir_fd, last = state.lower_place(parent.lowers[position].child(name))
    return _stat(dir_fd, last).st_nlink


def _lost_links(found: Marks, st: Stat, lower_links: int | None) -> int:
    """Links on disk that are not names in the merged tree, from the kernel's nlink xattr.

    `U+N`: names = links of this file + N; `L+N`: names = links of the lower file + N, while names are being linked.
    Where it says nothing that makes sense, the index entry itself is the one link that is no name.
    """
    value = (found.nlink or b"").decode("ascii", "replace")
    if value[1:2] in ("+", "-") and value[2:].isdigit() and len(value) < 12:
        if value[0] == "U":
            return min(-int(value[1:]), st.st_nlink)
        if value[0] == "L" and lower_links is not None:
            return st.st_nlink - max(lower_links + int(value[1:]), 0)
    return 1


def _from_index(state: State, location: Location, st: Stat) -> Inode | None:
    """The copied-up inode of a hard-linked lower file one of whose other names was written to."""
    if not state.index_names or state.index_fd is None:
        return None
    name = linked.entry_name(state, location)
    if name is None or name not in state.index_names:
        return None
    assert state.upper is not None
    entry = _stat(state.index_fd, name)
    known = state.shared(UPPER_INDEX, entry)
    if known is None:
        found = marks.read_marks(state.index_fd, name, state.upper.spelling)
        number = found.number if found.number is not None else state.upper.number(entry)
        known = Inode(state.free_number(number), stat.S_IFMT(entry.st_mode), None, b"")
        state.add(known)
        known.upper = True
        known.protection = found.protection
        known.index_name = name
        known.metacopy = stat.S_ISREG(entry.st_mode) and found.metacopy
        known.lost_links = _lost_links(found, entry, st.st_nlink)
        known.lower = location
        state.share(known, UPPER_INDEX, entry)
        _known(state, known, entry)
    known.lower = known.lower or location
    return known


def _upper_directory(
    state: State, parent: Directory, name: bytes, st: Stat, found: Marks, number: int, kind: Kind
) -> Directory:
    lower_path = redirects.join(parent.lower_path, name)
    lowers: tuple[Location, ...] = ()
    # an OCI whiteout beside the directory hides its lower part, but not one that a redirect finds elsewhere
    beside = kind is Kind.OPAQUE_DIRECTORY and found.redirect is None
    opaque = beside or redirects.is_opaque(state.upper_fd(parent), name, found)
    if not opaque and found.redirect is not None and state.follows_redirects:
        lower_path = marks.redirect_target(found.redirect, parent.lower_path)
        lowers = redirects.locate(state, state.top, lower_path)
    elif not opaque and parent.lowers:
        candidates = below(state, parent).get(name)
        if isinstance(candidates, tuple):
            lowers = redirects.stack_of(state, parent, name, candidates)
    directory = _new_directory(state, parent, name, number)
    directory.upper, directory.lower_path, directory.lowers = True, lower_path, lowers
    directory.protection = found.protection
    return _known(state, directory, st)


# -- new inodes


def _known(state: State, inode: _AnyInode, st: Stat) -> _AnyInode:
    """The inode with its attributes; what cannot be described is not kept."""
    try:
        attributes.remember(state, inode, st)
    except OSError:
        state.discard(inode)
        raise
    return inode


def _new_inode(state: State, parent: Directory, name: bytes, st: Stat, number: int) -> Inode:
    number = state.free_number(number)
    inode = Inode(number, stat.S_IFMT(st.st_mode), parent, name)
    state.add(inode)
    return inode


def _new_directory(state: State, parent: Directory, name: bytes, number: int) -> Directory:
    directory = Directory(state.free_number(number), parent, name)
    state.add(directory)
    return directory


def adopt(state: State, parent: Directory, name: bytes, number: int, st: Stat) -> Inode:
    """The inode of a file that was just made in the upper."""
    inode: Inode
    if stat.S_ISDIR(st.st_mode):
        inode = directory = _new_directory(state, parent, name, number)
        directory.lower_path = redirects.join(parent.lower_path, name)
    else:
        inode = _new_inode(state, parent, name, st, number)
    inode.upper, inode.protection = True, 0
    return inode


# -- lower layers that change under the mount (timeout=0)

_SETTLED_NS: Final = 3_000_000_000  # more than one tick of any filesystem's clock


def forget_changed(state: State, directory: Directory) -> None:
    """Have the names of the lower layers read again, where the directories may have changed since they were read.

    They are read after `seen` was taken, so a later change moves a ctime, unless it comes within the same tick of the
    filesystem's clock. That is why directories that have only just changed are read each time.
    """
    seen: list[tuple[int, int, int]] = []
    is_settled = True
    settled_ns = time.time_ns() - _SETTLED_NS
    for location in directory.lowers:
        st = os.stat(state.lower_fd(location))
        has_settled = st.st_ctime_ns < settled_ns
        is_settled = is_settled and has_settled
        seen.append((st.st_dev, st.st_ino, st.st_ctime_ns if has_settled else -1))
    if seen != directory.seen or not is_settled:
        directory.below = None
        directory.seen = seen


def _revalidate(state: State, parent: Directory, name: bytes) -> None:
    if not parent.lowers:
        return
    forget_changed(state, parent)
    known = parent.children.get(name)
    if known is None or known.upper:
        return
    known.attributes = known.xattr_names = known.protection = None
    fresh = None
    del parent.children[name]
    state.inodes.discard(known.number)
    try:
        fresh = _resolve(state, parent, name)
    finally:
        if known.number not in state.inodes:
            state.inodes.add(known)
        if fresh is not None and fresh is not known:
            _keep_or_replace(state, parent, name, known, fresh)


def _keep_or_replace(state: State, parent: Directory, name: bytes, known: Inode, fresh: Inode) -> None:
    """One file, one inode: the fresh look only stays where it is another file than before."""
    if fresh.number != known.number or fresh.kind != known.kind:
        known.remove_name(parent, name)
        parent.children[name] = fresh
        return
    if isinstance(known, Directory) and isinstance(fresh, Directory):
        _take_lowers(known, fresh)
    else:  # a new file may have the number of one that is gone
        state.descriptors.drop_file(known.number)
        known.lower, known.attributes = fresh.lower, fresh.attributes
        state.unshare(known)
        known.shared_as, fresh.shared_as = fresh.shared_as, None
        for key in known.shared_as or ():
            state.by_real[key] = known
    state.inodes.add(known)
    parent.children[name] = known


def _take_lowers(known: Directory, fresh: Directory) -> None:
    if known.lowers == fresh.lowers:
        return
    for child in known.children.values():
        child.lower = child.lower  # which may be said as a position in the old ones
    known.lowers, known.lower_path, known.below = fresh.lowers, fresh.lower_path, None
