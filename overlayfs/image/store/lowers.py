"""Which directories does a mount of an image get as its lowers?

Those of its unpacked layers; missing layers are unpacked first. The unpacker is imported only then, so that the mount
of an unpacked image starts without it. Any number of threads and processes.
"""

from __future__ import annotations

from pathlib import Path

from ..oci.digest import Digest
from ..oci.progress import NO_PROGRESS, Progress
from .layers import LayerStore
from .store import Image, Store


def lower_directories(store: Store, image: Image, progress: Progress = NO_PROGRESS) -> list[Path]:
    """The trees to mount, top first; missing layers are unpacked."""
    return LayerStore(store).directories(lower_keys(store, image, progress))


def lower_keys(store: Store, image: Image, progress: Progress = NO_PROGRESS) -> list[Digest]:
    """The keys of the trees to mount, bottom first; missing layers are unpacked.

    A mount needs a lower, so an image without layers is mounted as if it had an empty one.
    """
    if keys := LayerStore(store).keys(image):
        return keys
    from .missing_layers import unpack_empty_layer, unpack_image

    return unpack_image(store, image, progress) or [unpack_empty_layer(store, progress)]
