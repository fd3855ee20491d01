"""How is a layer's blob decompressed, hashed and taken apart at once, by three threads?

Decompression and hashing release the GIL, so they run beside the thread that writes files. A fixed number of buffers
goes round: decompressed into, hashed, handed to the consumer, and back.
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
    """Iterate for the decompressed bytes, in pieces that are valid until the next is asked for; then ask `digest`.

    Errors of the stream are raised by the iteration. Leaving the context stops the threads.
    """

    def __init__(self, stream: Decompressed, advance: Callable[[int], None] = lambda _: None) -> None:
        """`advance` is told of compressed bytes as they are consumed, from another thread."""
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
        """Of all that was decompressed; only after the iteration has ended."""
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
