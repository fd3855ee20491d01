"""What do the documents of an image say? Descriptors, manifests, indexes and configurations.

OCI image specification v1.1 (descriptor.md, manifest.md, image-index.md, config.md) and Docker's schema 2, whose
documents have the same shape. A document is parsed once; the members used here are checked strictly, unknown members
are dropped. A document whose digest must not change is therefore kept as the bytes in which it came. Optional members
may be null (see nulls.py), and an empty string means that the member is absent; neither is ever written.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from .digest import Digest, parse_digest
from .errors import InvalidError, LimitError
from .nulls import without_nulls

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
LAYER_TYPES: Final[dict[str, str | None]] = {
    OCI_LAYER: None,
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    DOCKER_LAYER: None,
    f"{DOCKER_LAYER}.gzip": "gzip",
    f"{DOCKER_LAYER}.zstd": "zstd",
}
"""The compression of each layer media type. Foreign ("nondistributable") layers are refused: CVE-2020-15157."""

REF_NAME: Final = "org.opencontainers.image.ref.name"
MAX_DOCUMENT: Final = 4 << 20
"""Bytes: the largest manifest that registries accept."""


class Platform(Struct, frozen=True, omit_defaults=True):
    architecture: str
    os: str
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")


class Descriptor(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Refers to a blob by media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: dict[str, str] = {}
    platform: Platform | None = None
    artifact_type: str = ""


class Manifest(Struct, frozen=True, rename="camel", omit_defaults=True):
    """One image: its configuration and its layers, bottom first."""

    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""
    annotations: dict[str, str] = {}
    artifact_type: str = ""


class Index(Struct, frozen=True, rename="camel", omit_defaults=True):
    """One image for several platforms, or all images of a layout."""

    schema_version: int
    manifests: list[Descriptor]
    media_type: str = ""
    annotations: dict[str, str] = {}


class HealthConfig(Struct, frozen=True, rename="pascal", omit_defaults=True):
    """How a container is checked, as docker has it (moby, HealthConfig); durations in nanoseconds, 0 for the default.

    `test` is `["CMD", …]`, `["CMD-SHELL", TEXT]` or `["NONE"]`.
    """

    test: list[str] = []
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    retries: int = 0


class RunConfig(Struct, frozen=True, rename="pascal", omit_defaults=True):
    """The program to run and its user: the `config` member of an image configuration."""

    user: str = ""
    env: list[str] = []
    entrypoint: list[str] = []
    cmd: list[str] = []
    working_dir: str = ""
    labels: dict[str, str] = {}
    exposed_ports: dict[str, dict[str, object]] = {}
    volumes: dict[str, dict[str, object]] = {}
    stop_signal: str = ""
    shell: list[str] = []
    healthcheck: HealthConfig | None = None


class RootFS(Struct, frozen=True):
    """diffIDs of the layers, bottom first; docker leaves them out where there is none."""

    type: str
    diff_ids: list[Digest] = []


class History(Struct, frozen=True, omit_defaults=True):
    """One build step, with the layer it made or without one."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(Struct, frozen=True, omit_defaults=True):
    """The configuration of an image; its digest is the image's ID."""

    architecture: str
    os: str
    rootfs: RootFS
    config: RunConfig = RunConfig()
    history: list[History] = []
    created: str = ""
    author: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")


Document = TypeVar("Document")


def parse(data: bytes, kind: type[Document], what: str) -> Document:
    """Parse and check one document; `what` names it in errors (InvalidError, LimitError)."""
    members = parse_members(data, kind, what)
    try:
        document = msgspec.convert(members, kind)
        _check(document, members)
    except (msgspec.ValidationError, InvalidError) as error:
        raise InvalidError(f"{what} is not valid: {error}") from None
    return document


def parse_members(data: bytes, kind: type[Document], what: str) -> Any:
    """The document as decoded JSON without nulls, for editing: members that `kind` does not know are kept."""
    if len(data) > MAX_DOCUMENT:
        raise LimitError(f"{what} has {len(data)} bytes; at most {MAX_DOCUMENT} are allowed")
    try:
        return without_nulls(msgspec.json.decode(data), kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"{what} is not valid: {error}") from None


def dump(document: Struct) -> bytes:
    """The document as compact JSON."""
    return msgspec.json.encode(document)


def _check(document: object, members: object) -> None:
    match document:
        case Descriptor():
            parse_digest(document.digest)
            if document.size < 0:
                raise InvalidError(f"the size {document.size} is negative")
        case Manifest():
            _check_is_unambiguous(document.media_type, MANIFEST_TYPES, members, "manifests")
            for descriptor in (document.config, *document.layers):
                _check(descriptor, None)
        case Index():
            _check_is_unambiguous(document.media_type, INDEX_TYPES, members, "layers")
            for descriptor in document.manifests:
                _check(descriptor, None)
        case ImageConfig():
            for diff_id in document.rootfs.diff_ids:
                parse_digest(diff_id)


def _check_is_unambiguous(media_type: str, allowed: frozenset[str], members: object, other: str) -> None:
    """A document that is valid both as an index and as a manifest could name two images: CVE-2021-41190."""
    if media_type and media_type not in allowed:
        raise InvalidError(f"its mediaType says {media_type!r}")
    if isinstance(members, dict) and (other in members or (other == "manifests" and "fsLayers" in members)):
        raise InvalidError("it is both a manifest and an index")


def check_layer_count(manifest: Manifest, config: ImageConfig, what: str) -> None:
    """Manifest and configuration must list the same number of layers. Raises InvalidError."""
    layers, diff_ids = len(manifest.layers), len(config.rootfs.diff_ids)
    if layers != diff_ids:
        raise InvalidError(f"{what}: its manifest has {layers} layers, its configuration {diff_ids}")


_UNKNOWN_STEP: Final = History()


def layer_steps(config: ImageConfig) -> list[History]:
    """The build step of each layer, bottom first; empty steps where the history does not match the layers.

    OCI image specification, config.md: the steps without `empty_layer` made the layers, in order.
    """
    layers = len(config.rootfs.diff_ids)
    steps = [step for step in config.history if not step.empty_layer]
    return steps if len(steps) == layers else [_UNKNOWN_STEP] * layers
