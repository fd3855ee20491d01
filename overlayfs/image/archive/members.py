"""What does an image archive or layout directory hold? Its members by name, whatever the format.

A tar is read once, from start to end, as it may come through a pipe: each member is staged in the store and hashed on
the way, and becomes a blob only if an image needs it. Names in archives are hostile: none is ever used as a path.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Final, Protocol

from overlayfs.tree.syscalls import open_beneath

from ..oci.digest import ALGORITHM, Digest, digest_from, hex_of
from ..oci.documents import MAX_DOCUMENT, Descriptor
from ..oci.errors import DigestError, InvalidError, LimitError, NotFoundError
from ..oci.limits import DEFAULT_LIMITS, Limits
from ..oci.progress import Task
from ..store.blobs import check_content
from ..store.store import Store
from ..tar.compression import Source, open_decompressed
from ..tar.file_data import write_hashed
from ..tar.reader import Entry, TarReader
from ..tar.tally import Room

_CHUNK: Final = 1 << 20
_BLOBS: Final = f"blobs/{ALGORITHM}/"
_DEEPEST: Final = 3
"""Components of a name: `blobs/sha256/HEX`. Members in deeper directories belong to no image and are skipped."""
_LARGEST_SPARSE: Final = DEFAULT_LIMITS.disk_size
"""Bytes. Holes take no space in an archive, but hashing them takes time."""


class Members(Protocol):
    """The files of an image archive."""

    what: str

    def has(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """The bytes of a document. Raises NotFoundError, LimitError."""

    def magic(self, name: str) -> bytes:
        """The first six bytes, or fewer if the member is shorter."""

    def describe(self, name: str, media_type: str) -> Descriptor:
        """The digest and size of a member."""

    def keep(self, name: str, expected: Descriptor) -> None:
        """Put a member into the store, if it is not there yet. Raises DigestError if it is not the expected blob."""


def blob_name(digest: Digest) -> str:
    return f"{_BLOBS}{hex_of(digest)}"


@dataclass(frozen=True, slots=True)
class _Staged:
    """The bytes of a member: in a staged file, or in a blob that the store has already."""

    path: Path
    digest: Digest
    size: int


class ArchiveMembers:
    """The members of a tar, staged in a directory of the store's."""

    def __init__(self, store: Store, directory: Path, what: str) -> None:
        self.what = what
        self._store = store
        self._directory = directory
        self._staged: dict[str, _Staged] = {}
        self._links: dict[str, str] = {}
        self._numbers = count()

    def read_all(self, source: Source, limits: Limits) -> None:
        """Read the archive to its end. Raises InvalidError for members that do not belong in an image archive."""
        reader = TarReader.of(open_decompressed(source, limits, self.what), limits, self.what)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            room = Room(limits, self.what, directory)
            for entry in reader:
                name = entry.path.decode("utf-8", "backslashreplace")
                if entry.kind != "d":
                    self._take(name, entry, reader, room)
        except LimitError as error:
            if self.has("index.json") or self.has("manifest.json"):
                raise
            raise LimitError(f"{error}; a root filesystem is taken in by import") from None
        finally:
            os.close(directory)
        reader.drain()

    def _take(self, name: str, entry: Entry, reader: TarReader, room: Room) -> None:
        """Stage one member; of several with one name the last counts, as when docker and tar extract them."""
        if name.count("/") >= _DEEPEST:
            return
        if entry.kind not in "flh":
            raise InvalidError(
                f"{self.what} is no image archive: it holds {name!r}; a root filesystem is taken in by import"
            )
        self._drop(name)
        if entry.kind == "f":
            self._staged[name] = self._stage(name, entry, reader, room)
        else:
            target = entry.target.decode("utf-8", "backslashreplace")
            base = posixpath.dirname(name) if entry.kind == "l" else ""
            self._links[name] = posixpath.normpath(posixpath.join(base, target))

    def _drop(self, name: str) -> None:
        self._links.pop(name, None)
        replaced = self._staged.pop(name, None)
        if replaced is not None and self._is_staged(replaced):
            replaced.path.unlink()

    def _is_staged(self, member: _Staged) -> bool:
        """Whether the bytes are in a staged file, not in a blob of the store."""
        return member.path.parent == self._directory

    def _stage(self, name: str, entry: Entry, reader: TarReader, room: Room) -> _Staged:
        digest = _digest_named(name)
        if digest is not None and self._has(digest, entry.size):
            return _Staged(self._store.blob_path(digest), digest, entry.size)
        if entry.sparse is not None and entry.size > _LARGEST_SPARSE:
            raise LimitError(f"{self.what}: {name!r} has holes and {entry.size} bytes: at most {_LARGEST_SPARSE}")
        path = self._directory / str(next(self._numbers))
        hashed = hashlib.sha256()
        with open(path, "xb", buffering=0) as file:
            write_hashed(file.fileno(), entry, reader.read_data(), room, hashed.update)
        staged = _Staged(path, digest_from(hashed), entry.size)
        if digest is not None and staged.digest != digest:
            raise DigestError(f"{self.what}: {name} has other content: its digest is {staged.digest}")
        return staged

    def _has(self, digest: Digest, size: int) -> bool:
        try:
            return self._store.blob_path(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def _find(self, name: str) -> _Staged:
        """The member with this name; links within the archive are followed. Raises NotFoundError."""
        for _ in range(8):
            if name not in self._links:
                break
            name = self._links[name]
        try:
            return self._staged[name]
        except KeyError:
            raise NotFoundError(f"{self.what}: {name!r} is named in it but not there") from None

    def has(self, name: str) -> bool:
        return name in self._staged or name in self._links

    def read(self, name: str) -> bytes:
        staged = self._find(name)
        _check_is_document(staged.size, name, self.what)
        return staged.path.read_bytes()

    def magic(self, name: str) -> bytes:
        with open(self._find(name).path, "rb") as file:
            return file.read(6)

    def describe(self, name: str, media_type: str) -> Descriptor:
        staged = self._find(name)
        return Descriptor(media_type, staged.digest, staged.size)

    def keep(self, name: str, expected: Descriptor) -> None:
        staged = self._find(name)
        check_content(expected, staged.digest, staged.size)
        if self._is_staged(staged) and staged.path.exists():
            self._store.adopt_blob(staged.path, staged.digest)
            adopted = replace(staged, path=self._store.blob_path(staged.digest))
            self._staged = {known: adopted if found == staged else found for known, found in self._staged.items()}


class DirectoryMembers:
    """The files of a layout directory; symlinks in it are not followed."""

    def __init__(self, store: Store, directory: Path, task: Task) -> None:
        self.what = str(directory)
        self._store = store
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._task = task

    def close(self) -> None:
        os.close(self._root)

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = open_beneath(self._root, name.encode(), flags)
        except FileNotFoundError:
            raise NotFoundError(f"{self.what}: {name!r} is named in it but not there") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidError(f"{self.what}: {name!r} is no regular file")
            yield fd
        finally:
            os.close(fd)

    def has(self, name: str) -> bool:
        try:
            with self._open(name):
                return True
        except NotFoundError:
            return False

    def read(self, name: str) -> bytes:
        with self._open(name) as fd:
            size = os.fstat(fd).st_size
            _check_is_document(size, name, self.what)
            return b"".join(iter(lambda: os.read(fd, _CHUNK), b""))

    def magic(self, name: str) -> bytes:
        with self._open(name) as fd:
            return os.read(fd, 6)

    def describe(self, name: str, media_type: str) -> Descriptor:
        hashed, size = hashlib.sha256(), 0
        with self._open(name) as fd:
            for data in iter(lambda: os.read(fd, _CHUNK), b""):
                hashed.update(data)
                size += len(data)
        return Descriptor(media_type, digest_from(hashed), size)

    def keep(self, name: str, expected: Descriptor) -> None:
        if self._store.has_blob(expected.digest):
            self._task.advance(expected.size)
            return
        with self._open(name) as fd, self._store.new_blob(expected) as blob:
            for data in iter(lambda: os.read(fd, _CHUNK), b""):
                blob.write(data)
                self._task.advance(len(data))
            blob.commit()


def _digest_named(name: str) -> Digest | None:
    """The digest in the name of a member. A malformed one is no error here, but where that name is looked up."""
    text = name.removeprefix(_BLOBS)
    if text != name and len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return Digest(f"{ALGORITHM}:{text}")
    return None


def _check_is_document(size: int, name: str, what: str) -> None:
    if size > MAX_DOCUMENT:
        raise LimitError(f"{what}: {name} has {size} bytes; at most {MAX_DOCUMENT} are allowed")
