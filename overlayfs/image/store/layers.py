"""Which layers are unpacked, and where? Each layer once, under its diffID, shared by all images and mounts.

A layer whose tar leaves out directories or hard link targets that the layers below it define depends on those layers
(see layer/unpack.py), so it is kept under its chainID. A layer appears by a rename, after its diffID was verified and
its files were synced (see missing_layers.py); this module only reads. Any number of threads and processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from ..layer.file_index import LayerIndex, parse_index
from ..oci.digest import Digest, chain_ids, hex_of
from ..oci.documents import Descriptor
from ..oci.errors import InvalidError, NotFoundError
from .records import UNREADABLE
from .store import Image, Store


class LayerInfo(Struct, frozen=True, omit_defaults=True):
    """The facts about an unpacked layer that are not in its index: layer.json.

    `implied` are directories that the layer does not describe; `warnings` counts what could not be kept.
    """

    diff_id: Digest
    size: int
    members: int
    implied: list[bytes] = []
    warnings: dict[str, int] = {}


class Layer(Struct, frozen=True):
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
        self._layers = store.path / "layers"

    def has(self, key: Digest) -> bool:
        return (self._layers / hex_of(key) / "layer.json").is_file()

    def path(self, key: Digest) -> Path:
        """The directory with the layer's tree."""
        return self._layers / hex_of(key) / "diff"

    def info(self, key: Digest) -> LayerInfo:
        """Raises NotFoundError, InvalidError."""
        data = self._read(key, "layer.json")
        try:
            return msgspec.json.decode(data, type=LayerInfo)
        except msgspec.MsgspecError as error:
            raise InvalidError(f"layer {key}: its description is damaged: {error} (see overlayfs verify)") from None

    def index(self, key: Digest) -> LayerIndex:
        """Raises NotFoundError, InvalidError."""
        try:
            return parse_index(self._read(key, "index"), f"layer {key}")
        except InvalidError as error:
            raise InvalidError(f"{error} (see overlayfs verify)") from None

    def _read(self, key: Digest, name: str) -> bytes:
        try:
            return (self._layers / hex_of(key) / name).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"layer {key} is not unpacked") from None
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            raise InvalidError(f"layer {key}: its {name} cannot be read: {error.strerror}") from None

    def keys(self, image: Image) -> list[Digest] | None:
        """The keys of an image's layers, bottom first; None if not all of them are unpacked."""
        keys: list[Digest] = []
        for layer in layers_of(image):
            key = self.key(layer, keys)
            if key is None:
                return None
            keys.append(key)
        return keys

    def verify(self, key: Digest) -> list[str]:
        """One line for each path that was changed since the layer was unpacked. Raises as `info`, and OSError."""
        from ..layer.tampering import differences

        self.info(key)
        root = os.open(self.path(key), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return list(differences(root, self.index(key)))
        finally:
            os.close(root)

    def key(self, layer: Layer, below: Sequence[Digest]) -> Digest | None:
        """The key of an unpacked tree that suits the layers `below` (bottom first); None if there is none."""
        if self.has(layer.chain_id):
            return layer.chain_id
        if self.has(layer.diff_id) and self._fits(self.info(layer.diff_id), below):
            return layer.diff_id
        return None

    def _fits(self, info: LayerInfo, below: Sequence[Digest]) -> bool:
        """Whether the directories that the layer does not describe look as assumed in the layers below."""
        if not info.implied or not below:
            return True
        from ..layer.lower_layers import Below

        directories = self.directories(below)
        # so in every layer written by docker: the topmost layer below decides, as all layers describe the root
        is_only_root = info.implied == [b""]
        with Below(directories[:1] if is_only_root else directories) as lower:
            for path in info.implied:
                found = lower.entry(path)
                if found is None or found.kind != "d":
                    continue
                as_assumed = (found.mode, found.uid, found.gid, found.xattrs) == (0o755, 0, 0, {})
                if not as_assumed or (path and found.mtime_ns):
                    return False
        return True

    def directories(self, keys: Sequence[Digest]) -> list[Path]:
        """The trees of these layers, which are bottom first, as a mount takes them: top first, each once."""
        return [self.path(key) for key in topmost_of_equals(keys)]


def topmost_of_equals(keys: Sequence[Digest]) -> list[Digest]:
    """The keys top first, each once, from keys bottom first: an image may have a layer twice, an overlay may not. The
    upper occurrence already shows and hides all that the lower one does."""
    return list(dict.fromkeys(reversed(keys)))


def layers_of(image: Image) -> list[Layer]:
    """The layers of an image, bottom first."""
    diff_ids = image.config.rootfs.diff_ids
    return [Layer(*layer) for layer in zip(image.manifest.layers, diff_ids, chain_ids(diff_ids), strict=True)]
