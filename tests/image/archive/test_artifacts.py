"""Signatures, attestations and other artifacts in a layout: skipped beside an image, refused alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from overlayfs.image.archive.load import load
from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from overlayfs.image.oci.errors import InvalidError, NotFoundError
from overlayfs.image.store.store import Store
from tests.image.archive.test_load_save import is_untouched, layout, names
from tests.image.making import LayoutFiles, tar

A, B = tar({"a": b"a" * 5000}), tar({"b": b"b"})


def artifact(files: LayoutFiles, *layers: str, config: str = OCI_CONFIG, **members: Any) -> dict[str, Any]:
    """Add a manifest with layers of these types to the blobs; its descriptor."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": files.blob(b"{}", config),
        "layers": [files.blob(kind.encode(), kind) for kind in layers],
        **members,
    }
    return files.blob(json.dumps(manifest).encode(), OCI_MANIFEST)


EMPTY = "application/vnd.oci.empty.v1+json"
SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"
UNKNOWN = {"platform": {"os": "unknown", "architecture": "unknown"}}
ARTIFACTS: dict[str, tuple[Callable[[LayoutFiles], dict[str, Any]], str]] = {
    "signature": (lambda files: artifact(files, SIGNATURE), SIGNATURE),
    "attestation": (lambda files: artifact(files, "application/vnd.in-toto+json"), "application/vnd.in-toto+json"),
    "attestation by its platform": (
        lambda files: artifact(files, "application/vnd.in-toto+json") | UNKNOWN,
        "an attestation: its platform is unknown/unknown",
    ),
    "SBOM": (lambda files: artifact(files, EMPTY, config=EMPTY, artifactType="text/spdx+json"), "text/spdx+json"),
    "chart": (
        lambda files: artifact(files, OCI_LAYER, config="application/vnd.cncf.helm.config.v1+json"),
        "application/vnd.cncf.helm.config.v1+json",
    ),
    "manifest of another kind": (
        lambda files: files.blob(b"{}", "application/vnd.oci.artifact.manifest.v1+json"),
        "application/vnd.oci.artifact.manifest.v1+json",
    ),
    "manifest that is not there": (
        lambda _: {"mediaType": OCI_MANIFEST, "digest": digest_of(b"absent"), "size": 6, **UNKNOWN},
        "unknown/unknown",
    ),
}


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("case", ARTIFACTS)
def test_artifact_beside_an_image_is_skipped_with_one_line(store: Store, case: str, position: int) -> None:
    make, named = ARTIFACTS[case]
    files, told = layout(), list[str]()
    beside = make(files) | {"annotations": {"org.opencontainers.image.ref.name": "sha256-1234.sig"}}
    files.manifests.insert(position, beside)
    images = load(store, io.BytesIO(tar(files.finished())), tell=told.append)
    assert names(images) == ["x:1"]
    assert [entry.descriptor.digest for entry in store.entries()] == [images[0].digest]
    assert not store.has_blob(beside["digest"])
    (line,) = told
    assert beside["digest"] in line and named in line


def test_given_name_is_that_of_the_only_image(store: Store) -> None:
    files = layout()
    files.manifests.append(artifact(files, SIGNATURE))
    assert names(load(store, io.BytesIO(tar(files.finished())), "mine:1")) == ["mine:1"]


@pytest.mark.parametrize("case", ARTIFACTS)
def test_artifact_alone_is_refused_by_name(store: Store, case: str) -> None:
    make, named = ARTIFACTS[case]
    files, told = LayoutFiles(), list[str]()
    files.manifests = [make(files)]
    with pytest.raises(NotFoundError, match="holds no image; ") as refused:
        load(store, io.BytesIO(tar(files.finished())), tell=told.append)
    assert named in str(refused.value) and "\n" not in str(refused.value)
    assert told == []
    assert is_untouched(store)


def test_many_artifacts_alone_are_refused_in_a_short_line(store: Store) -> None:
    files = LayoutFiles()
    files.manifests = [artifact(files, SIGNATURE, x=number) for number in range(100)]
    with pytest.raises(NotFoundError) as refused:
        load(store, io.BytesIO(tar(files.finished())))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("case", ["signature", "attestation", "attestation by its platform", "SBOM"])
def test_artifact_within_an_index_stays_out(store: Store, case: str) -> None:
    files = LayoutFiles()
    members = [ARTIFACTS[case][0](files), files.image(None, A)]
    root = files.blob(json.dumps({"schemaVersion": 2, "manifests": members}).encode(), OCI_INDEX)
    files.manifests = [root | {"annotations": {"org.opencontainers.image.ref.name": "multi:1"}}]
    (image,) = load(store, io.BytesIO(tar(files.finished())))
    assert (image.digest, image.descriptor.digest) == (root["digest"], members[1]["digest"])
    assert not store.has_blob(members[0]["digest"])


def test_index_of_artifacts_alone_is_refused(store: Store) -> None:
    files = LayoutFiles()
    members = [artifact(files, SIGNATURE)]
    files.manifests = [files.blob(json.dumps({"schemaVersion": 2, "manifests": members}).encode(), OCI_INDEX)]
    with pytest.raises(NotFoundError, match=r"no image of the index .* is in it"):
        load(store, io.BytesIO(tar(files.finished())))
    assert is_untouched(store)


def test_image_with_one_layer_of_another_kind_is_refused(store: Store) -> None:
    """It is an image that cannot be used, not something beside one."""
    files = layout()
    files.manifests.append(artifact(files, OCI_LAYER, SIGNATURE))
    with pytest.raises(InvalidError, match="not supported"):
        load(store, io.BytesIO(tar(files.finished())))
