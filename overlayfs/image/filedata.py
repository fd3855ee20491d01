"""How do a member's bytes get into a file, and what is their hash? Holes stay holes; they count as zeros."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final

import xxhash

from .tarentry import Entry

_ZEROS: Final = memoryview(bytes(1 << 20))
_EMPTY: Final = xxhash.xxh3_128_digest(b"")


def write_data(fd: int, entry: Entry, data: Iterable[memoryview]) -> bytes:
    """Write a file's data into the empty file `fd`; the xxh3-128 of its content, 16 bytes."""
    if not entry.size:
        return _EMPTY
    return _write_dense(fd, entry.size, data) if entry.sparse is None else _write_sparse(fd, entry, data)


def _write_dense(fd: int, size: int, data: Iterable[memoryview]) -> bytes:
    hashed = None
    for piece in data:
        _write(fd, piece)
        if hashed is None:
            if len(piece) == size:
                return xxhash.xxh3_128_digest(piece)
            hashed = xxhash.xxh3_128()
        hashed.update(piece)
    return _EMPTY if hashed is None else hashed.digest()


def _write(fd: int, piece: memoryview) -> None:
    written = os.write(fd, piece)
    while written < len(piece):
        piece = piece[written:]
        written = os.write(fd, piece)


def _write_sparse(fd: int, entry: Entry, data: Iterable[memoryview]) -> bytes:
    os.ftruncate(fd, entry.size)
    hashed, position = xxhash.xxh3_128(), 0
    for offset, piece in _placed(entry.sparse or (), data):
        _hash_hole(hashed, offset - position)
        hashed.update(piece)
        os.lseek(fd, offset, os.SEEK_SET)
        _write(fd, piece)
        position = offset + len(piece)
    _hash_hole(hashed, entry.size - position)
    return hashed.digest()


def _placed(extents: Iterable[tuple[int, int]], data: Iterable[memoryview]) -> Iterator[tuple[int, memoryview]]:
    """The pieces of the data, cut where an extent ends, each with its offset in the file."""
    pieces = iter(data)
    rest = memoryview(b"")
    for offset, length in extents:
        while length:
            rest = rest or next(pieces)
            piece, rest = rest[:length], rest[length:]
            yield offset, piece
            offset += len(piece)
            length -= len(piece)


def _hash_hole(hashed: xxhash.xxh3_128, size: int) -> None:
    while size:
        hashed.update(_ZEROS[:size])
        size -= min(size, len(_ZEROS))
