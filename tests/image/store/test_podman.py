"""The store as podman reads it: records, links and trees; after interruptions, and while podman uses layers."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from overlayfs.image.oci.digest import digest_of, hex_of
from overlayfs.image.oci.errors import ImageError, InUseError, InvalidError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store import podman
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.lowers import lower_directories
from overlayfs.image.store.podman import publish, share, unshare
from overlayfs.image.store.podman_records import layers_in_use, no_new_uses, roots_file, split_file
from overlayfs.image.store.pruning import prune, remove_image
from overlayfs.image.store.published import is_outdated, stamp_file
from overlayfs.image.store.store import Store
from overlayfs.image.store.verify import mend, verify
from tests.image import tars
from tests.image.making import put, put_changed, tar
from tests.image.tar.test_split import assembled
from tests.image.tars import directory, file, symlink

LOW, HIGH, OTHER = (tar({name: name.encode()}) for name in ("low", "high", "other"))


@pytest.fixture
def graph_root(tmp_path: Path) -> Path:
    """Podman's own storage."""
    (tmp_path / "graph/overlay").mkdir(parents=True)
    return tmp_path / "graph"


def records(store: Store, what: str) -> list[dict[str, Any]]:
    return json.loads((store.path / f"podman/overlay-{what}/{what}.json").read_text())  # type: ignore[no-any-return]


def stacks(store: Store) -> dict[str, list[str]]:
    """For each name what the trees below `overlay` contain, top first, found as podman finds them."""
    overlay = store.path / "podman/overlay"
    found = {}
    for image in records(store, "images"):
        lower = overlay / image["layer"] / "lower"
        links = lower.read_text().split(":") if lower.exists() else []
        top = (overlay / image["layer"] / "link").read_text()
        for name in image.get("names", ["unnamed"]):
            found[name] = [" ".join(sorted(os.listdir(overlay / link))) for link in (f"l/{top}", *links)]
    return found


def use(graph_root: Path, store: Store, layer: str) -> Path:
    """Let podman have a container on a layer; its directory."""
    overlay = store.path / "podman/overlay" / layer
    lower = overlay / "lower"
    below = [lower.read_text()] if lower.exists() else []
    (graph_root / "overlay/container").mkdir()
    (graph_root / "overlay/container/lower").write_text(":".join([f"l/{(overlay / 'link').read_text()}", *below]))
    return graph_root / "overlay/container"


def test_layers_stand_on_each_other_as_in_each_image(store: Store, graph_root: Path) -> None:
    put(store, "a", LOW, HIGH, LOW)
    put(store, "b", OTHER, HIGH)
    put(store, "c", HIGH)
    share(store, graph_root)
    assert stacks(store) == {
        "docker.io/library/a:latest": ["low", "high"],  # a tree that an image has twice counts once
        "docker.io/library/b:latest": ["high", "other"],
        "docker.io/library/c:latest": ["high"],
    }
    layers = {layer["id"]: layer for layer in records(store, "layers")}
    assert len(layers) == 6
    assert {layer["diff-digest"] for layer in layers.values()} == {digest_of(tar) for tar in (LOW, HIGH, OTHER)}
    inside = [path for path in layers if (store.path / "podman/overlay" / path).is_symlink()]
    assert len(inside) == 3  # each tree once where podman can map its ids, further ones by a symlink
    assert sorted(len(os.listdir(path)) for path in lower_directories(store, store.find("a"))) == [1, 1]


def test_image_without_layers_and_image_without_name_are_there(store: Store, graph_root: Path) -> None:
    put(store, None, LOW)
    share(store, graph_root)
    (image,) = records(store, "images")
    assert image["names"] == []
    assert image["created"] == "2024-02-03T04:05:06Z"
    directory = store.path / "podman/overlay-images" / image["id"]
    assert len(os.listdir(directory)) == len(image["big-data-names"]) == 3
    assert digest_of((directory / "manifest").read_bytes()) == image["digest"]


@pytest.mark.parametrize("created", ["yesterday", "2024-02-03T04:05:06Z\n"])
def test_image_that_podman_cannot_read_is_left_out(
    created: str, store: Store, graph_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put(store, "a", LOW)
    put_changed(store, put(store, "b", LOW, HIGH), {}, {"created": created})
    share(store, graph_root)
    assert stacks(store) == {"docker.io/library/a:latest": ["low"]}
    assert "podman cannot read its configuration" in capfd.readouterr().err


REPLACING = {
    "filled-directory-by-a-symlink": (file(b"d/a", b"1"), file(b"d/b/c", b"2"), symlink(b"d", b"e"), file(b"e", b"3")),
    "filled-directory-and-back": (
        file(b"d/a", b"1"),
        file(b"d/b", b"2"),
        file(b"d"),
        directory(b"d"),
        file(b"d/a", b"1"),
    ),
    "file-by-one-behind-a-symlink": (file(b"d/a", b"1"), symlink(b"l", b"d"), file(b"l/a", b"2"), file(b"l/b", b"3")),
    "file-by-itself": (file(b"a", b"1"), file(b"b", b"2"), file(b"a", b"1")),
    "file-of-aufs": (file(b".wh..wh.plnk/a", b"1"), file(b"a", b"2")),
    "whiteout-of-a-file-of-the-layer": (file(b"a", b"1"), file(b".wh.a"), file(b"d/b", b"2"), file(b"d/.wh..wh..opq")),
}


@pytest.mark.parametrize("name", REPLACING)
def test_tar_comes_out_of_the_tree_and_its_record(name: str, store: Store, graph_root: Path) -> None:
    layer_tar = tars.tar(*REPLACING[name])
    image = put(store, "a", layer_tar)
    share(store, graph_root)
    (layer,) = records(store, "layers")
    (tree,) = map(Path, lower_directories(store, image))
    files = {os.fsencode(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    lines = gzip.decompress(split_file(store.path, layer["id"]).read_bytes()).splitlines()
    assert assembled([json.loads(line) for line in lines], files) == layer_tar
    assert layer["diff-size"] == len(layer_tar)
    assert os.listdir(store.path / "tmp") == []


def test_blob_that_has_changed_since_it_was_unpacked_is_no_layer_of_podman(
    store: Store, graph_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = put(store, "a", LOW, kind=None)
    lower_directories(store, image)
    blob = store.blob_path(image.manifest.layers[0].digest)
    blob.chmod(0o600)
    blob.write_bytes(tar({"low": b"bad"}))
    share(store, graph_root)
    assert stacks(store) == {}
    assert "its content has another digest" in capfd.readouterr().err


def test_damaged_image_hides_no_other(store: Store, graph_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put(store, "a", LOW)
    damaged = put(store, "b", OTHER)
    store.blob_path(damaged.manifest.layers[0].digest).unlink()
    share(store, graph_root)
    assert stacks(store) == {"docker.io/library/a:latest": ["low"]}
    assert "podman does not see docker.io/library/b:latest" in capfd.readouterr().err


@contextmanager
def interrupted_after(writes: int) -> Iterator[None]:
    """Let the change of a file fail, as if the program were killed, after so many; or let all come through."""
    replace, left = podman._replace, iter(range(writes))

    def write(*arguments: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*arguments)

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(podman, "_replace", write)
        yield


@pytest.mark.parametrize("writes", range(12))
def test_interrupted_change_is_completed_by_the_next(writes: int, store: Store, graph_root: Path) -> None:
    put(store, "a", LOW, HIGH)
    share(store, graph_root)
    store.untag(Reference.parse("a"))
    put(store, "b", OTHER, HIGH)
    with interrupted_after(writes):
        publish(store)
    stacks(store)  # whatever the records name is there
    publish(store)
    assert stacks(store) == {"docker.io/library/b:latest": ["high", "other"]}
    assert not is_outdated(store.path)
    assert len(os.listdir(store.path / "podman/overlay/l")) == len(records(store, "layers")) == 2


@pytest.mark.parametrize("writes", range(12))
def test_tree_of_an_interrupted_change_may_become_that_of_another_layer(
    writes: int, store: Store, graph_root: Path
) -> None:
    put(store, "a", LOW, HIGH)
    with interrupted_after(writes):
        share(store, graph_root)
    store.untag(Reference.parse("a"))
    put(store, "b", OTHER, HIGH)
    put(store, "a", LOW, HIGH)
    share(store, graph_root)
    assert stacks(store) == {
        "docker.io/library/a:latest": ["high", "low"],
        "docker.io/library/b:latest": ["high", "other"],
    }


@pytest.mark.parametrize("writes", range(12))
def test_tree_that_another_layer_has_taken_over_keeps_its_records(writes: int, store: Store, graph_root: Path) -> None:
    put(store, "a", LOW, HIGH)
    with interrupted_after(writes):
        share(store, graph_root)
    store.untag(Reference.parse("a"))
    put(store, "b", OTHER, HIGH)
    share(store, graph_root)
    assert stacks(store) == {"docker.io/library/b:latest": ["high", "other"]}


def test_interrupted_sharing_is_completed(store: Store, graph_root: Path) -> None:
    image = put(store, "a", LOW)
    (before,) = lower_directories(store, image)
    (store.path / "podman/overlay").mkdir(parents=True)
    (store.path / "podman/overlay/layers").symlink_to("podman/overlay/layers")
    share(store, graph_root)
    share(store, graph_root)
    assert os.listdir(before) == ["low"]
    assert stacks(store) == {"docker.io/library/a:latest": ["low"]}
    unshare(store)
    assert os.listdir(before) == ["low"]
    assert sorted(os.listdir(before.parent)) == ["diff", "index", "layer.json"]


def test_layers_in_use_outlive_their_image(store: Store, graph_root: Path) -> None:
    put(store, "a", LOW, HIGH)
    put(store, "b", OTHER)
    share(store, graph_root)
    top = next(image["layer"] for image in records(store, "images") if "a" in image["names"][0])
    container = use(graph_root, store, top)
    for name in ("a", "b"):
        remove_image(store, name)
    prune(store)
    kept = {digest_of(LOW), digest_of(HIGH)}
    assert {record.key for record in layers_in_use(store.path)} == store.uses() == kept
    assert sorted(os.listdir(store.path / "layers")) == sorted(map(hex_of, kept))
    assert records(store, "images") == []
    assert len(records(store, "layers")) == 2
    with pytest.raises(InUseError):
        unshare(store)
    (container / "lower").unlink()
    publish(store)
    prune(store)
    assert os.listdir(store.path / "layers") == []
    unshare(store)
    assert not (store.path / "podman").exists()


HOLD = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_nothing_is_removed_while_podman_makes_a_layer(store: Store, graph_root: Path) -> None:
    put(store, "a", LOW)
    share(store, graph_root)
    with no_new_uses(store.path, patience_s=0):  # makes the lock of a podman that has no layers yet
        pass
    command = [sys.executable, "-c", HOLD, str(graph_root / "overlay-layers/layers.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as podman:
        assert podman.stdout
        assert podman.stdout.readline() == b"held\n"
        with pytest.raises(InUseError, match="podman is at work"), no_new_uses(store.path, patience_s=0):
            pass
        podman.communicate()
    with no_new_uses(store.path, patience_s=0):
        pass


def test_image_that_podman_has_on_our_layers_counts_as_a_use(store: Store, graph_root: Path) -> None:
    put(store, "a", LOW)
    share(store, graph_root)
    (graph_root / "overlay-images").mkdir()
    (graph_root / "overlay-images/images.json").write_text(json.dumps([{"id": "x", "layer": hex_of(digest_of(LOW))}]))
    assert store.uses() == {digest_of(LOW)}


def test_all_layers_count_as_used_where_a_container_cannot_be_looked_at(
    store: Store, graph_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "a", LOW, HIGH)
    share(store, graph_root)

    def refused(*_: Any) -> str:
        raise PermissionError

    (graph_root / "overlay/of-other-ids").mkdir()
    monkeypatch.setattr(Path, "read_text", refused)
    assert store.uses() == {digest_of(LOW), digest_of(HIGH)}


@pytest.mark.parametrize("text", ["[", '{"a": 1}', '[{"layer": 1}]'])
def test_nothing_is_removed_while_it_is_unknown_what_podman_uses(text: str, store: Store, graph_root: Path) -> None:
    put(store, "a", LOW)
    share(store, graph_root)
    (graph_root / "overlay-images").mkdir()
    (graph_root / "overlay-images/images.json").write_text(text)
    with pytest.raises(ImageError, match="damaged"):
        prune(store, named=True)
    assert os.listdir(store.path / "layers")


@pytest.mark.parametrize("data", [None, b"", b"[]"])
def test_nothing_is_removed_without_the_list_of_podmans(data: bytes | None, store: Store, graph_root: Path) -> None:
    put(store, "a", LOW)
    share(store, graph_root)
    use(graph_root, store, records(store, "layers")[0]["id"])
    roots_file(store.path).unlink()
    if data is not None:
        roots_file(store.path).write_bytes(data)
    with pytest.raises(InvalidError, match=r"graph-roots\.json is .*remove it and run overlayfs share podman"):
        prune(store, named=True)
    roots_file(store.path).unlink(missing_ok=True)
    share(store, graph_root)
    prune(store, named=True)
    assert store.uses() == {digest_of(LOW)} and os.listdir(store.path / "layers")


def test_damaged_records_of_images_are_made_again(store: Store, graph_root: Path) -> None:
    put(store, "a", LOW)
    share(store, graph_root)
    before = records(store, "images")
    (store.path / "podman/overlay-images/images.json").write_bytes(b"")
    stamp_file(store.path).write_bytes(b"\xff")
    assert is_outdated(store.path)
    prune(store)
    assert records(store, "images") == before and not is_outdated(store.path)


def test_damaged_records_of_layers_are_made_again_once_they_are_removed(store: Store, graph_root: Path) -> None:
    put(store, "a", LOW)
    share(store, graph_root)
    path, before = store.path / "podman/overlay-layers/layers.json", records(store, "layers")
    path.write_bytes(b"")
    with pytest.raises(InvalidError, match=r"damaged: .*; remove it if podman has no container on an image that was"):
        prune(store)
    path.unlink()
    prune(store)
    assert records(store, "layers") == before


def test_repaired_layer_is_linked_again(store: Store, graph_root: Path) -> None:
    image = put(store, "a", LOW, HIGH)
    share(store, graph_root)
    (LayerStore(store).path(digest_of(HIGH)) / "high").write_bytes(b"changed")
    with store.alone():
        assert mend(store, verify(store))
    assert is_outdated(store.path)
    assert LayerStore(store).keys(image) is None
    publish(store)
    assert stacks(store) == {"docker.io/library/a:latest": ["high", "low"]}


def fill(directory: Path) -> None:
    """Take all space of a disk."""
    with suppress(OSError), open(directory / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def test_prune_frees_a_full_disk(small_disk: Callable[[str], Path], graph_root: Path) -> None:
    with Store.open(small_disk("size=2m") / "store") as store:
        for name, layer in {"a": LOW, "b": OTHER}.items():
            put(store, name, layer)
        share(store, graph_root)
        remove_image(store, "b")
        fill(store.path.parent)
        with pytest.raises(OSError, match="No space left"):
            publish(store)
        assert os.listdir(store.path / "tmp") == []
        assert stacks(store).keys() == {"docker.io/library/a:latest", "docker.io/library/b:latest"}
        prune(store)
        assert stacks(store) == {"docker.io/library/a:latest": ["low"]}
        assert os.listdir(store.path / "layers") == [hex_of(digest_of(LOW))]
