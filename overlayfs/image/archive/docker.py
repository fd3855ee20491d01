"""How are the images in an archive of `docker save` read?

Docker Image Specification v1.2, "Combined Image JSON + Filesystem Changeset Format": manifest.json names a
configuration and layers, whose files may have any name. The format before docker 1.10, without manifest.json, is not
supported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from ..oci.digest import hex_of
from ..oci.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Manifest,
    check_layer_count,
    dump,
    parse,
)
from ..oci.errors import DigestError
from ..oci.reference import Reference
from ..store.store import Store
from ..tar.compression import GZIP_MAGIC, ZSTD_MAGIC
from .members import Members


class DockerImage(Struct, frozen=True, rename="pascal"):
    """One item of manifest.json. Configuration and layers are names of members, layers bottom first."""

    config: str
    layers: list[str]
    repo_tags: list[str] = []


def docker_images(store: Store, members: Members) -> Iterator[tuple[Descriptor, Reference | None]]:
    for image in parse(members.read("manifest.json"), list[DockerImage], f"{members.what}: manifest.json"):
        descriptor = _keep_docker_image(store, members, image)
        names = [Reference.parse(tag) for tag in image.repo_tags]
        yield from ((descriptor, name) for name in names or (None,))


def _keep_docker_image(store: Store, members: Members, image: DockerImage) -> Descriptor:
    """Keep an image as an OCI image with the same configuration, so with the same ID; layers are not changed."""
    described = members.describe(_clean(image.config), OCI_CONFIG)
    config = parse(members.read(_clean(image.config)), ImageConfig, f"{members.what}: {image.config}")
    _check_name(image.config, described, members.what)
    layers = [_layer(members, name) for name in image.layers]
    manifest = Manifest(2, described, [layer for _, layer in layers], OCI_MANIFEST)
    check_layer_count(manifest, config, f"{members.what}: {image.config}")
    for (name, layer), diff_id in zip(layers, config.rootfs.diff_ids, strict=True):
        if layer.media_type == OCI_LAYER and layer.digest != diff_id:
            raise DigestError(f"{members.what}: {name} has the digest {layer.digest} instead of {diff_id}")
        members.keep(name, layer)
    members.keep(_clean(image.config), described)
    return store.add_blob(dump(manifest), OCI_MANIFEST)


def _layer(members: Members, name: str) -> tuple[str, Descriptor]:
    clean = _clean(name)
    magic = members.magic(clean)
    suffix = "+gzip" if magic.startswith(GZIP_MAGIC) else "+zstd" if magic.startswith(ZSTD_MAGIC) else ""
    return clean, members.describe(clean, f"{OCI_LAYER}{suffix}")


def _clean(name: str) -> str:
    """The name of a member, normalised as TarReader does."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _check_name(name: str, described: Descriptor, what: str) -> None:
    """Raises DigestError if a configuration is named by a digest, as docker does, and does not match it."""
    stem = name.rpartition("/")[2].removesuffix(".json")
    if re.fullmatch("[0-9a-f]{64}", stem) and stem != hex_of(described.digest):
        raise DigestError(f"{what}: {name} has other content: its digest is {described.digest}")
