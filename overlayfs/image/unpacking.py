"""How does one layer come out of its blob into the store?

Decompressed, hashed and written at once in a staged directory; its place it gets last, by a rename.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Final

import msgspec

from ..tree.syscalls import sync_filesystem
from .below import Below
from .compression import open_decompressed
from .digest import Digest, hex_of
from .disk_format import choose_format
from .errors import DigestError, ImageError, InvalidError, NotFoundError
from .index import VERSION, LayerIndex, dump_index
from .layers import Layer, LayerInfo, LayerStore
from .limits import Limits
from .model import LAYER_TYPES
from .pipeline import HashedChunks
from .progress import Progress, Task
from .staging import sync_directory
from .store import Store
from .tarentry import TarReader
from .unpack import NeedsLowerLayersError, Unpacked, Unpacker

_TAKEN: Final = (errno.EEXIST, errno.ENOTEMPTY)


class _CancelledError(ImageError):
    """Another layer of the image failed."""


class Unpacking:
    """The unpacking of one layer."""

    def __init__(
        self,
        store: Store,
        layer: Layer,
        progress: Progress,
        limits: Limits,
        cancelled: threading.Event | None = None,
    ) -> None:
        self._store, self._layer, self._progress, self._limits = store, layer, progress, limits
        self._cancelled = cancelled or threading.Event()

    def alone(self) -> None:
        """Unpack the layer by itself; nothing is done where it needs the layers below."""
        try:
            self.run(self._layer.diff_id, None)
        except NeedsLowerLayersError:
            if self._layer.diff_id == self._layer.chain_id:
                raise InvalidError(f"{self._layer.name}: a hard link leads out of it, and no layer is below") from None

    def run(self, key: Digest, below: Below | None) -> None:
        task = self._progress.begin(self._layer.name, self._layer.blob.size)
        with self._store.staging() as staged:
            unpacked = self._unpack(staged / "diff", below, task)
            self._describe(staged, unpacked)
            self._publish(staged, key)
        lost = sum(unpacked.warnings.values())
        task.done(f"{lost} attributes could not be kept" if lost else "")

    def _unpack(self, directory: Path, below: Below | None, task: Task) -> Unpacked:
        layer = self._layer
        directory.mkdir(0o700)

        def advance(count: int) -> None:
            if self._cancelled.is_set():
                raise _CancelledError(f"{layer.name} was not unpacked, as another failed")
            task.advance(count)

        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with open(self._blob(), "rb", buffering=0) as raw:
                stream = open_decompressed(raw, self._limits, layer.name)
                with HashedChunks(stream, advance) as chunks:
                    reader = TarReader(chunks, self._limits, layer.name)
                    unpacker = Unpacker(root, choose_format(os.fsencode(directory)), below, self._limits, layer.name)
                    unpacked = unpacker.run(reader)
            if chunks.digest() != layer.diff_id:
                raise DigestError(f"{layer.name}: its content has another digest, {chunks.digest()}")
            return unpacked
        finally:
            os.close(root)

    def _blob(self) -> Path:
        """The blob, of which only the decompressed bytes are verified: they are all that is used of it."""
        blob = self._layer.blob
        if blob.media_type not in LAYER_TYPES:
            raise InvalidError(f"{self._layer.name}: layers of type {blob.media_type!r} cannot be used")
        if not self._store.has_blob(blob.digest):
            raise NotFoundError(
                f"{self._layer.name}: its blob {blob.digest} is not in the store; load or pull it again"
            )
        return self._store.blob_path(blob.digest)

    def _describe(self, staged: Path, unpacked: Unpacked) -> None:
        diff_id = self._layer.diff_id
        index = LayerIndex(VERSION, diff_id, unpacked.size, unpacked.records)
        (staged / "index").write_bytes(dump_index(index))
        info = LayerInfo(diff_id, unpacked.size, len(unpacked.records), unpacked.implied, unpacked.warnings)
        (staged / "layer.json").write_bytes(msgspec.json.encode(info))

    def _publish(self, staged: Path, key: Digest) -> None:
        """Give the layer its place, once all of it is on the disk."""
        layers = self._store.path / "layers"
        fd = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(fd)
        finally:
            os.close(fd)
        try:
            staged.rename(layers / hex_of(key))
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            if not LayerStore(self._store).has(key):
                raise InvalidError(f"{self._layer.name} is there and damaged: run overlayfs verify --repair") from None
            return  # another was faster
        sync_directory(layers)
