"""Documents as programs in Go write them: null and empty strings where something is absent, in every document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overlayfs.image.archive.docker import DockerImage
from overlayfs.image.archive.load import load
from overlayfs.image.make.commit import Making, append
from overlayfs.image.oci.digest import digest_of
from overlayfs.image.oci.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    History,
    ImageConfig,
    Index,
    Manifest,
    RunConfig,
    dump,
    parse,
)
from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Store
from tests.image.making import LayoutFiles, tar

DIGEST = digest_of(b"x")
RUN_MEMBERS: dict[str, Any] = dict.fromkeys(
    (
        *("User", "Env", "Entrypoint", "Cmd", "WorkingDir", "Labels", "ExposedPorts", "Volumes", "StopSignal"),
        *("Shell", "Healthcheck", "OnBuild"),
    )
)
STEP: dict[str, Any] = dict.fromkeys(("created", "created_by", "author", "comment", "empty_layer"))
CONFIG: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
    **dict.fromkeys(("config", "history", "created", "author", "variant", "os.version", "os.features", "unknown")),
}
DESCRIPTOR: dict[str, Any] = {
    "mediaType": OCI_LAYER,
    "digest": DIGEST,
    "size": 1,
    **dict.fromkeys(("annotations", "platform", "artifactType", "urls", "data")),
}
PLATFORM: dict[str, Any] = {"architecture": "arm", "os": "linux", "variant": None, "os.version": None}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": None,
    "config": {**DESCRIPTOR, "mediaType": OCI_CONFIG},
    "layers": [DESCRIPTOR],
    "annotations": None,
    "subject": None,
}


def read(kind: type[Any], document: Any) -> Any:
    return parse(json.dumps(document).encode(), kind, "it")


def without_nulls(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: without_nulls(member) for name, member in document.items() if member is not None}
    return [without_nulls(item) for item in document] if isinstance(document, list) else document


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        (ImageConfig, CONFIG),
        (ImageConfig, {**CONFIG, "config": RUN_MEMBERS, "history": [STEP]}),
        (Descriptor, DESCRIPTOR),
        (Descriptor, {**DESCRIPTOR, "platform": PLATFORM}),
        (Manifest, MANIFEST),
        (Index, {"schemaVersion": 2, "mediaType": None, "manifests": [DESCRIPTOR], "annotations": None}),
        (DockerImage, {"Config": "c.json", "Layers": [], "RepoTags": None}),
    ],
)
def test_null_is_the_same_as_absent(kind: type[Any], document: Any) -> None:
    parsed = read(kind, document)
    assert parsed == read(kind, without_nulls(document))
    assert b"null" not in dump(parsed)


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        (ImageConfig, {**CONFIG, "created": "", "author": "", "variant": "", "os.version": ""}),
        (Manifest, {**MANIFEST, "mediaType": ""}),
        (Index, {"schemaVersion": 2, "mediaType": "", "manifests": []}),
    ],
)
def test_empty_string_is_the_same_as_absent(kind: type[Any], document: Any) -> None:
    absent = {name: member for name, member in document.items() if member != ""}
    assert read(kind, document) == read(kind, absent)
    assert b'""' not in dump(read(kind, document))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"Volumes": {"/data": None}}, RunConfig(volumes={"/data": {}})),
        ({"ExposedPorts": {"80/tcp": None}}, RunConfig(exposed_ports={"80/tcp": {}})),
        ({"Labels": {"a": None, "b": "c"}}, RunConfig(labels={"a": "", "b": "c"})),
        ({"Env": [None, "A=b"]}, RunConfig(env=["", "A=b"])),
    ],
)
def test_null_in_a_list_or_map_is_an_empty_value(run: dict[str, Any], expected: RunConfig) -> None:
    assert read(ImageConfig, {**CONFIG, "config": run}).config == expected


def test_null_step_of_a_history_is_a_step_that_tells_nothing() -> None:
    assert read(ImageConfig, {**CONFIG, "history": [None]}).history == [History()]


@pytest.mark.parametrize(
    ("kind", "document", "member"),
    [
        (Index, {"schemaVersion": 2, "manifests": None}, "manifests"),
        (Manifest, {**MANIFEST, "layers": None}, "layers"),
    ],
)
def test_null_list_is_an_empty_one_and_is_written_as_such(kind: type[Any], document: Any, member: str) -> None:
    assert json.loads(dump(read(kind, document)))[member] == []


@pytest.mark.parametrize("root", [{"type": "layers"}, {"type": "layers", "diff_ids": None}])
def test_configuration_without_diff_ids_has_no_layers(root: Any) -> None:
    config = read(ImageConfig, {**CONFIG, "rootfs": root})
    assert json.loads(dump(config))["rootfs"] == {"type": "layers", "diff_ids": []}


@pytest.mark.parametrize(
    ("kind", "document", "complaint"),
    [
        (ImageConfig, {**CONFIG, "architecture": None}, "missing required field `architecture`"),
        (ImageConfig, {**CONFIG, "rootfs": None}, "missing required field `rootfs`"),
        (ImageConfig, {**CONFIG, "rootfs": {"type": "layers", "diff_ids": [None]}}, "not a sha256 digest"),
        (Descriptor, {**DESCRIPTOR, "digest": None}, "missing required field `digest`"),
        (Descriptor, {**DESCRIPTOR, "size": None}, "missing required field `size`"),
        (Manifest, {**MANIFEST, "config": None}, "missing required field `config`"),
        (Manifest, {**MANIFEST, "layers": [None]}, r"missing required field .* at `\$\.layers\[0\]`"),
        (Index, {"schemaVersion": None, "manifests": []}, "missing required field `schemaVersion`"),
        (Index, None, "Expected `object`, got `null`"),
    ],
)
def test_required_member_that_is_null_is_missing(kind: type[Any], document: Any, complaint: str) -> None:
    with pytest.raises(InvalidError, match=f"it is not valid: .*{complaint}") as refused:
        read(kind, document)
    assert "\n" not in str(refused.value)


def test_image_full_of_nulls_is_built_upon_and_the_new_one_has_none(tmp_path: Path) -> None:
    """Only members that are none of ours stay as they were."""
    layer = tar({"a": b"1"})
    nulls: dict[str, Any] = {name: member for name, member in CONFIG.items() if member is None}
    made = LayoutFiles()
    made.image("docker.io/library/x:1", layer, **(nulls | {"history": [STEP], "config": RUN_MEMBERS}))
    layout = tmp_path / "layout"
    for name, data in made.finished().items():
        (layout / name).parent.mkdir(parents=True, exist_ok=True)
        (layout / name).write_bytes(data)
    (tmp_path / "more").mkdir()
    with Store.open(tmp_path / "store") as store:
        (base,) = load(store, layout)
        changes = ("LABEL a=b", "VOLUME /v", "ENV A=b")
        image = append(store, base, tmp_path / "more", Reference.parse("y:1"), Making(changes=changes)).image
        raw = json.loads(store.read_blob(image.manifest.config))
        manifest = json.loads(store.read_blob(image.descriptor))
    assert [name for name, member in raw.items() if member is None] == ["os.features", "unknown"]
    assert raw["config"] == {
        "Env": ["A=b"],
        "Labels": {"a": "b"},
        "Volumes": {"/v": {}},
        "OnBuild": None,
    }
    assert raw["history"][0] == {}
    assert manifest["mediaType"] == OCI_MANIFEST
