"""Which image does a person mean? Names and digests against what the store has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Final

from .digest import ALGORITHM, Digest, hex_of
from .errors import InvalidError, NotFoundError
from .layout import Entry
from .reference import Reference

_SHORTEST: Final = 4


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


def is_start_of(text: str, digests: Iterable[Digest]) -> bool:
    """Whether `text`, with or without its algorithm, is one of these digests or the start of one: four digits."""
    start = text.removeprefix(f"{ALGORITHM}:")
    return len(start) >= _SHORTEST and any(hex_of(digest).startswith(start) for digest in digests)


def no_such_image(name: str, entries: Iterable[Entry]) -> NotFoundError:
    """The error; with names that are similar, if there are."""
    names = [entry.reference.familiar for entry in entries if entry.reference]
    same_repository = [known for known in names if known.rpartition(":")[0] == name.partition(":")[0]]
    similar = same_repository[:3] or get_close_matches(name, names, 3)
    if similar:
        return NotFoundError(f"no image {name!r}; there is {', '.join(similar)}")
    return NotFoundError(f"no image {name!r}: load or pull it first; `overlayfs images` lists what there is")
