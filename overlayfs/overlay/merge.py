"""Which names does a directory of several layers have, and which layers' answers are visible?

Pure. Neighbour: scanning, which reads one directory of one layer. A name's *candidates* are the layers, top first,
whose file of that name takes part: one layer for anything but a directory, a run of layers for a directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from overlayfs._typing import NamedTuple


class Kind(IntEnum):
    """The kind of entry that a layer has under a name."""

    FILE = 1
    DIRECTORY = 2
    OPAQUE_DIRECTORY = 3  # a directory beside an OCI whiteout of its own name
    WHITEOUT = 4


class Names(NamedTuple):
    """One directory of one layer as read: the kind of every name, and whether it hides all that lies below."""

    kinds: dict[bytes, Kind]
    opaque: bool


# Positions in the parent's stack of layers. An int: a file. A tuple: a directory that all these layers have.
Candidates = int | tuple[int, ...]


def merge(stack: Iterable[Names]) -> dict[bytes, Candidates]:
    """The visible names of a stack of directories, top first, each with its candidates."""
    visible: dict[bytes, Candidates] = {}
    closed: set[bytes] = set()
    for position, names in enumerate(stack):
        for name, kind in names.kinds.items():
            if name in closed:
                continue
            if kind is Kind.WHITEOUT or kind is Kind.FILE:
                closed.add(name)
                if kind is Kind.FILE and name not in visible:
                    visible[name] = position
                continue
            if kind is Kind.OPAQUE_DIRECTORY:
                closed.add(name)
            above = visible.get(name, ())
            assert isinstance(above, tuple)
            visible[name] = (*above, position)
        if names.opaque:
            break
    return visible
