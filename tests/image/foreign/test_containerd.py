"""Images in the storage of containerd, laid out by hand: what is missing, odd or hostile in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from overlayfs.image.foreign.containerd import images_of_containerd
from overlayfs.image.foreign.stored_image import StoredImage, find, trees
from overlayfs.image.oci.digest import chain_ids, digest_of, hex_of
from overlayfs.image.oci.documents import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from overlayfs.image.oci.errors import ImageError, InvalidError
from overlayfs.image.oci.platforms import this_platform
from tests.image.foreign.test_bolt import at, database, inline, leaf

DIFF_IDS = [digest_of(b"low"), digest_of(b"top")]
CHAIN = chain_ids(DIFF_IDS)
Nested = Mapping[str, "bytes | Nested"]
COMMITTED, ACTIVE = b"\3", b"\2"


def entries(nested: Nested) -> list[tuple[bytes, bytes, bool]]:
    return [
        (key.encode(), value if isinstance(value, bytes) else inline(*entries(value)), not isinstance(value, bytes))
        for key, value in sorted(nested.items())
    ]


def write_database(path: Path, nested: Nested) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(database(leaf([(b"v1", at(4), True)], 3), leaf(entries(nested), 4)))


class Storage:
    """A root directory of containerd."""

    def __init__(self, root: Path) -> None:
        self.root, self.content = root, root / "io.containerd.content.v1.content/blobs/sha256"
        self.content.mkdir(parents=True)
        self.namespaces: dict[str, Any] = {}

    def document(self, document: Any, media_type: str) -> dict[str, Any]:
        data = json.dumps(document).encode()
        (self.content / hex_of(digest_of(data))).write_bytes(data)
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def manifest(self, **config: Any) -> dict[str, Any]:
        config = {"architecture": "x", "os": "y", "rootfs": {"type": "layers", "diff_ids": DIFF_IDS}} | config
        layers = [{"mediaType": OCI_LAYER, "digest": digest, "size": 7} for digest in DIFF_IDS]
        described = self.document(config, OCI_CONFIG)
        return self.document({"schemaVersion": 2, "config": described, "layers": layers}, OCI_MANIFEST)

    def name(self, name: str, target: Mapping[str, Any], namespace: str = "default") -> None:
        record = {"target": {"digest": target["digest"].encode(), "mediatype": target["mediaType"].encode()}}
        self.namespaces.setdefault(namespace, {}).setdefault("images", {})[name] = record

    def unpack(self, snapshots: Nested | None = None, namespace: str = "default") -> None:
        """Let the overlayfs snapshotter have both layers, as snapshots 1 and 2."""
        names = {chain: {"name": b"s%d" % number} for number, chain in enumerate(CHAIN, 1)}
        self.namespaces.setdefault(namespace, {})["snapshots"] = {"overlayfs": names}
        snapshots = snapshots or {
            "s1": {"id": b"\1", "kind": COMMITTED},
            "s2": {"id": b"\x82\1", "kind": COMMITTED, "parent": b"s1"},
        }
        directory = self.root / "io.containerd.snapshotter.v1.overlayfs"
        write_database(directory / "metadata.db", {"snapshots": snapshots})
        for number in (1, 130):
            (directory / "snapshots" / str(number) / "fs").mkdir(parents=True, exist_ok=True)

    def images(self) -> list[StoredImage]:
        write_database(self.root / "io.containerd.metadata.v1.bolt/meta.db", self.namespaces)
        return list(images_of_containerd(self.root, {}, "default"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "root")


def test_layers_stand_top_first(storage: Storage) -> None:
    storage.name("docker.io/library/a:1", storage.manifest())
    storage.unpack()
    image = find(storage.images(), "a:1")
    assert [path.parent.name for path in trees(image)] == ["130", "1"]
    assert image.size == 14


def test_image_of_this_machine_is_chosen_from_an_index(storage: Storage) -> None:
    here = this_platform()
    platforms = ({"architecture": "s390", "os": "plan9"}, {"architecture": here.architecture, "os": here.os})
    members = [storage.manifest(author=str(n)) | {"platform": platform} for n, platform in enumerate(platforms)]
    storage.name("a", storage.document({"schemaVersion": 2, "manifests": members}, OCI_INDEX))
    storage.unpack()
    (image,) = storage.images()
    manifest = json.loads((storage.content / hex_of(members[1]["digest"])).read_bytes())
    assert image.identity == hex_of(manifest["config"]["digest"])


def test_names_of_one_image_are_joined_and_the_own_namespace_comes_first(storage: Storage) -> None:
    one, other = storage.manifest(), storage.manifest(author="other")
    storage.name("same:latest", other, "a-first-one")
    storage.name("same:latest", one)
    storage.name("again:latest", one, "k8s.io")
    storage.unpack()
    images = storage.images()
    assert sorted(image.names for image in images) == [("same:latest",), ("same:latest", "again:latest")]
    assert len(trees(find(images, "same"))) == 2
    with pytest.raises(ImageError, match="not unpacked"):
        trees(next(image for image in images if len(image.names) == 1))


def test_what_is_no_image_is_listed_and_not_mounted(storage: Storage) -> None:
    absent = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"absent")}
    artifact = storage.document(
        {"schemaVersion": 2, "config": storage.document({}, "application/x"), "layers": []}, OCI_MANIFEST
    )
    changed = storage.manifest()
    path = storage.content / hex_of(changed["digest"])
    path.write_bytes(path.read_bytes() + b" ")
    strange = {"mediaType": OCI_MANIFEST, "digest": "sha512:../../../etc/passwd"}
    for name, target in {"absent": absent, "artifact": artifact, "changed": changed, "strange": strange}.items():
        storage.name(name, target)
    images = storage.images()
    assert len(images) == 4
    for image in images:
        with pytest.raises(ImageError, match=image.names[0]):
            trees(image)


@pytest.mark.parametrize(
    "snapshots",
    [
        {"s2": {"id": b"\2", "kind": COMMITTED, "parent": b"s1"}},
        {"s2": {"id": b"\2", "kind": COMMITTED, "parent": b"s2"}},
        {"s2": {"id": b"\2", "kind": ACTIVE}},
    ],
)
def test_layers_that_are_lost_or_below_themselves_are_refused(snapshots: Nested, storage: Storage) -> None:
    storage.name("a", storage.manifest())
    storage.unpack(snapshots)
    (image,) = storage.images()
    with pytest.raises(ImageError):
        trees(image)


@pytest.mark.parametrize("number", [b"", b"\x80", b"\x80" * 10 + b"\1"])
def test_id_that_is_no_number_is_refused(number: bytes, storage: Storage) -> None:
    storage.unpack({"s1": {"id": number, "kind": COMMITTED}})
    with pytest.raises(InvalidError, match="not a number"):
        storage.images()


def test_storage_without_images_has_none(storage: Storage, tmp_path: Path) -> None:
    assert storage.images() == []
    assert list(images_of_containerd(tmp_path / "none", {}, "default")) == []


def test_damaged_database_of_our_snapshotter_is_refused_and_nothing_is_written(
    storage: Storage, tmp_path: Path
) -> None:
    storage.images()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/metadata.db").write_bytes(b"x" * 5000)
    with pytest.raises(ImageError, match=r"metadata\.db"):
        list(images_of_containerd(storage.root, {"x": tmp_path / "ours"}, "default"))
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["metadata.db"]
