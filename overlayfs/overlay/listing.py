"""Which entries does an open directory show, and in what order?

An open directory keeps the names it saw first in their places: offsets stay good while entries come and go, what
was there all the time is shown exactly once, and rewinding adds what is new at the end.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import NamedTuple

from ..tree.marks import MalformedMarkError
from . import attributes, lookup
from .inodes import Attributes, Directory
from .merge import Kind
from .state import State

_FIRST_NAME = 2  # after "." and ".."


class DirectoryEntry(NamedTuple):
    """One entry; `offset` resumes after it. `attributes.nlink` 0: it is listed, but looking it up is an error."""

    name: bytes
    offset: int
    attributes: Attributes


class Listing:
    """One open directory."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.names: list[bytes] | None = None

    def _refresh(self, state: State) -> list[bytes]:
        if state.revalidates:
            self.directory.below = None
        current = lookup.names(state, self.directory)
        if self.names is None:
            self.names = current
        elif self.names != current:
            known = set(self.names)
            self.names += [name for name in current if name not in known]
        return self.names

    def entries(self, state: State, offset: int) -> Iterator[DirectoryEntry]:
        """The entries after `offset`; nlookup is not raised, and inodes that nobody takes are dropped again."""
        names = self._refresh(state) if offset == 0 or self.names is None else self.names
        own = attributes.attributes_of(state, self.directory)
        if offset < 1:
            yield DirectoryEntry(b".", 1, own)
        if offset < _FIRST_NAME:
            above = self.directory.parent
            yield DirectoryEntry(b"..", 2, attributes.attributes_of(state, above) if above else own)
        for index in range(max(offset - _FIRST_NAME, 0), len(names)):
            found = self._look(state, names[index])
            if found is not None:
                yield DirectoryEntry(names[index], index + _FIRST_NAME + 1, found)
                inode = self.directory.children.get(names[index])
                if inode is not None:
                    state.drop_if_unused(inode)

    def _look(self, state: State, name: bytes) -> Attributes | None:
        state.descriptors.begin()
        try:
            inode = lookup.child(state, self.directory, name)
            return None if inode is None else attributes.attributes_of(state, inode)
        except MalformedMarkError:
            return _unreadable(state, self.directory, name)
        except OSError as error:
            if error.errno == errno.ESTALE:  # the layer changed under the mount: the name is gone
                return None
            raise


def _unreadable(state: State, directory: Directory, name: bytes) -> Attributes:
    """Never show less than there is: a name whose marks are malformed is listed, and looking it up says EIO."""
    kind = lookup.above(state, directory).get(name)
    is_directory = isinstance(lookup.below(state, directory).get(name), tuple) if kind is None else kind != Kind.FILE
    mode = stat.S_IFDIR if is_directory else stat.S_IFREG
    return Attributes(directory.number ^ hash(name) & 0x7FFF_FFFF, mode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
