"""Which entries does a directory show, and in what order?

A name keeps its place as long as it is there, however many read the directory and whatever else comes and goes: what
was there all the time is shown exactly once. What is new comes at the end, for those who start after it was made. A
directory has one listing for all its readers, as the kernel need not say who opens and closes it.
"""

from __future__ import annotations

import errno
import stat
from array import array
from bisect import bisect_right
from collections.abc import Iterator

import xxhash

from overlayfs._typing import NamedTuple

from ..tree.marks import MalformedMarkError
from . import attributes, lookup
from .inodes import Attributes, Directory, Listing
from .merge import Kind
from .state import State

_DOT, _DOT_DOT = 1, 2  # the offsets after "." and ".."


class DirectoryEntry(NamedTuple):
    """One entry; `offset` resumes after it. `can_be_taken` is False for `.`, `..` and a name that is listed although
    looking it up is an error."""

    name: bytes
    offset: int
    attributes: Attributes
    can_be_taken: bool = True


def _refreshed(state: State, directory: Directory) -> Listing:
    """The listing as a reader who starts now must see it."""
    if state.revalidates:
        lookup.forget_changed(state, directory)
    current = lookup.names(state, directory)
    known = directory.listing
    if known is None:
        known = directory.listing = Listing()
        known.names = current
        known.offsets.extend(range(_DOT_DOT + 1, _DOT_DOT + 1 + len(current)))
    elif known.names != current:
        _update(known, current)
    return known


def _update(listing: Listing, current: list[bytes]) -> None:
    """Drop the names that are gone, add the new ones at the end."""
    last = listing.offsets[-1] if listing.offsets else _DOT_DOT
    there, before = set(current), set(listing.names)
    kept = [(name, at) for name, at in zip(listing.names, listing.offsets, strict=True) if name in there]
    new = [name for name in current if name not in before]
    listing.names = [name for name, _ in kept] + new
    listing.offsets = array("Q", [at for _, at in kept])
    listing.offsets.extend(range(last + 1, last + 1 + len(new)))


def entries(state: State, directory: Directory, offset: int, takes: bool = False) -> Iterator[DirectoryEntry]:
    """The entries after `offset`. With `takes`, asking for the next one takes an entry: it is looked up, too. A reader
    who has no room for one stops. Inodes that nobody takes are dropped again."""
    listing = directory.listing if offset and directory.listing else _refreshed(state, directory)
    names, offsets = listing.names, listing.offsets
    first = bisect_right(offsets, offset)
    if first == len(names) and offset >= _DOT_DOT:
        return
    own = attributes.attributes_of(state, directory)
    if offset < _DOT:
        yield DirectoryEntry(b".", _DOT, own, False)
    if offset < _DOT_DOT:
        above = directory.parent
        yield DirectoryEntry(b"..", _DOT_DOT, attributes.attributes_of(state, above) if above else own, False)
    find = lookup.finder(state, directory)
    for index in range(first, len(names)):
        name = names[index]
        try:
            inode = find(name)
            if inode is None:
                continue
            found = inode.attributes
            if found is None:
                state.descriptors.begin()  # each entry may need another directory
                found = attributes.attributes_of(state, inode)
        except MalformedMarkError:
            yield DirectoryEntry(name, offsets[index], _unreadable(state, directory, name), False)
            continue
        except OSError as error:
            if error.errno == errno.ESTALE:  # the layer changed under the mount: the name is gone
                continue
            raise
        try:
            yield DirectoryEntry(name, offsets[index], found)
            inode.nlookup += takes
        finally:
            if not inode.nlookup:
                state.drop_if_unused(inode)


def _unreadable(state: State, directory: Directory, name: bytes) -> Attributes:
    """Never show less than there is: a name whose marks are malformed is listed, and looking it up says EIO."""
    kind = lookup.above(state, directory).get(name)
    is_directory = isinstance(lookup.below(state, directory).get(name), tuple) if kind is None else kind != Kind.FILE
    mode = stat.S_IFDIR if is_directory else stat.S_IFREG
    number = directory.number ^ xxhash.xxh3_64_intdigest(name) & 0x7FFF_FFFF
    return Attributes.pack(ino=number, mode=mode, nlink=0, uid=0, gid=0)
