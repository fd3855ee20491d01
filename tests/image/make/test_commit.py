"""Images made of images: configurations, histories, layers that are shared, and nothing left where something fails."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from overlayfs.image.make.commit import Made, Making, append, commit, squash
from overlayfs.image.make.verbatim import copy_layer
from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_LAYER,
    OCI_MANIFEST,
    Manifest,
    dump,
)
from overlayfs.image.oci.errors import InvalidError, LimitError
from overlayfs.image.oci.limits import Limits
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Image, Store
from overlayfs.overlay.changes import Comparison
from tests.contract.tree import Tree, build, directory, file, whiteout

APP = Reference.parse("app:1")


class Site:
    """A store, a lower that is the image base:1, and an upper."""

    def __init__(self, top: Path, lower: Tree, upper: Tree) -> None:
        self.lower, self.upper = top / "lower", top / "upper"
        build(os.fsencode(self.lower), {"": directory(), **lower})
        build(os.fsencode(self.upper), {"": directory(), **upper})
        self.store = Store.open(top / "store")
        self.base = append(self.store, None, self.lower, Reference.parse("base:1"), Making(epoch=1)).image

    def commit(self, making: Making = Making(), base: Image | None = None) -> Made:  # noqa: B008
        with Comparison.open(os.fsencode(self.upper), [os.fsencode(self.lower)]) as comparison:
            return commit(self.store, base or self.base, comparison, APP, making)

    def raw(self, image: Image) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.store.read_blob(image.manifest.config))
        return document


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, {"a": file(b"1"), "b": file()}, {"a": file(b"2"), "b": whiteout()})
    yield made
    made.store.close()


def members(store: Store, image: Image, layer: int = -1) -> list[str]:
    with store.open_blob(image.manifest.layers[layer]) as blob, tarfile.open(fileobj=io.BytesIO(blob.read())) as tar:
        return tar.getnames()


def test_commit_adds_one_layer_and_shares_the_others(site: Site) -> None:
    image, summary = site.commit()
    assert image.manifest.layers[:-1] == site.base.manifest.layers
    assert image.config.rootfs.diff_ids[:-1] == site.base.config.rootfs.diff_ids
    assert members(site.store, image) == [".", "a", ".wh.b"]
    assert (summary.added, summary.modified, summary.deleted) == (0, 1, 1)
    assert site.store.find("app:1") == image


@pytest.mark.parametrize(("kind", "suffix"), [("gzip", "+gzip"), ("zstd", "+zstd"), (None, "")])
def test_compressions(site: Site, kind: str | None, suffix: str) -> None:
    image = site.commit(Making(compression=kind)).image
    assert image.manifest.layers[-1].media_type == OCI_LAYER + suffix
    raw = site.store.blob_path(image.manifest.layers[-1].digest).read_bytes()
    if kind is None:
        assert digest_of(raw) == image.config.rootfs.diff_ids[-1]


def test_configuration_says_who_and_why(site: Site) -> None:
    making = Making("why", "me", ["ENV A=1"], created_by="overlayfs commit", epoch=86400)
    image = site.commit(making).image
    assert (image.config.created, image.config.author) == ("1970-01-02T00:00:00Z", "me")
    assert image.config.config is not None and image.config.config.env == ["A=1"]
    assert image.config.history is not None
    last = image.config.history[-1]
    assert (last.created_by, last.comment, last.author, last.empty_layer) == ("overlayfs commit", "why", "me", False)
    assert len(image.config.history) == 2


def test_nothing_changed_adds_no_layer(tmp_path: Path) -> None:
    site = Site(tmp_path, {"a": file(b"1")}, {"a": file(b"1")})
    image, summary = site.commit(Making(changes=["CMD x"]))
    assert summary.is_empty
    assert image.manifest.layers == site.base.manifest.layers
    assert image.config.history is not None and image.config.history[-1].empty_layer
    site.store.close()


def test_members_of_a_configuration_that_we_do_not_know_are_kept(site: Site) -> None:
    raw = site.raw(site.base)
    raw |= {"x-other": {"y": [1]}, "container": "gone", "history": None}
    raw["config"] = {"Healthcheck": {"Test": ["NONE"]}, "OnBuild": ["RUN x"], "Env": ["A=1"], "Labels": None}
    config = site.store.add_blob(json.dumps(raw).encode(), DOCKER_CONFIG)
    layers = [layer_as_docker(layer) for layer in site.base.manifest.layers]
    manifest = Manifest(schema_version=2, media_type=DOCKER_MANIFEST, config=config, layers=layers)
    base = site.store.load_image(site.store.add_blob(dump(manifest), DOCKER_MANIFEST))

    image = site.commit(Making(changes=["ENV B=2", "USER me"]), base).image
    made = site.raw(image)
    assert made["x-other"] == {"y": [1]} and "container" not in made
    assert made["config"] == {
        "Env": ["A=1", "B=2"],
        "User": "me",
        "Healthcheck": {"Test": ["NONE"]},
        "OnBuild": ["RUN x"],
    }
    assert len(made["history"]) == 2
    assert image.manifest.media_type == image.descriptor.media_type == OCI_MANIFEST
    assert [layer.media_type for layer in image.manifest.layers] == [f"{OCI_LAYER}+gzip"] * 2
    assert image.manifest.layers[0].digest == site.base.manifest.layers[0].digest


def layer_as_docker(layer: Any) -> Any:
    from msgspec.structs import replace

    return replace(layer, media_type=f"{DOCKER_LAYER}.gzip")


def test_reproducible_with_an_epoch(tmp_path: Path) -> None:
    made = []
    for number in range(2):
        site = Site(tmp_path / str(number), {"a": file()}, {f"f{n}": file(b"x" * n) for n in range(40)})
        os.utime(site.upper / "f1")  # now, which is later than the epoch
        made.append(site.commit(Making(epoch=1_400_000_000)).image.descriptor.digest)
        site.store.close()
    assert made[0] == made[1]


def test_what_is_wrong_is_found_before_the_work(site: Site) -> None:
    with pytest.raises(InvalidError, match="--change 'RUN x'"):
        site.commit(Making(changes=["RUN x"]))


def test_failed_commit_leaves_nothing(site: Site) -> None:
    before = sorted(os.listdir(site.store.path / "blobs" / "sha256"))
    (site.upper / "z").mkdir()
    (site.upper / "z" / ".wh.x").write_bytes(b"not a mark")
    with pytest.raises(InvalidError, match=r"/z/\.wh\.x"):
        site.commit()
    assert sorted(os.listdir(site.store.path / "blobs" / "sha256")) == before
    assert os.listdir(site.store.path / "tmp") == []
    assert [image.reference for image in site.store.images()] == [site.base.reference]


def test_disk_that_is_full_is_said_and_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from overlayfs.image.store.blobs import BlobWriter

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    (site.upper / "large").write_bytes(os.urandom(20 << 20))
    monkeypatch.setattr(BlobWriter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        site.commit()
    assert os.listdir(site.store.path / "tmp") == []


def test_squash_keeps_the_history(site: Site) -> None:
    image = squash(site.store, site.commit().image, APP, Making("one")).image
    assert members(site.store, image) == [".", "a"]
    assert image.config.history is not None
    assert [step.empty_layer for step in image.config.history] == [True, True, False]
    assert len(image.config.rootfs.diff_ids) == 1


def test_append_of_a_directory_leaves_the_root_alone(site: Site, tmp_path: Path) -> None:
    build(os.fsencode(tmp_path / "more"), {"": directory(0o700, 9, 9), "opt/x": file(b"x", 0o644, 9, 9)})
    image = append(site.store, site.base, tmp_path / "more", None, Making(), owner=(0, 5)).image
    with (
        site.store.open_blob(image.manifest.layers[-1]) as blob,
        tarfile.open(fileobj=io.BytesIO(blob.read())) as tar,
    ):
        assert [(m.name, m.uid, m.gid) for m in tar] == [("opt", 0, 5), ("opt/x", 0, 5)]


def tar_of(path: Path, *added: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in added:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member(name: str, size: int = 0, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.linkname = size, link
    made.type = tarfile.LNKTYPE if link else tarfile.REGTYPE
    return made


def test_append_of_a_tar_takes_it_as_it_is(site: Site, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "more.tgz", member("x", 3_000_000), member(".wh.b"), member("y", 0, "x"))
    image, summary = append(site.store, site.base, path, None, Making(compression=None))
    assert digest_of(gzip.decompress(path.read_bytes())) == image.config.rootfs.diff_ids[-1]
    assert (summary.added, summary.content) == (3, 3_000_000)


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ([member("x"), member("x")], "/x is there twice"),
        ([member("y", 0, "x")], "/y is a hard link to /x, not in it"),
        ([member("../x")], "x"),
        ([member("x"), member("x/y")], "'x' above it is no directory"),
        ([member(".wh.x/y")], "a whiteout has nothing in it"),
    ],
)
def test_tar_that_makes_no_layer(site: Site, tmp_path: Path, added: list[tarfile.TarInfo], words: str) -> None:
    path = tar_of(tmp_path / "more.tgz", *added)
    before = site.store.entries()
    for reference in (None, Reference.parse("base:1")):
        with pytest.raises(InvalidError, match=words):
            append(site.store, site.base, path, reference, Making())
    assert site.store.entries() == before
    assert os.listdir(site.store.path / "tmp") == []


def test_tar_that_would_be_too_large_to_unpack_is_refused(tmp_path: Path) -> None:
    """By its data; zeros are none."""
    noise, zeros = tmp_path / "noise.tar", tmp_path / "zeros.tar"
    with tarfile.open(noise, "w") as tar:
        tar.addfile(member("noise", 3_000_000), io.BytesIO(b"noise" * 600_000))
    tar_of(zeros, member("zeros", 3_000_000))
    limits = Limits(disk_size=1 << 20)
    copy_layer(zeros, io.BytesIO(), limits)
    with pytest.raises(LimitError, match="'noise' makes it take more than"):
        copy_layer(noise, io.BytesIO(), limits)
