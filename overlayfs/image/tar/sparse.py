"""Where in a sparse file does its data belong? The maps of GNU tar: the old format, and pax formats 0.0, 0.1 and 1.0.

`tar` manual, "Storing Sparse Files". Raises ValueError with the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from . import pax

Extents = tuple[tuple[int, int], ...]

_BLOCK: Final = 512
_OLD_MAP: Final = 386  # in the header: four extents of two 12-byte numbers, "more follows", the real size
_OLD_IN_HEADER: Final = 4
_OLD_IN_BLOCK: Final = 21
_OLD_EXTENT: Final = 24


def old_format(header: bytes, more: Callable[[], bytes], number: Callable[[bytes], int], limit: int) -> Iterator[int]:
    """The numbers of an old map, offsets and lengths in turn, then the file's size; `more` reads a block after the
    header."""
    area, count = header[_OLD_MAP:], _OLD_IN_HEADER
    size = number(header[483:495])
    yielded = 0
    while True:
        for at in range(0, count * _OLD_EXTENT, _OLD_EXTENT):
            if area[at] == 0:
                break
            yield number(area[at : at + 12])
            yield number(area[at + 12 : at + 24])
            yielded += 1
        if not area[count * _OLD_EXTENT] or yielded > limit:
            break
        area, count = more(), _OLD_IN_BLOCK
        if len(area) != _BLOCK:
            raise ValueError("the sparse map is cut short")
    yield size


def pax_map(records: pax.Records) -> list[int]:
    """Offsets and lengths in turn, of formats 0.0 and 0.1."""
    if b"GNU.sparse.map" in records.values:
        return [pax.number(text) for text in records.values[b"GNU.sparse.map"].split(b",")]
    return [pax.number(text) for text in records.extents]


def leading_map(take: Callable[[], bytes], limit: int) -> list[int]:
    """Format 1.0: the map stands before the data, as decimal lines, in whole blocks that `take` reads."""
    lines: list[bytes] = []
    rest = b""
    wanted = 1
    while len(lines) < wanted:
        block = take()
        if len(block) != _BLOCK:
            raise ValueError("the sparse map is cut short")
        *whole, rest = (rest + block).split(b"\n")
        if len(rest) > 20 and len(lines) + len(whole) < wanted:
            raise ValueError("malformed sparse map")
        lines += whole
        if lines:
            wanted = 1 + 2 * pax.number(lines[0])
            if wanted > 1 + 2 * limit:
                raise ValueError("the sparse map is too long")
    return [pax.number(line) for line in lines[1:wanted]]


def checked(numbers: Sequence[int], size: int, stored: int, limit: int) -> Extents:
    """The extents that hold data, checked: in order, disjoint, within the file, and matching the stored size."""
    if len(numbers) % 2 or len(numbers) > 2 * limit:
        raise ValueError("the sparse map is too long" if len(numbers) > 2 * limit else "malformed sparse map")
    extents = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for offset, length in extents:
        if offset < end or offset + length > size:
            raise ValueError("the extents of its sparse map overlap or lie outside of the file")
        end = offset + length
    if sum(length for _, length in extents) != stored:
        raise ValueError("its sparse map speaks of another amount of data")
    return tuple((offset, length) for offset, length in extents if length)
