"""The database files of bolt (go.etcd.io/bbolt), read only: nested buckets of keys and values in a B+ tree of pages.

The file is read whole, without the lock that a running writer holds all the time. A transaction writes to free pages
only, and its meta page last; the pages that it frees are used again by the next transaction at the earliest. So a copy
is consistent if the newest meta page is the same before and after it is read.

Byte order and layout are those of the machine that wrote the file (internal/common/page.go, meta.go and bucket.go).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from ..oci.errors import ImageError, InvalidError, LimitError, NotFoundError

MAX_DATABASE: Final = 256 << 20
"""Bytes; the metadata of a containerd with 10,000 snapshots take some 20 MB."""

_PAGE: Final = Struct("=QHHI")  # page number, kind, count of elements, count of pages that continue it
_META: Final = Struct("=IIIIQQQQQQ")  # see _Meta
_BRANCH: Final = Struct("=IIQ")  # position and size of the key, page number
_LEAF: Final = Struct("=IIII")  # kind, position of the key, size of the key, size of the value that follows it
_BUCKET: Final = Struct("=QQ")  # root page, or 0 if the page follows; sequence
_BRANCH_PAGE, _LEAF_PAGE, _META_PAGE = 1, 2, 4
_IS_BUCKET: Final = 1
_MAGIC, _VERSION = 0xED0CDAED, 2
_PAGE_SIZES: Final = tuple(1 << bits for bits in range(10, 17))
_TRIES: Final = 50
_READINGS: Final = 16
_DEEPEST: Final = 64
_FNV_BASIS, _FNV_PRIME, _64_BITS = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


class _Meta(NamedTuple):
    """A meta page: the root of the newest state, or of the one before."""

    magic: int
    version: int
    page_size: int
    flags: int
    root: int
    sequence: int
    free_pages: int
    pages: int
    transaction: int
    checksum: int


class _Database:
    """A consistent copy of the file.

    `_left` bounds the bytes that are read of it: pages and entries that refer to one another, or overlap, would make
    that endless. A sound database has each byte in one place, and is read a few times at most.
    """

    def __init__(self, path: Path, data: bytearray, meta: _Meta) -> None:
        self.path, self._data, self._meta = path, memoryview(data), meta
        self._left = _READINGS * len(data)

    def damaged(self, what: str) -> InvalidError:
        return InvalidError(f"{self.path} is damaged: {what}")

    def page(self, number: int) -> memoryview:
        """A page and those that continue it."""
        size = self._meta.page_size
        start = number * size
        if not 1 < number < self._meta.pages or start + size > len(self._data):
            raise self.damaged(f"it has no page {number}")
        written, _, _, more = _PAGE.unpack_from(self._data, start)
        end = start + (1 + more) * size
        if written != number or end > len(self._data):
            raise self.damaged(f"page {number} is not in its place, or cut off")
        return self._data[start:end]

    def elements(self, page: memoryview, kind: int, element: Struct) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The offset and the fields of each element of a page."""
        _, found, count, _ = _PAGE.unpack_from(page)
        self._spend(_PAGE.size + count * element.size)
        if found != kind or _PAGE.size + count * element.size > len(page):
            raise self.damaged("a page is of the wrong kind, or too short")
        for offset in range(_PAGE.size, _PAGE.size + count * element.size, element.size):
            yield offset, element.unpack_from(page, offset)

    def children(self, page: memoryview) -> Iterator[memoryview]:
        """The pages to which a branch page refers."""
        return (self.page(number) for _, (_, _, number) in self.elements(page, _BRANCH_PAGE, _BRANCH))

    def cut(self, page: memoryview, start: int, size: int) -> bytes:
        if start + size > len(page):
            raise self.damaged("an entry leads out of its page")
        self._spend(size)
        return bytes(page[start : start + size])

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise self.damaged("its pages refer to one another in a circle")


class Bucket:
    """Keys with values or further buckets, as they were when the database was opened."""

    def __init__(self, database: _Database, top: int | bytes) -> None:
        self._database, self._top = database, top

    def read(self) -> dict[bytes, bytes | Bucket]:
        """All of its entries. Raises InvalidError if the database is damaged."""
        entries: dict[bytes, bytes | Bucket] = {}
        for page in self._leaf_pages():
            for offset, (kind, position, size, value_size) in self._database.elements(page, _LEAF_PAGE, _LEAF):
                start = offset + position
                key = self._database.cut(page, start, size)
                value = self._database.cut(page, start + size, value_size)
                entries[key] = self._inner(value) if kind & _IS_BUCKET else value
        return entries

    def values(self) -> dict[bytes, bytes]:
        """Its entries that are values."""
        return {key: value for key, value in self.read().items() if isinstance(value, bytes)}

    def buckets(self) -> dict[bytes, Bucket]:
        """Its entries that are buckets."""
        return {key: value for key, value in self.read().items() if isinstance(value, Bucket)}

    def find(self, *keys: bytes) -> Bucket | None:
        """The bucket on this way, None where there is none."""
        bucket: Bucket | None = self
        for key in keys:
            bucket = bucket and bucket.buckets().get(key)
        return bucket

    def _inner(self, value: bytes) -> Bucket:
        if len(value) < _BUCKET.size:
            raise self._database.damaged("the record of a bucket is too short")
        root, _ = _BUCKET.unpack_from(value)
        return Bucket(self._database, root or value[_BUCKET.size :])

    def _leaf_pages(self) -> Iterator[memoryview]:
        database = self._database
        top = memoryview(self._top) if isinstance(self._top, bytes) else database.page(self._top)
        ways = [iter((top,))]  # of each level the pages still to come
        while ways:
            page = next(ways[-1], None)
            if page is None:
                ways.pop()
            elif len(page) < _PAGE.size:
                raise database.damaged("a bucket has no page")
            elif _PAGE.unpack_from(page)[1] != _BRANCH_PAGE:
                yield page
            elif len(ways) > _DEEPEST:
                raise database.damaged("its pages lie too deep")
            else:
                ways.append(database.children(page))


def open_database(path: Path) -> Bucket:
    """The bucket of all buckets. NotFoundError where there is no file, InvalidError where it is not one of bolt."""
    try:
        with open(path, "rb", buffering=0) as file:
            return Bucket(*_consistent(path, file.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path}: there is no such database") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None


def _consistent(path: Path, fd: int) -> tuple[_Database, int]:
    for _ in range(_TRIES):
        meta = _newest(path, fd)
        data = _whole(path, fd)
        if _newest(path, fd) == meta:
            return _Database(path, data, meta), meta.root
    raise ImageError(f"{path} is changed faster than it can be read: try again")


def _whole(path: Path, fd: int) -> bytearray:
    size = os.fstat(fd).st_size
    if size > MAX_DATABASE:
        raise LimitError(f"{path} is larger than {MAX_DATABASE >> 20} MiB")
    data = bytearray()
    while len(data) < size and (read := os.pread(fd, size - len(data), len(data))):
        data += read
    return data


def _newest(path: Path, fd: int) -> _Meta:
    """The valid meta page of the latest transaction. The second one begins where the first page ends."""
    first = _meta_at(fd, 0)
    sizes = (first.page_size,) if first else _PAGE_SIZES
    seconds = [meta for size in sizes if (meta := _meta_at(fd, size)) and meta.page_size == size]
    valid = [meta for meta in (first, *seconds) if meta]
    if not valid:
        raise InvalidError(f"{path} is damaged, or not a database of bolt: it has no valid meta page")
    return max(valid, key=lambda meta: meta.transaction)


def _meta_at(fd: int, offset: int) -> _Meta | None:
    data = os.pread(fd, _PAGE.size + _META.size, offset)
    if len(data) < _PAGE.size + _META.size or _PAGE.unpack_from(data)[1] != _META_PAGE:
        return None
    meta = _Meta._make(_META.unpack_from(data, _PAGE.size))
    is_valid = (
        (meta.magic, meta.version) == (_MAGIC, _VERSION)
        and meta.page_size in _PAGE_SIZES
        and meta.checksum == _fnv_1a(data[_PAGE.size : -8])
    )
    return meta if is_valid else None


def _fnv_1a(data: bytes) -> int:
    """The 64-bit Fowler/Noll/Vo hash of Go's hash/fnv.New64a."""
    found = _FNV_BASIS
    for byte in data:
        found = ((found ^ byte) * _FNV_PRIME) & _64_BITS
    return found
