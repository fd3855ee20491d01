"""How do commands open an image to look into it? Its layers with their indexes, and arguments like IMAGE:/PATH."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.output import printable
from overlayfs.cli.progress import shown_progress
from overlayfs.image.inspect.browse import Node, merged_trees
from overlayfs.image.inspect.layer_files import Content
from overlayfs.image.layer.file_index import LayerIndex
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Image, Store


@dataclass(frozen=True)
class Looked:
    """An image of an open store whose layers are unpacked; all lists are bottom first."""

    image: Image
    indexes: list[LayerIndex]
    directories: list[Path]

    @cached_property
    def trees(self) -> list[Node]:
        """The merged tree after each layer."""
        return merged_trees(self.indexes)

    @cached_property
    def tree(self) -> Node:
        """The merged tree of the image."""
        from overlayfs.image.inspect.browse import EMPTY

        return self.trees[-1] if self.trees else EMPTY

    def content(self) -> Content:
        return Content(self.directories)

    def layer_number(self, layer: int) -> int:
        """The index of the layer with the number `layer`, which users count from 1."""
        if not 1 <= layer <= len(self.indexes):
            raise CommandError(f"{self.image.name}: no layer {layer}: it has {len(self.indexes)}")
        return layer - 1


@contextmanager
def open_image(name: str, directory: Path | None) -> Iterator[Looked]:
    """Open an image, unpacking missing layers. The store stays open, so nothing is pruned meanwhile."""
    with Store.open(directory) as store:
        yield look_at(name, store)


def look_at(name: str, store: Store) -> Looked:
    """As `open_image`, in a store that is open."""
    image, layers = store.find(name), LayerStore(store)
    with shown_progress() as progress:
        keys = unpack_image(store, image, progress)
    return Looked(image, [layers.index(key) for key in keys], [layers.path(key) for key in keys])


def split_image_path(text: str) -> tuple[str, bytes]:
    """IMAGE and PATH of IMAGE:/PATH; the slash tells the colon from those of an image's name."""
    name, colon, path = text.partition(":/")
    if not name or not colon:
        raise CommandError(f"{printable(os.fsencode(text))}: name a file of an image as IMAGE:/PATH")
    return name, b"/" + os.fsencode(path)
