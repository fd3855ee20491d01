"""How is a stream of chunks of any size read in pieces as a parser needs them? Only small pieces are copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class ByteStream:
    """Not thread-safe. Each chunk is read once, and not used after the next chunk was requested."""

    def __init__(self, chunks: Iterable[bytes | memoryview]) -> None:
        self._chunks: Iterator[bytes | memoryview] = iter(chunks)
        self._view = memoryview(b"")
        self._at = 0

    def take(self, size: int) -> bytes:
        """`size` bytes, or what is left at the end."""
        end = self._at + size
        if end <= len(self._view):
            data = bytes(self._view[self._at : end])
            self._at = end
            return data
        parts = []
        while size and (piece := self.piece(size)):
            parts.append(bytes(piece))
            size -= len(piece)
        return b"".join(parts)

    def piece(self, size: int) -> memoryview:
        """At most `size` bytes, at least one; none at the end."""
        if self._at == len(self._view):
            self._view, self._at = memoryview(next(self._chunks, b"")), 0
        piece = self._view[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def skip(self, size: int) -> bool:
        """Pass over `size` bytes; False where the stream ends before."""
        while size:
            passed = len(self.piece(size))
            if not passed:
                return False
            size -= passed
        return True

    def drain(self) -> None:
        while self.piece(len(self._view) + 1):
            pass
