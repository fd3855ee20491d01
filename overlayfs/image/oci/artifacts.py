"""Which manifests are of no image? Signatures, attestations, SBOMs and whatever else is kept where images are.

OCI image specification v1.1, manifest.md (Guidelines for Artifact Usage); BuildKit's attestation-storage.md gives
attestations the platform "unknown". A signature of cosign has an image's type of configuration, and layers of its own.
"""

from __future__ import annotations

from typing import Final

from .documents import DOCKER_CONFIG, MANIFEST_TYPES, OCI_CONFIG, Descriptor, Manifest
from .errors import InvalidError

CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_LAYERS: Final = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
"""What the types of all layers begin with, also of those that cannot be used here: foreign and encrypted ones."""


class ArtifactError(InvalidError):
    """What is named is no image; there may be images beside it."""


def names_image(descriptor: Descriptor) -> bool:
    """Whether an index has an image in this member, as far as the index tells; an inner index is none."""
    is_artifact = is_attestation(descriptor) or _names_artifact(descriptor)
    return descriptor.media_type in MANIFEST_TYPES and not is_artifact


def is_attestation(descriptor: Descriptor) -> bool:
    return descriptor.platform is not None and descriptor.platform.os == "unknown"


def _names_artifact(descriptor: Descriptor) -> bool:
    """An artifact without a type of its own has that of its configuration; so has an image."""
    return bool(descriptor.artifact_type) and descriptor.artifact_type not in CONFIG_TYPES


def artifact_type(manifest: Manifest) -> str:
    """What the manifest is of, if not of an image; "" for an image, also for one whose layers cannot be used."""
    if manifest.config.media_type not in CONFIG_TYPES:
        return manifest.artifact_type or manifest.config.media_type
    types = [layer.media_type for layer in manifest.layers]
    return types[0] if types and not any(text.startswith(_LAYERS) for text in types) else ""
