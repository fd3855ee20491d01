# cython: language_level=3, annotation_typing=False
"""Which entries does a directory show, and in what order?

A name keeps its offset as long as it exists, whatever other names are made and removed meanwhile, so each reader sees a
name that exists all the time exactly once. New names are appended, for readers that start later. All readers of a
directory share one listing, because on root's mounts the kernel sends no OPENDIR and RELEASEDIR.

Compiled; C types are in listing.pxd.
"""

from __future__ import annotations

import errno
import stat
from array import array
from bisect import bisect_right

import xxhash

from ..tree.marks import MalformedMarkError
from . import attributes, lookup
from .inodes import Directory, Listing
from .merge import Kind
from .state import State
from .values import Attributes

_DOT, _DOT_DOT = 1, 2  # the offsets after "." and ".."


class Sink:
    """Where a listing goes: a reply, or a list. `takes` says that whoever gets an entry takes it: its inode's nlookup
    is raised."""

    def __init__(self, takes: bool = False) -> None:
        self.takes = takes

    def put(self, name: bytes, offset: int, found: Attributes, can_be_taken: bool) -> bool:
        """False where there is no room. `offset` resumes after the entry. `can_be_taken` is False for `.`, `..` and a
        name that is listed although looking it up is an error."""
        raise NotImplementedError


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


def fill(state: State, directory: Directory, offset: int, sink: Sink) -> None:
    """Put the entries after `offset` into the sink as long as it has room. Inodes that nobody takes are dropped.

    An entry that cannot be described is an error, but not in the place of others that were already taken: the reader
    gets those, and the error when it asks for the next.
    """
    listing = directory.listing
    if not offset or listing is None:
        listing = _refreshed(state, directory)
    names, offsets = listing.names, listing.offsets
    first = bisect_right(offsets, offset)
    if first == len(names) and offset >= _DOT_DOT:
        return
    own = attributes.attributes_of(state, directory)
    above = directory.parent
    of_parent = own if above is None else attributes.attributes_of(state, above)
    if offset < _DOT and not sink.put(b".", _DOT, own, False):
        return
    if offset < _DOT_DOT and not sink.put(b"..", _DOT_DOT, of_parent, False):
        return
    finder = lookup.Finder(state, directory)
    for index in range(first, len(names)):
        try:
            if not _put(state, directory, finder, names[index], offsets[index], sink):
                return
        except OSError:
            if index == first and offset >= _DOT_DOT:
                raise
            return


def _put(state: State, directory: Directory, finder: lookup.Finder, name: bytes, offset: int, sink: Sink) -> bool:
    """False where there is no room for the entry; one that is gone needs none."""
    try:
        inode = finder.find(name)
        if inode is None:
            return True
        found = inode.attributes
        if found is None:
            state.descriptors.begin()  # each entry may need another directory
            found = attributes.attributes_of(state, inode)
    except MalformedMarkError:
        return sink.put(name, offset, _unreadable(state, directory, name), False)
    except OSError as error:
        if error.errno == errno.ESTALE:  # the layer changed under the mount: the name is gone
            return True
        raise
    taken = sink.put(name, offset, found, True)
    if taken and sink.takes:
        inode.nlookup += 1
    elif not inode.nlookup:
        state.drop_if_unused(inode)
    return taken


def _unreadable(state: State, directory: Directory, name: bytes) -> Attributes:
    """Never show less than there is: a name whose marks are malformed is listed, and looking it up says EIO."""
    kind = lookup.above(state, directory).get(name)
    is_directory = isinstance(lookup.below(state, directory).get(name), tuple) if kind is None else kind != Kind.FILE
    mode = stat.S_IFDIR if is_directory else stat.S_IFREG
    number = directory.number ^ xxhash.xxh3_64_intdigest(name) & 0x7FFF_FFFF
    return Attributes.pack(ino=number, mode=mode, nlink=0, uid=0, gid=0)
