# cython: language_level=3, annotation_typing=False
"""Which directories are read before they are asked for?

Who walks a tree lists the subdirectories of what it has just listed, in their order. While nothing is asked, their
names and attributes are read in small steps. The inodes of such entries have no lookups yet; of those that nobody
comes for, the oldest are dropped. Compiled; C types are in readahead.pxd.
"""

from __future__ import annotations

from overlayfs._typing import Final

from ..tree.marks import MalformedMarkError
from . import attributes, lookup
from .inodes import Directory
from .lookup import Finder
from .state import State

_WAITING: Final = 512  # directories that are to be read
_AHEAD: Final = 2_048  # entries that were read and not asked for yet
_STEP: Final = 8  # entries; a request that comes meanwhile waits for so many


class ReadAhead:
    """What is read ahead on one mount. For the thread that owns the state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: list[Directory] = []  # the next one comes last
        self._current: Directory | None = None  # of which `_names` are still to be read
        self._names: list[bytes] = []  # the next one comes last
        self._finder = Finder(state, state.root)
        self._read: dict[Directory, int] = {}  # how many entries of each were read, the oldest first
        self._ahead = 0  # the sum of these

    def note_listed(self, directory: Directory) -> None:
        """Somebody was shown all names of a directory: those of its subdirectories are likely to be asked for next."""
        if self._state.revalidates:
            return
        self._count_out(directory)
        if directory is self._current:
            self._current = None
        found = [child for child in directory.children.values() if isinstance(child, Directory) and _is_unread(child)]
        found.reverse()
        self._waiting += found
        del self._waiting[:-_WAITING]

    def step(self) -> bool:
        """Read some entries; False where there is nothing to read."""
        if (self._current is None or not self._is_known(self._current)) and not self._begin():
            return False
        names, finder = self._names, self._finder
        self._state.descriptors.begin()
        try:
            for _ in range(min(_STEP, len(names))):
                self._describe(finder, names.pop())
        except OSError:  # whoever asks for the directory is told
            names.clear()
        if not names:
            self._current = None
        return True

    def _begin(self) -> bool:
        """Read the names of the next directory."""
        state, self._current = self._state, None
        while self._waiting:
            directory = self._waiting.pop()
            if not _is_unread(directory) or not self._is_known(directory):
                continue
            state.descriptors.begin()
            try:
                names = lookup.names(state, directory)
            except OSError:
                continue
            names.reverse()
            self._current, self._names, self._finder = directory, names, Finder(state, directory)
            self._read[directory] = len(names)
            self._ahead += len(names)
            self._make_room()
            return True
        return False

    def _is_known(self, directory: Directory) -> bool:
        return self._state.inodes.get(directory.number) is directory

    def _describe(self, finder: Finder, name: bytes) -> None:
        try:
            inode = finder.find(name)
        except MalformedMarkError:
            return
        if inode is not None and not inode.is_known:
            attributes.attributes_of(self._state, inode)

    def _make_room(self) -> None:
        while self._ahead > _AHEAD and len(self._read) > 1:
            self._drop(next(iter(self._read)))

    def drop_all(self) -> None:
        """Memory is short."""
        self._waiting.clear()
        self._current = None
        for directory in list(self._read):
            self._drop(directory)

    def _count_out(self, directory: Directory) -> None:
        self._ahead -= self._read.pop(directory, 0)

    def _drop(self, directory: Directory) -> None:
        """Nobody came for the entries of a directory."""
        self._count_out(directory)
        directory.below = None
        for inode in list(directory.children.values()):
            self._state.drop_if_unused(inode)


def _is_unread(directory: Directory) -> bool:
    """True for a directory of lower layers that nobody has listed; listing one in the upper would move its access
    time."""
    return directory.listing is None and directory.below is None and not directory.upper
