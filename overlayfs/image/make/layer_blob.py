"""How does the tar of a layer become a blob while it is written?

Digest, diffID and compression are computed in one pass. The writing thread hashes the tar; a second thread compresses
it, hashes the result and stages it. Both release the GIL, and neither holds more than a few pieces.
"""

from __future__ import annotations

import hashlib
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Final, NamedTuple, Self

from ..oci.digest import Digest, digest_from
from ..oci.documents import OCI_LAYER, Descriptor
from ..oci.progress import NO_PROGRESS, Task
from ..store.blobs import Blobs, BlobWriter
from ..tar.compression import open_compressed

_PIECE: Final = 1 << 20
_PIECES_WAITING: Final = 4
_COMPRESSED: Final = {None: OCI_LAYER, "gzip": f"{OCI_LAYER}+gzip", "zstd": f"{OCI_LAYER}+zstd"}

Data = bytes | bytearray | memoryview


class NewLayer(NamedTuple):
    """A layer whose blob is in the store."""

    descriptor: Descriptor
    diff_id: Digest


class LayerSink:
    """Takes one tar; leaving the `with` without `commit` discards it.

    Buffers given to `write` must not change afterwards. Errors of the second thread are raised by a later call.
    """

    def __init__(
        self, blobs: Blobs, compression: str | None = "gzip", level: int | None = None, task: Task | None = None
    ) -> None:
        self._media_type = _COMPRESSED[compression]
        self._blob: BlobWriter = blobs.new_blob()
        self._compressed = open_compressed(self._blob, compression, level)
        self._task = task or NO_PROGRESS.begin("", None)
        self._hash = hashlib.sha256()
        self._parts: list[Data] = []
        self._size = 0
        self._queue: Queue[bytes | None] = Queue(_PIECES_WAITING)
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._pack_all, name="layer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self._join()
        self._blob.discard()

    def write(self, data: Data) -> int:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _PIECE:
            self._hand_over()
        return len(data)

    def commit(self) -> NewLayer:
        """Sync and publish the blob."""
        self._hand_over()
        self._join()
        if self._failure is not None:
            raise self._failure
        self._compressed.close()
        descriptor = self._blob.commit(media_type=self._media_type)
        return NewLayer(descriptor, digest_from(self._hash))

    def _hand_over(self) -> None:
        if self._failure is not None:
            raise self._failure
        piece = b"".join(self._parts)
        self._parts, self._size = [], 0
        self._queue.put(piece)
        self._hash.update(piece)
        self._task.advance(len(piece))

    def _join(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _pack_all(self) -> None:
        """Compress the pieces; after a failure keep taking them, so that the writing thread does not block for ever."""
        while (piece := self._queue.get()) is not None:
            try:
                if self._failure is None:
                    self._compressed.write(piece)
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that writes
                self._failure = error
