"""What becomes of the inodes that the kernel knows when a rollback changes the tree under it?

After a rollback no inode of before is in the table any more. One that the kernel uses again is looked up anew by the
name that it had, and so is each name that is looked up. What turns out to have the number of an inode of before is that
file: whoever has it open sees it as it was at the snapshot. An inode whose name leads to no such file any more is one
of a file that is gone: it goes on without a name, as an unlinked one, with its content in a layer that was dropped. A
dropped layer is kept for that until the kernel has forgotten all inodes that had to do with it.

A name that nobody looks up again is never forgotten by itself, where a rollback begins an epoch: so the kernel is told
of those names once many rollbacks have left layers. A file that stays open keeps the layers of its own rollback alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain

from overlayfs._typing import Final

from . import lookup
from .inodes import ROOT, Directory, Inode, InodeTable, path_of
from .layer import Location
from .state import Changed, Known, State

NO_NAMES: Final = 1 << 40  # more links than any file has: none of them is a name
_MOST_DROPS: Final = 16  # rollbacks whose layers are kept before the kernel is told of the names that are gone


class _Drop:  # a NamedTuple takes longer to make
    """The layers that one rollback dropped: the inodes that need them, and what removes them."""

    __slots__ = ("needed_by", "remove")

    def __init__(self, needed_by: set[int], remove: Callable[[], object]) -> None:
        self.needed_by, self.remove = needed_by, remove


class Former(Known):
    """Inodes of before, by number, and the layers that are kept for them."""

    def __init__(self) -> None:
        self.inodes = InodeTable()
        self._layer_of: dict[int, int] = {}  # of those that were in an upper: the number that it had as a layer
        self._drops: list[_Drop] = []

    # -- a rollback

    def absorb(
        self,
        state: State,
        upper_number: int,
        layers: Sequence[int],
        indexes: Sequence[int],
        remove: Callable[[], object],
    ) -> Changed:
        """Take all inodes but the root over from the state; those without a name stay there. `upper_number` is what the
        upper has become as a layer, `layers` and `indexes` are the numbers of all that count no more, which `remove` is
        called for when none of them is needed any more: by `sweep`, or later."""
        in_root, gone = _names_in(state.root), self._names_gone()
        differing, numbers, unnamed = state.inodes.give_known(self.inodes)
        unnamed = [inode for inode in unnamed if not self._absorb_linked(state, inode)]
        needed = set(numbers)
        self._layer_of |= dict.fromkeys(numbers, upper_number)
        is_deep, dropped = len(layers) > 1, (*layers, *indexes)
        if is_deep:
            below = [one for one in self.inodes.values() if one.number not in needed and _is_in(one, dropped)]
            differing += below
            needed.update(inode.number for inode in below)
        numbers = [ROOT, *needed]  # before those without a name, which stay as they are
        for inode in unnamed:
            is_in_upper = inode.upper and inode.number not in state.orphans  # which have a descriptor
            if is_in_upper or (is_deep and _is_in(inode, dropped)):
                needed.add(inode.number)
        numbers.extend(number for number in state.lost_links if self.inodes.get(number) is not None)
        _keep_only(state, unnamed)
        self._drops.append(_Drop(needed, remove))
        shown = _names_shown_again(state) if is_deep else ()
        return Changed(numbers, chain(in_root, _names_of(differing, is_deep), shown), gone)

    def _absorb_linked(self, state: State, inode: Inode) -> bool:
        """Take a lower hard-linked file over of which all known names are deleted, if it has others; whether it has."""
        if inode.upper or inode.number not in state.lost_links:
            return False
        self.inodes.add(inode)
        return True

    def _names_gone(self) -> list[tuple[int, bytes]]:
        """Where many rollbacks have left layers: the names of the inodes that these are kept for."""
        if len(self._drops) < _MOST_DROPS:
            return []
        needed = set().union(*(drop.needed_by for drop in self._drops))
        kept = (inode for inode in self.inodes.values() if inode.number in needed)
        return [(parent.number, name) for inode in kept for parent, name in inode.names()]

    def sweep(self) -> None:
        """Remove the layers that nobody needs; after each rollback, and whenever an inode has gone."""
        done = [drop for drop in self._drops if not drop.needed_by]
        if done:
            self._drops = [drop for drop in self._drops if drop.needed_by]
        for drop in done:
            drop.remove()

    def _need_no_more(self, number: int) -> None:
        needing = [drop for drop in self._drops if number in drop.needed_by]
        for drop in needing:
            drop.needed_by.discard(number)
        if needing:
            self.sweep()

    # -- the kernel uses one again

    def revive(self, state: State, number: int) -> Inode | None:
        former = self.inodes.get(number)
        if former is None:
            return None
        for parent, name in chain(former.names(), _place_below(state, former)):
            found = _follow(state, parent, name)
            if found is not None and found.number == number:
                return found
        return state.inodes.get(number) or self._without_name(state, former)

    def hand_over(self, inode: Inode) -> None:
        number = inode.number
        former = self.inodes.get(number)
        if former is None:
            return
        self._drop(number)
        if former.kind == inode.kind:
            _take_over(inode, former)

    def _without_name(self, state: State, former: Inode) -> Inode:
        """The inode of a file that is gone from the tree."""
        number, place = former.number, self._place(former)
        self.inodes.discard(number)
        self._layer_of.pop(number, None)
        gone: Inode
        if isinstance(former, Directory):
            gone = directory = Directory(number, None, b"")
            directory.lowers = (place,)
            directory.above, directory.below = {}, {}
        else:
            gone = Inode(number, former.kind, None, b"")
            gone.lower = place
            gone.lost_links = NO_NAMES
        _take_over(gone, former)
        gone.protection = former.protection
        state.inodes.add(gone)
        return gone

    def _place(self, former: Inode) -> Location:
        """Where the file was before the rollback."""
        layer = self._layer_of.get(former.number)
        if layer is not None and former.parent is not None:
            return Location(layer, path_of(former.parent, former.name))
        place = former.lowers[0] if isinstance(former, Directory) else former.lower
        assert place is not None
        return place

    # -- the kernel forgets

    def forget(self, number: int, count: int) -> None:
        """Give back lookups of an inode that was not used since."""
        former = self.inodes.get(number)
        if former is not None:
            former.nlookup = max(former.nlookup - count, 0)
            self._drop_if_unused(former)

    def release(self, number: int) -> None:
        """Give back an open of such an inode."""
        former = self.inodes.get(number)
        if former is not None:
            former.opens = max(former.opens - 1, 0)
            self._drop_if_unused(former)

    def note_gone(self, number: int) -> None:
        if self._drops and self.inodes.get(number) is None:
            self._need_no_more(number)

    def _drop_if_unused(self, former: Inode) -> None:
        if not former.nlookup and not former.opens:
            self._drop(former.number)

    def _drop(self, number: int) -> None:
        self.inodes.discard(number)
        self._layer_of.pop(number, None)
        self._need_no_more(number)


def _is_in(inode: Inode, layers: Sequence[int]) -> bool:
    """Whether a file that is not in the upper shows anything of these layers."""
    if isinstance(inode, Directory):
        return any(location.layer in layers for location in inode.lowers)
    return inode.lower is not None and inode.lower_layer in layers


def _names_in(directory: Directory) -> list[tuple[int, bytes]]:
    """The names that the upper had in a directory, deletions included, as far as they are known: others were not
    asked for."""
    return [(directory.number, name) for name in directory.above or ()]


def _names_of(inodes: Iterable[Inode], is_deep: bool) -> Iterator[tuple[int, bytes]]:
    """The names of inodes and those in directories; of one in the upper the name is among those that this had in its
    directory, so that it is said only where there are others."""
    for inode in inodes:
        if is_deep:
            yield from ((parent.number, name) for parent, name in inode.names())
        if isinstance(inode, Directory):
            yield from _names_in(inode)


def _names_shown_again(state: State) -> Iterator[tuple[int, bytes]]:
    """The names in the root of which one may have been deleted in a layer that is dropped: to be asked for once it is.
    The kernel knows such a name for absent. Other directories of these layers are told of by their own name."""
    with suppress(OSError):  # it shows those as absent until it lists the directory
        yield from [(ROOT, name) for name in lookup.names(state, state.root)]


def _keep_only(state: State, unnamed: Iterable[Inode]) -> None:
    state.inodes, state.by_real = InodeTable(), {}
    state.inodes.add(state.root)
    for inode in unnamed:
        state.inodes.add(inode)
        inode.shared_as = None  # names of the file on disk are another file's now


def _take_over(inode: Inode, former: Inode) -> None:
    inode.nlookup, inode.opens = former.nlookup, former.opens
    if isinstance(inode, Directory) and isinstance(former, Directory):
        inode.listing = former.listing  # so that its readers go on where they were


def _place_below(state: State, former: Inode) -> Iterator[tuple[Directory, bytes]]:
    """Where the tree has a file that only got another path because a directory above it was renamed."""
    if former.upper:
        return
    location = former.lowers[0] if isinstance(former, Directory) else former.lower
    assert location is not None
    *above, name = location.path.split(b"/")
    here: Inode | None = state.root
    for part in above:
        here = lookup.child(state, here, part) if isinstance(here, Directory) else None
    if isinstance(here, Directory):
        yield here, name


def _follow(state: State, parent: Directory, name: bytes) -> Inode | None:
    """What the tree has now at the place that a name of before was at."""
    names = [name]
    here: Directory = parent
    while (above := here.parent) is not None and state.inodes.get(here.number) is None:
        names.append(here.name)
        here = above
    found: Inode | None = state.inodes.get(here.number)
    while names and isinstance(found, Directory):
        state.descriptors.begin()
        found = lookup.child(state, found, names.pop())
    return None if names else found
