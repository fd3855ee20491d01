"""Documents that podman cannot read: each case was tried with podman 4.3, which then lists no image at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from overlayfs.image.oci.documents import DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, OCI_CONFIG, OCI_LAYER, Manifest
from overlayfs.image.oci.documents import parse as parsed
from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.store.podman_documents import check_readable

DIGEST = "sha256:" + "0" * 64
CONFIG = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}
LAYER = {"mediaType": OCI_LAYER, "digest": DIGEST, "size": 3}
MANIFEST = {"schemaVersion": 2, "config": LAYER | {"mediaType": OCI_CONFIG}, "layers": [LAYER]}


def check(manifest: dict[str, Any], config: dict[str, Any] | str) -> None:
    """With these members, or this text, in place of those of sound documents."""
    data = json.dumps(MANIFEST | manifest).encode()
    text = config if isinstance(config, str) else json.dumps(CONFIG | config)
    check_readable(parsed(data, Manifest, "the manifest"), data, text.encode())


@pytest.mark.parametrize(
    "config",
    [
        *({"created": time} for time in ("", "yesterday", "2024-13-01T00:00:00Z", "2024-02-03 04:05:06", 5)),
        *({"created": time} for time in ("2024-02-03T24:00:00Z", "2024-02-03T04:05:06z", "2024-02-03T04:05:06Z\n")),
        *({"size": size} for size in (1.5, 1.0, True, "1", 1 << 63)),
        {"history": [{"created": "x"}]},
        {"history": {}},
        {"CREATED": "x"},
        {"\u017fize": "x"},
        {"rootfs": {"type": "layers", "diff_ids": [DIGEST], "Type": 4}},
        *({"config": {"Healthcheck": health}} for health in (5, {"Interval": "1s"}, {"Test": "x"})),
        {"config": {"StopTimeout": "3"}},
        {"config": {"Volumes": {"/a": []}}},
        {"config": {"OnBuild": [5]}},
        {"container_config": {"Env": 4}},
        {"os.features": "x"},
        *({name: 5} for name in ("id", "parent", "container", "docker_version")),
        "[]",
        '{"created": "x", "created": null}',
        '{"a":' * 100_000 + "1" + "}" * 100_000,
    ],
)
def test_configuration_is_refused(config: dict[str, Any] | str) -> None:
    with pytest.raises(InvalidError, match="podman cannot read its configuration"):
        check({}, config)


@pytest.mark.parametrize(
    "manifest",
    [
        {"history": []},
        {"subject": 5},
        {"SchemaVersion": "2"},
        {"Layers": 5},
        *({"layers": [LAYER | more]} for more in ({"urls": 5}, {"data": 5}, {"data": "?"})),
        {"mediaType": DOCKER_MANIFEST},
        {"config": LAYER | {"mediaType": DOCKER_CONFIG}},
    ],
)
def test_manifest_is_refused(manifest: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="podman"):
        check(manifest, {})


def test_other_documents_are_not() -> None:
    times = ("2024-02-29T23:59:59.123456789+05:30", "0001-01-01T00:00:00Z", None)
    labels = {"A": "1", "a": "2", "empty": None}
    check(
        {
            "layers": [LAYER | {"urls": None, "data": "YQ==", "annotations": {"A": "", "a": ""}}],
            "x": 1.5,
        },
        {
            "history": [{"created": time, "author": "me"} for time in times] + [None],
            "config": {"Labels": labels, "Volumes": {"/v": {}, "/w": None}, "StopTimeout": 3, "Unknown": 1.5},
            "moby.buildkit.cache.v0": 5,
            "container_config": None,
            "size": 7,
        },
    )
    docker = {"mediaType": DOCKER_MANIFEST, "config": LAYER | {"mediaType": DOCKER_CONFIG}}
    check({**docker, "layers": [LAYER | {"mediaType": f"{DOCKER_LAYER}.gzip"}]}, {})
