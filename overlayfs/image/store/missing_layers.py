"""How do the layers of an image that are not unpacked yet get from their blobs into the store?

A layer is decompressed, hashed and written at once in a staged directory; a rename gives it its place once its diffID
was verified and its files were synced. Several layers are unpacked at once, each by threads of its own. Threads and
processes may unpack the same layer at once: the first result stays.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from ..layer.disk_format import choose_format
from ..layer.file_index import VERSION, LayerIndex, dump_index
from ..layer.hashed_chunks import HashedChunks
from ..layer.lower_layers import Below
from ..layer.unpack import NeedsLowerLayersError, Unpacked, Unpacker
from ..oci.digest import Digest, digest_of, hex_of
from ..oci.documents import LAYER_TYPES, OCI_LAYER
from ..oci.errors import DigestError, ImageError, InvalidError, NotFoundError
from ..oci.limits import Limits
from ..oci.progress import NO_PROGRESS, Progress, Task
from ..tar.compression import CHUNK, open_decompressed
from ..tar.reader import TarReader
from ..tar.writer import END
from .layers import Layer, LayerInfo, LayerStore, layers_of
from .records import UNREADABLE
from .staging import sync_all, sync_directory
from .store import Image, Store

_AT_ONCE: Final = 4
_TAKEN: Final = (errno.EEXIST, errno.ENOTEMPTY)


def unpack_image(
    store: Store, image: Image, progress: Progress = NO_PROGRESS, limits: Limits | None = None
) -> list[Digest]:
    """Unpack the missing layers of an image, several at once; the keys of all its layers, bottom first.

    Raises InvalidError, LimitError and DigestError for a bad layer, NotFoundError for a missing blob. Nothing of a
    layer that failed is visible. `limits` are the store's if none are given.
    """
    unpacked, layers, limits = LayerStore(store), layers_of(image), limits or store.limits
    _unpack_alone(store, layers, progress, limits)
    keys: list[Digest] = []
    for layer in layers:
        key = unpacked.key(layer, keys)
        if key is None:
            with Below(unpacked.directories(keys)) as below:
                _Unpacking(store, layer, progress, limits).run(layer.chain_id, below)
            key = layer.chain_id
        keys.append(key)
    return keys


def unpack_empty_layer(store: Store, progress: Progress = NO_PROGRESS) -> Digest:
    """The key of a layer without files, the one that buildah gives to `FROM scratch`: a tar without members."""
    digest = digest_of(END)
    if not LayerStore(store).has(digest):
        blob = store.add_blob(END, OCI_LAYER)
        _unpack_alone(store, [Layer(blob, digest, digest)], progress, store.limits)
    return digest


def _unpack_alone(store: Store, layers: Sequence[Layer], progress: Progress, limits: Limits) -> None:
    """Unpack each missing layer that does not depend on the layers below it."""
    has = LayerStore(store).has
    missing = {layer.diff_id: layer for layer in layers if not has(layer.diff_id) and not has(layer.chain_id)}
    cancelled = threading.Event()
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        try:
            work = [
                pool.submit(_Unpacking(store, layer, progress, limits, cancelled).alone) for layer in missing.values()
            ]
            for future in work:
                future.result()
        except BaseException:
            cancelled.set()
            pool.shutdown(cancel_futures=True)
            raise


class _CancelledError(ImageError):
    """Unpacking stopped because another layer of the image failed."""


class _Unpacking:
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
        """Unpack the layer alone; nothing is done if it depends on the layers below."""
        try:
            self.run(self._layer.diff_id, None)
        except NeedsLowerLayersError:
            if self._layer.diff_id == self._layer.chain_id:
                raise InvalidError(f"{self._layer.name}: a hard link leads out of it, and no layer is below") from None

    def run(self, key: Digest, below: Below | None) -> None:
        task = self._progress.begin(self._layer.name, self._layer.blob.size)
        with self._store.staging() as staged:
            try:
                unpacked = self._unpack(staged / "diff", below, task)
            except (InvalidError, OSError) as error:
                if isinstance(error, InvalidError) or error.errno in UNREADABLE:
                    self._check_blob()
                raise
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
        """The path of the blob. Only its decompressed bytes are verified, as nothing else of it is used."""
        blob = self._layer.blob
        if blob.media_type not in LAYER_TYPES:
            raise InvalidError(f"{self._layer.name}: layers of type {blob.media_type!r} cannot be used")
        if not self._store.has_blob(blob.digest):
            raise NotFoundError(
                f"{self._layer.name}: its blob {blob.digest} is not in the store; load or pull it again"
            )
        return self._store.blob_path(blob.digest)

    def _check_blob(self) -> None:
        """Raises DigestError, which says what to do, where the store has not the bytes of the blob any more."""
        with suppress(NotFoundError):
            try:
                with self._store.open_blob(self._layer.blob) as blob:
                    while blob.read(CHUNK):
                        pass
            except (DigestError, OSError):
                remedy = "run overlayfs verify --repair, then load or pull the image again"
                raise DigestError(f"{self._layer.name}: its blob is damaged in the store: {remedy}") from None

    def _describe(self, staged: Path, unpacked: Unpacked) -> None:
        diff_id = self._layer.diff_id
        index = LayerIndex(VERSION, diff_id, unpacked.size, unpacked.records)
        (staged / "index").write_bytes(dump_index(index))
        info = LayerInfo(diff_id, unpacked.size, len(unpacked.records), unpacked.implied, unpacked.warnings)
        (staged / "layer.json").write_bytes(msgspec.json.encode(info))

    def _publish(self, staged: Path, key: Digest) -> None:
        """Sync the files of the layer, then rename it to its place."""
        layers = self._store.path / "layers"
        sync_all(staged)
        try:
            staged.rename(layers / hex_of(key))
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            if not LayerStore(self._store).has(key):
                raise InvalidError(f"{self._layer.name} is there and damaged: run overlayfs verify --repair") from None
            return  # another process was faster
        sync_directory(layers)
