"""Which manifests describe something other than an image? Signatures, attestations, SBOMs and other artifacts.

OCI image specification v1.1, manifest.md (Guidelines for Artifact Usage); BuildKit's attestation-storage.md gives
attestations the platform "unknown". A cosign signature has the configuration type of an image, but layer types of its
own.
"""

from __future__ import annotations

from typing import Final

from .documents import DOCKER_CONFIG, MANIFEST_TYPES, OCI_CONFIG, Descriptor, Manifest
from .errors import InvalidError

CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_LAYERS: Final = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
"""The common prefix of all layer media types, including foreign and encrypted layers, which are not supported."""


class ArtifactError(InvalidError):
    """The name refers to an artifact that is not an image; the same archive may hold images too."""


def names_image(descriptor: Descriptor) -> bool:
    """Whether this member of an index is an image, judged by its descriptor alone; a nested index is not one."""
    is_artifact = is_attestation(descriptor) or _names_artifact(descriptor)
    return descriptor.media_type in MANIFEST_TYPES and not is_artifact


def is_attestation(descriptor: Descriptor) -> bool:
    return descriptor.platform is not None and descriptor.platform.os == "unknown"


def _names_artifact(descriptor: Descriptor) -> bool:
    """An artifact without an `artifactType` has the media type of its configuration, as an image does."""
    return bool(descriptor.artifact_type) and descriptor.artifact_type not in CONFIG_TYPES


def artifact_type(manifest: Manifest) -> str:
    """The artifact type of a manifest; "" for an image, even one with unsupported layers."""
    if manifest.config.media_type not in CONFIG_TYPES:
        return manifest.artifact_type or manifest.config.media_type
    types = [layer.media_type for layer in manifest.layers]
    return types[0] if types and not any(text.startswith(_LAYERS) for text in types) else ""
