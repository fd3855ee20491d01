"""Is a zstd stream complete? Follows the frames and blocks of RFC 8878 (section 3.1) without decoding them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

_SKIPPABLE: Final = 0x184D2A50  # to ...5F
_RLE: Final = 1
_DICTIONARY_ID: Final = (0, 1, 2, 4)
_CONTENT_SIZE: Final = (0, 2, 4, 8)


class FrameWalker:
    """Gets a stream in pieces and knows whether it has reached the end of a frame.

    Malformed data is detected by the decoder; the answer here is meaningless then.
    """

    def __init__(self) -> None:
        self._starts_frame = True
        self._have = b""
        self._walk = self._frames()
        self._left = next(self._walk)  # bytes still awaited; negative if they are skipped

    @property
    def is_between_frames(self) -> bool:
        return self._starts_frame and not self._have

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            step = min(abs(self._left), len(data) - at)
            if self._left > 0:
                self._have += data[at : at + step]
            self._left += -step if self._left > 0 else step
            at += step
            while not self._left:
                have, self._have = self._have, b""
                self._left = self._walk.send(have)

    def _frames(self) -> Generator[int, bytes, None]:
        """Yields the number of bytes it needs next; a negative number of bytes is skipped."""
        while True:
            self._starts_frame = True
            magic = yield 4
            self._starts_frame = False
            if int.from_bytes(magic, "little") & ~0xF == _SKIPPABLE:
                yield -int.from_bytes((yield 4), "little")
            else:
                yield from self._frame()

    def _frame(self) -> Generator[int, bytes, None]:
        (descriptor,) = yield 1
        is_single_segment = bool(descriptor & 0x20)
        content_size = _CONTENT_SIZE[descriptor >> 6] or int(is_single_segment)
        yield -(int(not is_single_segment) + _DICTIONARY_ID[descriptor & 3] + content_size)
        is_last = False
        while not is_last:
            block = int.from_bytes((yield 3), "little")
            is_last = bool(block & 1)
            yield -(1 if block >> 1 & 3 == _RLE else block >> 3)
        if descriptor & 4:
            yield -4  # a checksum
