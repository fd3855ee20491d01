"""How are layers kept from being pruned while something is mounted on them?

By a record of the process that serves the mount (see uses), which counts as long as that lives. The store has to be
open from before the layers are looked up until the record is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ..oci.digest import ALGORITHM, Digest, parse_digest
from ..oci.errors import ImageError, InvalidError
from .layers import LayerStore
from .lowers import lower_keys
from .store import Image, Store
from .uses import Process, Use


class OpenedImage(NamedTuple):
    """An image whose layers nobody can prune now; `lowers` are the directories to mount, top first."""

    store: Store
    image: Image
    keys: list[Digest]
    lowers: list[Path]

    def record(self, process: int, mountpoint: Path) -> None:
        """Keep the layers from now on for the process that serves a mount of them."""
        where = os.path.realpath(mountpoint)
        self.store.record_mount(Use(Process.of(process), self.keys, self.image.descriptor.digest, where))


@contextmanager
def open_image(name: str, store_directory: Path | None) -> Iterator[OpenedImage]:
    """An image by name or ID; missing layers are unpacked. Raises ImageError."""
    with Store.open(store_directory) as store:
        image = store.find(name)
        keys = lower_keys(store, image)
        yield OpenedImage(store, image, keys, LayerStore(store).directories(keys))


Recording = Callable[[int, bytes], None]
"""Keeps layers for the process that serves a mount of them, and its mountpoint."""


@contextmanager
def same_layers(lowers: Sequence[bytes]) -> Iterator[Recording]:
    """A block in which nobody prunes the layers of a live mount, all its lowers, and another process comes to mount the
    same ones: it is recorded by what is yielded. Lowers that are in no store, or in one of somebody else, are kept by
    nobody."""
    places = [place for place in map(_place_in_store, lowers) if place is not None]
    with ExitStack() as stack:
        store = None
        if places:
            with suppress(OSError, ImageError):
                store = stack.enter_context(Store.open(places[0][0]))
        keys = [key for directory, key in reversed(places) if directory == places[0][0]]

        def record(process: int, mountpoint: bytes) -> None:
            if store is not None:
                with suppress(OSError, ImageError):
                    _record_same(store, keys, process, mountpoint)

        yield record


def _record_same(store: Store, keys: list[Digest], process: int, mountpoint: bytes) -> None:
    same = (use.image for use in store.mounts().values() if set(use.layers) == set(keys))
    where = os.path.realpath(os.fsdecode(mountpoint))
    store.record_mount(Use(Process.of(process), keys, next(same, None), where))


def _place_in_store(lower: bytes) -> tuple[Path, Digest] | None:
    """The store and the key of a layer that is mounted from there, see LayerStore.path."""
    layer = Path(os.fsdecode(lower)).parent
    try:
        key = parse_digest(f"{ALGORITHM}:{layer.name}")
    except InvalidError:
        return None
    is_layer = layer.parent.name == "layers" and (layer / "layer.json").is_file()
    return (layer.parents[1], key) if is_layer else None
