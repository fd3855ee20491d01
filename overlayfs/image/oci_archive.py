"""How are images read from an OCI image layout? (image-layout.md, image-index.md)

What comes is checked before anything is kept: documents against their digests, manifests against configurations. The
blobs of an image are kept before its manifest, that before an index that has it for a member.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .blobs import check_content
from .digest import digest_of
from .errors import InvalidError, NotFoundError
from .layout import bare
from .members import Members, blob_name
from .model import (
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    REF_NAME,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    check_layer_count,
    parse,
)
from .reference import Reference

CONTAINERD_NAME: Final = "io.containerd.image.name"
"""The annotation by which containerd, and docker since version 25, write a full name."""


def oci_images(members: Members, stem: str | None) -> Iterator[tuple[Descriptor, Reference | None]]:
    index = parse(members.read("index.json"), Index, f"{members.what}: index.json")
    for descriptor in index.manifests:
        _keep_tree(members, descriptor)
        yield bare(descriptor), _name_of(descriptor, stem)


def _name_of(descriptor: Descriptor, stem: str | None) -> Reference | None:
    annotations = descriptor.annotations
    texts = [annotations.get(CONTAINERD_NAME, ""), annotations.get(REF_NAME, "")]
    for text in texts:
        if {"/", ":", "@"} & set(text):
            try:
                return Reference.parse(text)
            except InvalidError:
                continue
        if text and stem:
            try:
                return Reference.parse(f"{stem}:{text}")
            except InvalidError:
                continue
    return None


def _keep_tree(members: Members, descriptor: Descriptor, *, is_member: bool = False) -> None:
    """Keep an image, or an index with those of its images that are there (at least one); what names others last."""
    name = blob_name(descriptor.digest)
    if descriptor.media_type in INDEX_TYPES and not is_member:
        index = parse(_document(members, descriptor), Index, f"{members.what}: the index {descriptor.digest}")
        here = [member for member in index.manifests if _is_image(member) and members.has(blob_name(member.digest))]
        if not here:
            raise NotFoundError(f"{members.what}: no image of the index {descriptor.digest} is in it")
        for member in here:
            _keep_tree(members, member, is_member=True)
    elif descriptor.media_type in MANIFEST_TYPES:
        _keep_parts(members, descriptor)
    else:
        raise InvalidError(f"{members.what}: {descriptor.digest} is no image: it is of type {descriptor.media_type!r}")
    members.keep(name, descriptor)


def _is_image(member: Descriptor) -> bool:
    """Not an attestation, whose platform is "unknown" (BuildKit's attestation-storage.md), and not an inner index."""
    is_known = member.platform is None or member.platform.os != "unknown"
    return is_known and member.media_type in MANIFEST_TYPES


def _keep_parts(members: Members, descriptor: Descriptor) -> None:
    what = f"{members.what}: the manifest {descriptor.digest}"
    manifest = parse(_document(members, descriptor), Manifest, what)
    _check_layer_types(manifest, what)
    config = parse(_document(members, manifest.config), ImageConfig, f"{members.what}: a configuration")
    check_layer_count(manifest, config, what)
    for blob in (*manifest.layers, manifest.config):
        members.keep(blob_name(blob.digest), blob)


def _check_layer_types(manifest: Manifest, what: str) -> None:
    """Raises InvalidError for layers of a type that we do not know: others' URLs, encrypted ones, no images."""
    for layer in manifest.layers:
        if layer.media_type not in LAYER_TYPES:
            raise InvalidError(f"{what}: a layer is of the type {layer.media_type!r}, which is not supported")


def _document(members: Members, descriptor: Descriptor) -> bytes:
    data = members.read(blob_name(descriptor.digest))
    check_content(descriptor, digest_of(data), len(data))
    return data
