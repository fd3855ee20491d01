"""Damage of the store is found whatever it is, removed, and then what was damaged can be had again."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from overlayfs.image.oci.documents import Descriptor
from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Image, Store
from overlayfs.image.store.verify import mend, verify
from tests.image.making import put, tar


@pytest.fixture
def image(store: Store) -> Image:
    return put(store, "x", tar({"a": b"a"}))


def empty(layer: Path) -> None:
    for path in layer.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def put_file_for_tree(layer: Path) -> None:
    shutil.rmtree(layer / "diff")
    (layer / "diff").touch()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no tree": lambda layer: shutil.rmtree(layer / "diff"),
    "no description": lambda layer: (layer / "layer.json").unlink(),
    "no index": lambda layer: (layer / "index").unlink(),
    "empty": empty,
    "a file for a tree": put_file_for_tree,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_layer_is_found_and_unpacked_again(
    store: Store, image: Image, damage: Callable[[Path], object]
) -> None:
    (key,) = unpack_image(store, image)
    damage(LayerStore(store).path(key).parent)
    findings = verify(store)
    assert [finding.what for finding in findings] == [f"layer {key}"]
    assert mend(store, findings) == findings
    unpack_image(store, image)
    assert verify(store) == []


def test_layer_that_is_in_the_way_says_what_to_do(store: Store, image: Image) -> None:
    (key,) = unpack_image(store, image)
    (LayerStore(store).path(key).parent / "layer.json").unlink()
    with pytest.raises(InvalidError, match="run overlayfs verify --repair"):
        unpack_image(store, image)


def test_disk_that_fails_to_read_one_blob_does_not_hide_what_else_is_damaged(
    store: Store, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, other = image.manifest.layers[0], store.add_blob(b"other", "text/plain")
    store.blob_path(other.digest).write_bytes(b"wrong")
    opened = store.open_blob

    def failing(blob: Descriptor) -> BinaryIO:
        if blob.digest == layer.digest:
            raise OSError(errno.EIO, "Input/output error", str(store.blob_path(blob.digest)))
        return opened(blob)

    monkeypatch.setattr(store, "open_blob", failing)
    problems = {finding.what: finding.problem for finding in verify(store)}
    assert problems.keys() == {f"blob {layer.digest}", f"blob {other.digest}"}
    assert problems[f"blob {layer.digest}"].startswith("Input/output error")
