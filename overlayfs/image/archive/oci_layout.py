"""How are the images in an OCI image layout read? (image-layout.md, image-index.md)

Everything is checked before it is kept: documents against their digests, manifests against configurations. The blobs of
an image are kept before its manifest, and the manifest before an index that contains it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from ..oci.artifacts import ArtifactError, artifact_type, is_attestation, names_image
from ..oci.digest import digest_of
from ..oci.documents import (
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
from ..oci.errors import InvalidError, NotFoundError
from ..oci.platforms import platform_name
from ..oci.reference import Reference
from ..store.blobs import check_content
from ..store.names import bare
from .members import Members, blob_name

CONTAINERD_NAME: Final = "io.containerd.image.name"
"""The annotation in which containerd, and docker since version 25, write the full name."""


def read_index(members: Members) -> Index:
    """The index of the layout. Raises InvalidError."""
    return parse(members.read("index.json"), Index, f"{members.what}: index.json")


def oci_images(
    members: Members, index: Index, stem: str | None, skip: Callable[[str], None]
) -> Iterator[tuple[Descriptor, Reference | None]]:
    """Keep the blobs of all images of the layout; `skip` is told of each artifact that is not an image."""
    for descriptor in index.manifests:
        try:
            _keep_tree(members, descriptor)
        except ArtifactError as artifact:
            skip(str(artifact))
        else:
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
    """Keep an image, or an index with the images of it that are there (at least one); referring documents last."""
    name = blob_name(descriptor.digest)
    if descriptor.media_type in INDEX_TYPES and not is_member:
        index = parse(_document(members, descriptor), Index, f"{members.what}: the index {descriptor.digest}")
        here = [member for member in index.manifests if names_image(member) and members.has(blob_name(member.digest))]
        if not sum(_keep_member(members, member) for member in here):
            raise NotFoundError(f"{members.what}: no image of the index {descriptor.digest} is in it")
    elif is_attestation(descriptor):
        raise ArtifactError(
            f"{descriptor.digest} is an attestation: its platform is {platform_name(descriptor.platform)}"
        )
    elif descriptor.media_type in MANIFEST_TYPES:
        _keep_parts(members, descriptor)
    else:
        raise ArtifactError(f"{descriptor.digest} is no image: it is of the type {descriptor.media_type!r:.100}")
    members.keep(name, descriptor)


def _keep_member(members: Members, member: Descriptor) -> bool:
    """Keep one image of an index; False for an artifact, which is left out."""
    try:
        _keep_tree(members, member, is_member=True)
    except ArtifactError:
        return False
    return True


def _keep_parts(members: Members, descriptor: Descriptor) -> None:
    what = f"{members.what}: the manifest {descriptor.digest}"
    manifest = parse(_document(members, descriptor), Manifest, what)
    if kind := artifact_type(manifest):
        raise ArtifactError(f"{descriptor.digest} is no image: it is of the type {kind!r:.100}")
    _check_layer_types(manifest, what)
    config = parse(_document(members, manifest.config), ImageConfig, f"{members.what}: a configuration")
    check_layer_count(manifest, config, what)
    for blob in (*manifest.layers, manifest.config):
        members.keep(blob_name(blob.digest), blob)


def _check_layer_types(manifest: Manifest, what: str) -> None:
    """Raises InvalidError for unsupported types of layers: foreign, encrypted, or of artifacts."""
    for layer in manifest.layers:
        if layer.media_type not in LAYER_TYPES:
            raise InvalidError(f"{what}: a layer is of the type {layer.media_type!r}, which is not supported")


def _document(members: Members, descriptor: Descriptor) -> bytes:
    data = members.read(blob_name(descriptor.digest))
    check_content(descriptor, digest_of(data), len(data))
    return data
