"""Which layers are unpacked, and where? Each once, under its diffID, shared by all images and mounts.

A layer that takes something for granted which the layers below must tell (see unpack.py) is not the same above other
layers: it is kept under its chainID. Published by a rename, after its diffID was found right and all of it is on the
disk. Threads and processes may unpack the same layer at once: the first one's stays. What unpacks and compares is
imported when it is needed: a mount of an unpacked image waits for none of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from .digest import Digest, chain_ids, digest_of, hex_of
from .errors import InvalidError, NotFoundError
from .index import LayerIndex, parse_index
from .limits import Limits
from .model import OCI_LAYER, Descriptor
from .progress import NO_PROGRESS, Progress
from .store import Image, Store

_AT_ONCE: Final = 4


class LayerInfo(Struct, frozen=True, omit_defaults=True):
    """What there is to know of an unpacked layer besides its index: layer.json.

    `implied` are directories that the layer does not describe; `warnings` counts what could not be kept.
    """

    diff_id: Digest
    size: int
    members: int
    implied: list[bytes] = []
    warnings: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image."""

    blob: Descriptor
    diff_id: Digest
    chain_id: Digest

    @property
    def name(self) -> str:
        return f"layer {self.diff_id[:19]}"


class LayerStore:
    """The `layers` of a store. Any number of threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._layers = store.path / "layers"

    def has(self, key: Digest) -> bool:
        return (self._layers / hex_of(key) / "layer.json").is_file()

    def path(self, key: Digest) -> Path:
        """The layer's tree."""
        return self._layers / hex_of(key) / "diff"

    def info(self, key: Digest) -> LayerInfo:
        """Raises NotFoundError, InvalidError."""
        data = self._read(key, "layer.json")
        try:
            return msgspec.json.decode(data, type=LayerInfo)
        except msgspec.MsgspecError as error:
            raise InvalidError(f"layer {key}: its description is damaged: {error}") from None

    def index(self, key: Digest) -> LayerIndex:
        """Raises NotFoundError, InvalidError."""
        return parse_index(self._read(key, "index"), f"layer {key}")

    def _read(self, key: Digest, name: str) -> bytes:
        try:
            return (self._layers / hex_of(key) / name).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"layer {key} is not unpacked") from None

    def keys(self, image: Image) -> list[Digest] | None:
        """The keys of an image's layers, bottom first; None if not all of them are unpacked."""
        keys: list[Digest] = []
        for layer in _layers(image):
            key = self._key(layer, keys)
            if key is None:
                return None
            keys.append(key)
        return keys

    def lower_directories(self, image: Image, progress: Progress = NO_PROGRESS) -> list[Path]:
        """The trees to mount, top first; what is missing is unpacked."""
        return self._directories(self.lower_keys(image, progress))

    def lower_keys(self, image: Image, progress: Progress = NO_PROGRESS) -> list[Digest]:
        """The keys of the trees to mount, bottom first; what is missing is unpacked.

        A mount needs a lower, so an image without layers is mounted as if it had the one that buildah gives to
        `FROM scratch`: a tar without members.
        """
        return self.keys(image) or self.unpack_image(image, progress) or [self._unpack_empty_layer(progress)]

    def _unpack_empty_layer(self, progress: Progress) -> Digest:
        from .tarwriter import END

        digest = digest_of(END)
        if not self.has(digest):
            blob = self._store.add_blob(END, OCI_LAYER)
            self._unpack_alone([Layer(blob, digest, digest)], progress, self._store.limits)
        return digest

    def unpack_image(
        self, image: Image, progress: Progress = NO_PROGRESS, limits: Limits | None = None
    ) -> list[Digest]:
        """Unpack what is missing of an image, several layers at once; the keys of its layers, bottom first.

        Raises InvalidError, LimitError and DigestError for a layer that is not as it should be, NotFoundError for a
        blob that is missing. Nothing is visible of a layer that failed. `limits` are the store's if none are given.
        """
        from .below import Below
        from .unpacking import Unpacking

        layers, limits = _layers(image), limits or self._store.limits
        self._unpack_alone(layers, progress, limits)
        keys: list[Digest] = []
        for layer in layers:
            key = self._key(layer, keys)
            if key is None:
                with Below(self._directories(keys)) as below:
                    Unpacking(self._store, layer, progress, limits).run(layer.chain_id, below)
                key = layer.chain_id
            keys.append(key)
        return keys

    def verify(self, key: Digest) -> list[str]:
        """What of the layer's tree is not as it was unpacked, one line for each path. Raises as `info`, and OSError."""
        from .verify import differences

        self.info(key)
        root = os.open(self.path(key), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return list(differences(root, self.index(key)))
        finally:
            os.close(root)

    def _unpack_alone(self, layers: Sequence[Layer], progress: Progress, limits: Limits) -> None:
        """Unpack each layer that is missing as if nothing were below it, where that can be."""
        from .unpacking import Unpacking

        missing = {
            layer.diff_id: layer for layer in layers if not self.has(layer.diff_id) and not self.has(layer.chain_id)
        }
        cancelled = threading.Event()
        with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
            try:
                work = [
                    pool.submit(Unpacking(self._store, layer, progress, limits, cancelled).alone)
                    for layer in missing.values()
                ]
                for future in work:
                    future.result()
            except BaseException:
                cancelled.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _key(self, layer: Layer, below: Sequence[Digest]) -> Digest | None:
        """Under which key a layer is unpacked that fits on the layers `below`, bottom first."""
        if self.has(layer.chain_id):
            return layer.chain_id
        if self.has(layer.diff_id) and self._fits(self.info(layer.diff_id), below):
            return layer.diff_id
        return None

    def _fits(self, info: LayerInfo, below: Sequence[Digest]) -> bool:
        """Whether the directories that the layer does not describe are below as they were assumed to be."""
        if not info.implied or not below:
            return True
        from .below import Below

        directories = self._directories(below)
        is_only_root = info.implied == [b""]  # of every layer that docker wrote: the one below tells, not all of them
        with Below(directories[:1] if is_only_root else directories) as lower:
            for path in info.implied:
                found = lower.entry(path)
                if found is None or found.kind != "d":
                    continue
                as_assumed = (found.mode, found.uid, found.gid, found.xattrs) == (0o755, 0, 0, {})
                if not as_assumed or (path and found.mtime_ns):
                    return False
        return True

    def _directories(self, keys: Sequence[Digest]) -> list[Path]:
        return [self.path(key) for key in topmost_of_equals(keys)]


def topmost_of_equals(keys: Sequence[Digest]) -> list[Digest]:
    """Top first, from keys of layers bottom first: an image may have a layer twice, an overlay may not. What the lower
    one shows or hides, the upper one does as well."""
    return list(dict.fromkeys(reversed(keys)))


def _layers(image: Image) -> list[Layer]:
    """Bottom first."""
    diff_ids = image.config.rootfs.diff_ids
    return [Layer(*layer) for layer in zip(image.manifest.layers, diff_ids, chain_ids(diff_ids), strict=True)]
