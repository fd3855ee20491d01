"""How is the data of a file copied when much of it may be holes? Holes and blocks of zeros take no disk space.

Holes are read as zeros and blocks of zeros are written as holes. A layer that spells out a sparse file in full, as most
tools write it, therefore takes no more disk space than the original file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import xxhash

from ...overlay.changes import next_data, next_hole
from .reader import Entry
from .tally import Room

CHUNK: Final = 1 << 20
_BLOCK: Final = 4096  # compared as a whole: the block size of most file systems
_SMALLEST_HOLE: Final = 512  # where a piece ends within a block
_ZEROS: Final = bytes(CHUNK)
_EMPTY: Final = xxhash.xxh3_128_digest(b"")


class SparseWriter:
    """Appends to the empty file `fd`, writing blocks of zeros as holes. `room` counts disk space before it is taken."""

    def __init__(self, fd: int, room: Room, member: bytes) -> None:
        self._fd, self._room, self._member = fd, room, member
        self._position = 0  # where the next byte belongs
        self._written = 0  # where the file's own offset is

    def write(self, piece: memoryview) -> None:
        if len(piece) < _BLOCK:  # most files
            self._write_data(piece, self._position)
        else:
            for start, end in _data_runs(piece, self._position):
                self._write_data(piece[start:end], self._position + start)
        self._position += len(piece)

    def skip(self, size: int) -> None:
        """Leave a hole."""
        self._position += size

    def finish(self) -> None:
        """Set the size of a file that ends with a hole."""
        if self._written < self._position:
            os.ftruncate(self._fd, self._position)

    def _write_data(self, data: memoryview, position: int) -> None:
        self._room.take(len(data), self._member)
        if position != self._written:
            os.lseek(self._fd, position, os.SEEK_SET)
        self._written = position + len(data)
        while data:
            data = data[os.write(self._fd, data) :]


def _data_runs(piece: memoryview, position: int) -> Iterator[tuple[int, int]]:
    """The parts (start, end) of a piece that are not blocks of zeros; `position` is its offset in the file."""
    start = at = 0
    while at < len(piece):
        end = min(at + _BLOCK - (position + at) % _BLOCK, len(piece))
        if end - at >= _SMALLEST_HOLE and _is_zero(piece[at:end]):
            if start < at:
                yield start, at
            start = end
        at = end
    if start < at:
        yield start, at


def size_on_disk(piece: bytes | memoryview, position: int) -> int:
    """The most bytes that a `SparseWriter` writes for a piece at offset `position` of a file."""
    piece = memoryview(piece)
    return len(piece) if len(piece) < _BLOCK else sum(end - start for start, end in _data_runs(piece, position))


def _is_zero(block: memoryview) -> bool:
    return _ZEROS.startswith(block)  # compares by memcmp, without a copy


def write_data(fd: int, entry: Entry, data: Iterable[memoryview], room: Room) -> bytes:
    """Write a file's data into the empty file `fd`; the xxh3-128 of its content, 16 bytes. LimitError from `room`."""
    if not entry.size:
        return _EMPTY
    if entry.sparse is None:
        return _write_dense(SparseWriter(fd, room, entry.path), entry.size, data)
    return _write_sparse(fd, entry, data, room)


def measure_data(entry: Entry, data: Iterable[memoryview], room: Room) -> None:
    """Count in `room` the bytes that `write_data` would write."""
    for offset, piece in _placed(entry.sparse or ((0, entry.size),), data):
        room.take(size_on_disk(piece, offset), entry.path)


def _write_dense(writer: SparseWriter, size: int, data: Iterable[memoryview]) -> bytes:
    hashed = None
    for piece in data:
        writer.write(piece)
        if len(piece) == size:
            writer.finish()
            return xxhash.xxh3_128_digest(piece)
        if hashed is None:
            hashed = xxhash.xxh3_128()
        hashed.update(piece)
    writer.finish()
    return _EMPTY if hashed is None else hashed.digest()


def _write_sparse(fd: int, entry: Entry, data: Iterable[memoryview], room: Room) -> bytes:
    hashed = xxhash.xxh3_128()
    write_hashed(fd, entry, data, room, hashed.update)
    return hashed.digest()


def write_hashed(
    fd: int, entry: Entry, data: Iterable[memoryview], room: Room, update: Callable[[memoryview], None]
) -> None:
    """As `write_data`, with the hash of the caller: `update` gets all of the content."""
    writer, position = SparseWriter(fd, room, entry.path), 0
    for offset, piece in _placed(((0, entry.size),) if entry.sparse is None else entry.sparse, data):
        _hash_hole(update, offset - position)
        update(piece)
        writer.skip(offset - position)
        writer.write(piece)
        position = offset + len(piece)
    _hash_hole(update, entry.size - position)
    writer.skip(entry.size - position)
    writer.finish()


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


def _hash_hole(update: Callable[[memoryview], None], size: int) -> None:
    while size:
        piece = memoryview(_ZEROS)[:size]
        update(piece)
        size -= len(piece)


class Piece(NamedTuple):
    """Consecutive bytes of a file; the bytes of a hole are not read from the disk."""

    data: bytes | memoryview
    is_hole: bool = False


def pieces(fd: int, st: os.stat_result) -> Iterator[Piece]:
    """The bytes of a file up to the size in `st`. An empty piece means that the file has become shorter."""
    size, position = st.st_size, 0
    has_holes = st.st_blocks * 512 < size
    while position < size:
        most = min(CHUNK, size - position)
        if has_holes and (hole := min(next_data(fd, position, size) - position, most)):
            piece = Piece(memoryview(_ZEROS)[:hole], is_hole=True)
        else:
            end = next_hole(fd, position, size) if has_holes else size
            piece = Piece(os.pread(fd, min(end - position, most), position))
        yield piece
        if not piece.data:
            return
        position += len(piece.data)
