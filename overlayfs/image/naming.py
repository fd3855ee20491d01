"""Which image does a person mean? Names and digests against what the store has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from .errors import InvalidError, NotFoundError
from .layout import Entry
from .reference import Reference


def matching(entries: Iterable[Entry], name: str) -> Iterator[Entry]:
    """Those that have this name, or (`NAME@DIGEST`) this repository and digest; best first."""
    try:
        wanted = Reference.parse(name)
    except InvalidError:
        return
    named = [entry for entry in entries if entry.reference]
    yield from (entry for entry in named if entry.reference == wanted)
    if wanted.digest is not None:
        yield from (entry for entry in named if entry.reference and _is_version(entry, entry.reference, wanted))


def _is_version(entry: Entry, reference: Reference, wanted: Reference) -> bool:
    return reference.name == wanted.name and entry.descriptor.digest == wanted.digest


def no_such_image(name: str, entries: Iterable[Entry]) -> NotFoundError:
    """The error; with names that are similar, if there are."""
    names = [entry.reference.familiar for entry in entries if entry.reference]
    same_repository = [known for known in names if known.rpartition(":")[0] == name.partition(":")[0]]
    similar = same_repository[:3] or get_close_matches(name, names, 3)
    if similar:
        return NotFoundError(f"no image {name!r}; there is {', '.join(similar)}")
    return NotFoundError(f"no image {name!r}: load or pull it first; `overlayfs images` lists what there is")
