"""The storage of podman, buildah and CRI-O (containers/storage, its overlay driver).

`overlay-images/images.json` names the top layer of each image, `overlay-layers/layers.json` the parent of each layer;
`overlay/ID/diff` is the tree of a layer, in the kernel's format.
See containers-storage-architecture in its documentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from ..oci.errors import InvalidError, NotFoundError
from .stored_image import Record, StoredImage, checked_id, joined, read_record


class _Image(Struct):
    id: str
    layer: str = ""
    names: list[str] | None = None
    created: str = ""


class _Layer(Struct):
    id: str
    parent: str = ""
    size: int = field(default=0, name="diff-size")


def images_of_podman(root: Path, additional: Sequence[Path] = ()) -> Iterator[StoredImage]:
    """All images below a graph root and in additional image stores, on whose layers images of the graph root may stand.

    In an additional store the tree of a layer may be elsewhere: it is one whose layers are another program's.
    """
    stores = (root, *additional)
    layers: dict[str, _Layer] = {}
    trees: dict[str, Path] = {}
    for store in reversed(stores):
        for layer in _records(store / "overlay-layers/layers.json", _Layer):
            layers[layer.id] = layer
            tree = store / "overlay" / checked_id(layer.id, "a layer of podman") / "diff"
            trees[layer.id] = tree if store is root else tree.resolve()
    images = (image for store in stores for image in _records(store / "overlay-images/images.json", _Image))
    yield from joined(_image(image, layers, trees) for image in images)


def _image(image: _Image, layers: Mapping[str, _Layer], trees: Mapping[str, Path]) -> StoredImage:
    chain = list(_chain(image, layers))
    return StoredImage(
        checked_id(image.id, "an image of podman"),
        tuple(image.names or ()),
        image.created,
        sum(layer.size for layer in chain),
        tuple(dict.fromkeys(trees[layer.id] for layer in chain)),
    )


def _records(path: Path, kind: type[Record]) -> list[Record]:
    try:
        return read_record(path, list[kind])  # type: ignore[valid-type]
    except NotFoundError:
        return []


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
