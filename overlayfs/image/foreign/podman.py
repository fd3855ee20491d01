"""The storage of podman, buildah and CRI-O (containers/storage, its overlay driver).

`overlay-images/images.json` names the top layer of each image, `overlay-layers/layers.json` the parent of each layer;
`overlay/ID/diff` is the tree of a layer, in the kernel's format.
See containers-storage-architecture in its documentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct, field

from ..oci.errors import InvalidError, NotFoundError
from .stored_image import StoredImage, checked_id, read_record


class _Image(Struct):
    id: str
    layer: str = ""
    names: list[str] | None = None
    created: str = ""


class _Layer(Struct):
    id: str
    parent: str = ""
    size: int = field(default=0, name="diff-size")


def images_of_podman(root: Path) -> Iterator[StoredImage]:
    """All images below a graph root."""
    try:
        images = read_record(root / "overlay-images/images.json", list[_Image])
    except NotFoundError:
        return
    layers = {layer.id: layer for layer in read_record(root / "overlay-layers/layers.json", list[_Layer])}
    for image in images:
        chain = list(_chain(image, layers))
        yield StoredImage(
            checked_id(image.id, "an image of podman"),
            tuple(image.names or ()),
            image.created,
            sum(layer.size for layer in chain),
            tuple(root / "overlay" / layer.id / "diff" for layer in chain),
        )


def _chain(image: _Image, layers: Mapping[str, _Layer]) -> Iterator[_Layer]:
    """The layers of an image, top first."""
    name, passed = image.layer, set[str]()
    while name:
        layer = layers.get(checked_id(name, f"image {image.id[:12]}"))
        if layer is None or name in passed:
            raise InvalidError(f"image {image.id[:12]}: its layer {name[:12]} is unknown or below itself")
        passed.add(name)
        yield layer
        name = layer.parent
