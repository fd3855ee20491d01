"""Images in the storage of engines: records as the engines write them, and hostile ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overlayfs.image.foreign.docker import images_of_docker
from overlayfs.image.foreign.podman import images_of_podman
from overlayfs.image.foreign.stored_image import StoredImage, find, trees
from overlayfs.image.oci.digest import chain_ids, digest_of, hex_of
from overlayfs.image.oci.errors import ImageError, InvalidError, NotFoundError

LOW, TOP, IMAGE = "a" * 64, "b" * 64, "c" * 64
LAYERS = [{"id": LOW, "diff-size": 1}, {"id": TOP, "parent": LOW, "diff-size": 2}]
IMAGES: list[dict[str, Any]] = [
    {"id": IMAGE, "names": ["localhost/mine:1", "docker.io/library/x:latest"], "layer": TOP}
]
DIFF_IDS = [digest_of(b"low"), digest_of(b"top")]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def podman_of(root: Path, images: Any = IMAGES, layers: Any = LAYERS) -> Path:
    write(root / "overlay-images/images.json", images)
    write(root / "overlay-layers/layers.json", layers)
    for name in (LOW, TOP):
        (root / "overlay" / name / "diff").mkdir(parents=True)
    return root


def docker_of(root: Path, cache_ids: tuple[str, str] = (LOW, TOP), diff_ids: Any = DIFF_IDS) -> Path:
    records = root / "image/overlay2"
    write(records / "imagedb/content/sha256" / IMAGE, {"rootfs": {"type": "layers", "diff_ids": diff_ids}})
    write(records / "repositories.json", {"Repositories": {"mine": {"mine:1": f"sha256:{IMAGE}"}}})
    for chain, cache_id in zip(chain_ids(DIFF_IDS), cache_ids, strict=True):
        write(records / "layerdb/sha256" / hex_of(chain) / "cache-id", cache_id)
        write(records / "layerdb/sha256" / hex_of(chain) / "size", "5")
    for name in (LOW, TOP):
        (root / "overlay2" / name / "diff").mkdir(parents=True)
    return root


def test_layers_of_podman_stand_top_first(tmp_path: Path) -> None:
    image = find(images_of_podman(podman_of(tmp_path)), "mine:1")
    assert trees(image) == [tmp_path / "overlay" / name / "diff" for name in (TOP, LOW)]
    assert image.size == 3


def test_image_may_stand_on_layers_of_an_additional_store(tmp_path: Path) -> None:
    other = podman_of(tmp_path / "other")
    (tmp_path / "moved").mkdir()
    (other / "overlay" / LOW / "diff").rmdir()
    (other / "overlay" / LOW / "diff").symlink_to(tmp_path / "moved")
    own, below = "d" * 64, {"id": "e" * 64, "names": ["own"], "layer": "d" * 64}
    tagged = IMAGES[0] | {"names": ["localhost/tagged:latest"]}
    root = podman_of(tmp_path / "root", [below, tagged], [{"id": own, "parent": LOW}])
    (root / "overlay" / own / "diff").mkdir(parents=True)
    images = list(images_of_podman(root, [other]))
    assert trees(find(images, "eeee")) == [root / "overlay" / own / "diff", tmp_path / "moved"]
    assert find(images, "cccc").names == ("localhost/tagged:latest", *IMAGES[0]["names"])


def test_layers_of_docker_stand_top_first(tmp_path: Path) -> None:
    image = find(images_of_docker(docker_of(tmp_path)), "mine:1")
    assert trees(image) == [tmp_path / "overlay2" / name / "diff" for name in (TOP, LOW)]
    assert image.size == 10


@pytest.mark.parametrize(
    "name", ["mine:1", "localhost/mine:1", "x", "docker.io/library/x:latest", "cccc", f"sha256:{IMAGE}"]
)
def test_image_is_found_as_its_engine_finds_it(tmp_path: Path, name: str) -> None:
    assert find(images_of_podman(podman_of(tmp_path)), name).identity == IMAGE


@pytest.mark.parametrize("name", ["mine", "mine:2", "ccc", "d" * 64, ""])
def test_unknown_image_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError):
        find(images_of_podman(podman_of(tmp_path)), name)


@pytest.mark.parametrize("images_of", [images_of_podman, images_of_docker])
def test_engine_without_storage_has_no_images(
    tmp_path: Path, images_of: Callable[[Path], Iterator[StoredImage]]
) -> None:
    assert list(images_of(tmp_path)) == []


@pytest.mark.parametrize(
    ("images", "layers"),
    [
        ("[", LAYERS),
        ({"id": IMAGE}, LAYERS),
        ("[" * 100_000, LAYERS),
        ([{"id": "../../etc", "layer": TOP}], LAYERS),
        ([{"id": IMAGE, "layer": "../../.."}], [{"id": "../../.."}]),
        ([{"id": IMAGE, "layer": TOP}], [{"id": TOP, "parent": LOW}]),
        ([{"id": IMAGE, "layer": TOP}], [{"id": TOP, "parent": LOW}, {"id": LOW, "parent": TOP}]),
        ([{"id": IMAGE, "layer": TOP}], [{"id": TOP, "parent": TOP}]),
        ([{"id": IMAGE, "names": "mine"}], LAYERS),
    ],
)
def test_hostile_record_of_podman_is_refused(tmp_path: Path, images: Any, layers: Any) -> None:
    with pytest.raises(InvalidError):
        list(images_of_podman(podman_of(tmp_path, images, layers)))


@pytest.mark.parametrize(
    ("cache_ids", "diff_ids"),
    [(("../../../etc", TOP), DIFF_IDS), ((LOW, ""), DIFF_IDS), ((LOW, TOP), ["../../x"]), ((LOW, TOP), "text")],
)
def test_hostile_record_of_docker_is_refused(tmp_path: Path, cache_ids: tuple[str, str], diff_ids: Any) -> None:
    with pytest.raises(ImageError):
        list(images_of_docker(docker_of(tmp_path, cache_ids, diff_ids)))


@pytest.mark.parametrize("size", ["", "-1", "many"])
def test_size_of_docker_that_is_no_number_is_refused(tmp_path: Path, size: str) -> None:
    root = docker_of(tmp_path)
    write(root / "image/overlay2/layerdb/sha256" / hex_of(chain_ids(DIFF_IDS)[0]) / "size", size)
    with pytest.raises(InvalidError):
        list(images_of_docker(root))


def test_layer_that_is_a_symlink_or_missing_is_refused(tmp_path: Path) -> None:
    image = find(images_of_podman(podman_of(tmp_path)), "mine:1")
    (tmp_path / "overlay" / LOW / "diff").rmdir()
    with pytest.raises(ImageError):
        trees(image)
    (tmp_path / "overlay" / LOW / "diff").symlink_to("/etc")
    with pytest.raises(InvalidError):
        trees(image)
