"""What images does the store have, by which names, and which one does a user mean?

The names are in `index.json` (OCI image specification, image-layout.md).

Each entry is a descriptor of a manifest or index, with its name as an annotation. The file is replaced as a whole,
under `index.lock`: readers see it before or after a change, and no change is lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..oci.digest import ALGORITHM, Digest, hex_of
from ..oci.documents import MAX_DOCUMENT, OCI_INDEX, REF_NAME, Descriptor, Index, dump, parse
from ..oci.errors import InvalidError, LimitError, NotFoundError
from ..oci.reference import Reference
from .locking import locked
from .staging import Staging, sync_directory, write_synced

_SHORTEST: Final = 4
MARKER: Final = b'{"imageLayoutVersion":"1.0.0"}'
EMPTY: Final = Index(2, [], OCI_INDEX)


class Entry(Struct, frozen=True):
    """One line of the index: a manifest or an index of manifests, and its name if it has one."""

    reference: Reference | None
    descriptor: Descriptor


class Layout:
    """`oci-layout` and `index.json` of one directory."""

    def __init__(self, directory: Path, staging: Staging) -> None:
        self._directory = directory
        self._staging = staging

    def create(self) -> None:
        """Make the files that are missing; but no list of images where there are blobs, which `prune` would remove."""
        blobs = self._directory / "blobs" / ALGORITHM
        blobs.mkdir(parents=True, exist_ok=True)
        if not (self._directory / "oci-layout").exists():
            self._write("oci-layout", MARKER)
        if not (self._directory / "index.json").exists():
            with locked(self._directory / "index.lock"):
                if not (self._directory / "index.json").exists() and not os.listdir(blobs):
                    self._write("index.json", dump(EMPTY))

    def entries(self) -> list[Entry]:
        return [Entry(_name_of(descriptor), descriptor) for descriptor in self._read().manifests]

    def edit(self, change: Callable[[list[Entry]], list[Entry]]) -> None:
        """Replace the entries by what `change` makes of them; no other process changes them meanwhile.

        Raises the errors of `change`, and LimitError for too many entries.
        """
        with locked(self._directory / "index.lock"):
            before = self.entries()
            after = change(before)
            if after != before:
                self._write("index.json", self._with(after))

    def _with(self, entries: list[Entry]) -> bytes:
        """`index.json` with these entries. Raises LimitError if it would be too large to read."""
        data = dump(replace(self._read(), manifests=[_named(entry) for entry in entries]))
        if len(data) > MAX_DOCUMENT:
            raise LimitError(f"{self._directory} has too many images: prune it, or name another store by --store")
        return data

    def _read(self) -> Index:
        path = self._directory / "index.json"
        try:
            with open(path, "rb") as file:
                return parse(file.read(MAX_DOCUMENT + 1), Index, str(path))
        except FileNotFoundError:
            why = f"{path} is missing"
        except InvalidError as error:
            why = str(error)
        blobs = self._directory / "blobs"
        raise InvalidError(f"{why}: put a copy of it back, or remove it and {blobs}, and load or pull the images again")

    def _write(self, name: str, data: bytes) -> None:
        staged = self._staging.new_name()
        try:
            write_synced(staged, data)
            staged.rename(self._directory / name)
        finally:
            staged.unlink(missing_ok=True)
        sync_directory(self._directory)


def _name_of(descriptor: Descriptor) -> Reference | None:
    """The name of the entry; None also for an annotation of another program that is not a name."""
    try:
        return Reference.parse(descriptor.annotations[REF_NAME])
    except (KeyError, InvalidError):
        return None


def _named(entry: Entry) -> Descriptor:
    """The descriptor with the entry's name as its annotation; other annotations stay."""
    if entry.reference == _name_of(entry.descriptor):
        return entry.descriptor
    others = {key: value for key, value in entry.descriptor.annotations.items() if key != REF_NAME}
    named = {REF_NAME: str(entry.reference)} if entry.reference else {}
    return replace(entry.descriptor, annotations=others | named)


def bare(descriptor: Descriptor) -> Descriptor:
    """The descriptor without annotations and platform, which members of an index bring along."""
    return replace(descriptor, annotations={}, platform=None)


def matching(entries: Iterable[Entry], name: str) -> Iterator[Entry]:
    """The entries with this name, or (`NAME@DIGEST`) with this repository and digest; the best match first."""
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
    """Whether `text`, with or without `sha256:`, is the start of one of the digests: at least four digits."""
    start = text.removeprefix(f"{ALGORITHM}:")
    return len(start) >= _SHORTEST and any(hex_of(digest).startswith(start) for digest in digests)


def no_such_image(name: str, entries: Iterable[Entry]) -> NotFoundError:
    """The error for an unknown name; it suggests similar names."""
    names = [entry.reference.familiar for entry in entries if entry.reference]
    same_repository = [known for known in names if known.rpartition(":")[0] == name.partition(":")[0]]
    similar = same_repository[:3] or get_close_matches(name, names, 3)
    if similar:
        return NotFoundError(f"no image {name!r}; there is {', '.join(similar)}")
    return NotFoundError(f"no image {name!r}: load or pull it first; `overlayfs images` lists what there is")
