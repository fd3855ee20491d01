"""How is the blob of a layer decompressed, hashed and parsed at the same time?

Three threads share the work, as decompression and hashing release the GIL. A fixed number of buffers circulates: one
thread decompresses into a buffer, the next hashes it, the consumer parses it and gives it back.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Self

from ..oci.digest import Digest, digest_from
from ..tar.compression import CHUNK, Decompressed

_BUFFERS: Final = 6
_Filled = tuple[bytearray, int]


class HashedChunks:
    """Iterates over the decompressed bytes; each piece is valid until the next is requested. `digest` comes last.

    Errors of the stream are raised by the iteration. Leaving the context stops the threads.
    """

    def __init__(self, stream: Decompressed, advance: Callable[[int], None] = lambda _: None) -> None:
        """`advance` gets the number of compressed bytes as they are consumed; another thread calls it."""
        self._stream, self._advance = stream, advance
        self._hash = hashlib.sha256()
        self._free: SimpleQueue[bytearray | None] = SimpleQueue()
        self._unhashed: SimpleQueue[_Filled | BaseException | None] = SimpleQueue()
        self._ready: SimpleQueue[_Filled | BaseException | None] = SimpleQueue()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._decompress, self._sum)]

    def __enter__(self) -> Self:
        for _ in range(_BUFFERS):
            self._free.put(bytearray(CHUNK))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free.put(None)
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[memoryview]:
        while (filled := self._ready.get()) is not None:
            if isinstance(filled, BaseException):
                raise filled
            buffer, count = filled
            yield memoryview(buffer)[:count]
            self._free.put(buffer)

    def digest(self) -> Digest:
        """The digest of all decompressed bytes; only after the iteration has ended."""
        return digest_from(self._hash)

    def _decompress(self) -> None:
        consumed = 0
        try:
            while (buffer := self._free.get()) is not None:
                count = self._stream.readinto(buffer)
                if not count:
                    break
                self._unhashed.put((buffer, count))
                self._advance(self._stream.consumed - consumed)
                consumed = self._stream.consumed
        except BaseException as error:  # noqa: BLE001 - raised where the bytes are wanted
            self._unhashed.put(error)
        self._unhashed.put(None)

    def _sum(self) -> None:
        while (filled := self._unhashed.get()) is not None:
            if not isinstance(filled, BaseException):
                self._hash.update(memoryview(filled[0])[: filled[1]])
            self._ready.put(filled)
        self._ready.put(None)
