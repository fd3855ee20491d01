"""Small images for tests: layers from a few files, put into a store or into archives as other tools write them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

import zstandard

from overlayfs.image.oci.digest import Digest, digest_of, hex_of
from overlayfs.image.oci.documents import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    History,
    ImageConfig,
    Manifest,
    RootFS,
    RunConfig,
)
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.store import Image, Store

CREATED = "2024-02-03T04:05:06Z"
Members = Iterable[tuple[str, bytes]]


def tar(members: Members | Mapping[str, bytes]) -> bytes:
    """A tar of files, in order; the same name may come twice."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def packed(data: bytes, kind: str | None) -> bytes:
    if kind == "gzip":
        return gzip.compress(data, 1, mtime=0)
    return zstandard.compress(data, 3) if kind == "zstd" else data


def config_of(diff_ids: list[Digest], **members: Any) -> ImageConfig:
    steps = [History(CREATED, f"step {number}") for number in range(len(diff_ids))]
    run = RunConfig(env=["A=b"], cmd=["/bin/sh"])
    return ImageConfig("amd64", "linux", RootFS("layers", diff_ids), run, steps, CREATED, **members)


def put(store: Store, name: str | None, *layers: bytes, kind: str | None = "gzip", **members: Any) -> Image:
    """An image of these layers (tars), kept in the store."""
    suffix = f"+{kind}" if kind else ""
    blobs = [store.add_blob(packed(layer, kind), f"{OCI_LAYER}{suffix}") for layer in layers]
    config = config_of([digest_of(layer) for layer in layers], **members)
    manifest = Manifest(2, blobs[0], blobs)  # the configuration is described by `put_image`
    return store.put_image(manifest, config, Reference.parse(name) if name else None)


def put_changed(store: Store, image: Image, manifest: dict[str, Any], config: dict[str, Any]) -> None:
    """Keep an image with other members in its documents in place of this one."""
    changed = json.loads(store.read_blob(image.manifest.config)) | config
    described = store.add_blob(json.dumps(changed).encode(), image.manifest.config.media_type)
    members = json.loads(store.read_blob(image.descriptor))
    members["config"] |= {"digest": described.digest, "size": described.size}
    store.untag(image.reference or Reference.parse("none"))
    store.keep(store.add_blob(json.dumps(members | manifest).encode(), image.descriptor.media_type), image.reference)


class LayoutFiles:
    """The files of an OCI image layout, by their names."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(data)
        self.files[f"blobs/sha256/{hex_of(digest)}"] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(self, name: str | None, *layers: bytes, kind: str | None = "gzip", **members: Any) -> dict[str, Any]:
        """Add an image; its descriptor."""
        suffix = f"+{kind}" if kind else ""
        config = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
            "x-unknown": "kept",
            **members,
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.blob(json.dumps(config).encode(), OCI_CONFIG),
            "layers": [self.blob(packed(layer, kind), f"{OCI_LAYER}{suffix}") for layer in layers],
        }
        descriptor = self.blob(json.dumps(manifest).encode(), OCI_MANIFEST)
        annotations = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
        self.manifests.append(descriptor | annotations)
        return descriptor

    def finished(self) -> dict[str, bytes]:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self.manifests}
        return {**self.files, "index.json": json.dumps(index).encode()}


def docker_files(names: list[str] | None, *layers: bytes) -> dict[str, bytes]:
    """The members of an archive as `docker save` wrote it before version 25."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
            "x-unknown": "kept",
        }
    ).encode()
    files = {f"{hex_of(digest_of(config))}.json": config}
    paths = [f"{hex_of(digest_of(b'id' + layer))}/layer.tar" for layer in layers]
    files |= dict(zip(paths, layers, strict=True))
    manifest = [{"Config": f"{hex_of(digest_of(config))}.json", "RepoTags": names, "Layers": paths}]
    return {**files, "manifest.json": json.dumps(manifest).encode(), "repositories": b"{}"}


def whole(store: Store, image: Image) -> dict[str, bytes]:
    """All bytes of an image, by digest, verified."""
    blobs: list[Descriptor] = [image.descriptor, image.manifest.config, *image.manifest.layers]
    return {blob.digest: store.read_blob(blob) for blob in blobs}
