"""How are images saved to an archive? Deterministically: without times and owners, in a fixed order.

An oci-archive is an OCI image layout with all blobs unchanged, so digests stay the same. It also has docker's
manifest.json, as docker writes it since version 25, so that `load` of every docker and podman reads it. A
docker-archive is for tools that know only that format: its layers are not compressed. An oci-dir is the layout as a
directory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from ..oci.digest import Digest, digest_from, hex_of
from ..oci.documents import INDEX_TYPES, LAYER_TYPES, OCI_INDEX, REF_NAME, Descriptor, Index, dump
from ..oci.errors import DigestError, InvalidError
from ..oci.progress import NO_PROGRESS, Progress, Task
from ..store.names import MARKER
from ..store.staging import remove_tree, sync_directory
from ..store.store import Image, Store
from ..tar.compression import CHUNK, Sink, open_decompressed
from ..tar.reader import Entry
from ..tar.writer import END, header_blocks, padding
from .docker import DockerImage
from .members import blob_name
from .oci_layout import CONTAINERD_NAME

FORMATS: Final = ("oci-archive", "docker-archive", "oci-dir")


class _Target(Protocol):
    def add(self, name: str, size: int, data: Iterable[bytes]) -> None: ...


def save(
    store: Store, images: Sequence[Image], out: Sink, kind: str = "oci-archive", progress: Progress = NO_PROGRESS
) -> None:
    """Write an archive of `images` into `out`; the caller syncs it. InvalidError for an unknown `kind`."""
    target = _Tar(out)
    if kind == "oci-archive":
        _write_oci(store, images, target, progress.begin("save", None))
    elif kind == "docker-archive":
        _write_docker(store, images, target, progress.begin("save", None))
    else:
        raise InvalidError(f"no archive is called {kind!r}; there are oci-archive and docker-archive")
    out.write(END)


def save_directory(store: Store, images: Sequence[Image], path: Path, progress: Progress = NO_PROGRESS) -> None:
    """Make the directory `path`, an OCI layout of `images`; it appears complete and synced, or not at all."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidError(f"{path} exists and is not empty: name another directory")
    path = path.absolute()
    target = _Directory(path.with_name(f".{path.name[:200]}.{os.getpid()}"))
    try:
        _write_oci(store, images, target, progress.begin("save", None))
        target.publish(path)
    finally:
        target.discard()


# OCI


def _write_oci(store: Store, images: Sequence[Image], target: _Target, task: Task) -> None:
    index = Index(2, [_named(image) for image in images], OCI_INDEX)
    documents = {
        "oci-layout": MARKER,
        "index.json": dump(index),
        "manifest.json": _docker_manifest([_as_docker(image) for image in _distinct(images)], images),
    }
    for name, data in documents.items():
        target.add(name, len(data), [data])
    for blob in _blobs(store, images):
        target.add(blob_name(blob.digest), blob.size, _watched(_chunks(store, blob), task))
    task.done()


def _named(image: Image) -> Descriptor:
    """The descriptor for index.json, with the full name in the annotations that podman, containerd and docker read."""
    descriptor = image.root or image.descriptor
    if image.reference is None:
        return descriptor
    name = str(image.reference)
    return replace(descriptor, annotations={CONTAINERD_NAME: name, REF_NAME: name})


def _blobs(store: Store, images: Sequence[Image]) -> Iterator[Descriptor]:
    """Each blob once: the documents of an image, then its layers."""
    seen: set[Digest] = set()
    for image in images:
        for blob in _blobs_of(store, image.root or image.descriptor):
            if blob.digest not in seen:
                seen.add(blob.digest)
                yield blob


def _blobs_of(store: Store, descriptor: Descriptor) -> Iterator[Descriptor]:
    yield descriptor
    if descriptor.media_type in INDEX_TYPES:
        for member in store.load_index(descriptor).manifests:
            if store.has_blob(member.digest):
                yield from _blobs_of(store, member)
    else:
        manifest = store.load_manifest(descriptor)
        yield from (manifest.config, *manifest.layers)


def _chunks(store: Store, blob: Descriptor) -> Iterator[bytes]:
    with store.open_blob(blob) as file:
        while data := file.read(CHUNK):
            yield data


def _watched(chunks: Iterable[bytes], task: Task) -> Iterator[bytes]:
    for data in chunks:
        yield data
        task.advance(len(data))


# docker


def _write_docker(store: Store, images: Sequence[Image], target: _Target, task: Task) -> None:
    seen: set[str] = set()
    for image in _distinct(images):
        for layer, diff_id in zip(image.manifest.layers, image.config.rootfs.diff_ids, strict=True):
            name = _layer_name(diff_id)
            if name not in seen:
                seen.add(name)
                size = _size(store, layer, diff_id)
                target.add(name, size, _watched(_plain_chunks(store, layer), task))
        data = store.read_blob(image.manifest.config)
        target.add(f"{hex_of(image.id)}.json", len(data), [data])
    items = [
        DockerImage(f"{hex_of(image.id)}.json", [_layer_name(diff_id) for diff_id in image.config.rootfs.diff_ids])
        for image in _distinct(images)
    ]
    for name, data in (
        ("manifest.json", _docker_manifest(items, images)),
        ("repositories", _repositories(images)),
    ):
        target.add(name, len(data), [data])
    task.done()


def _layer_name(diff_id: Digest) -> str:
    return f"{hex_of(diff_id)}.tar"


def _size(store: Store, layer: Descriptor, diff_id: Digest) -> int:
    """The size of the tar of a layer, found by decompressing it, as a tar has the size of a member before its data."""
    if LAYER_TYPES.get(layer.media_type, "") is None:
        return layer.size
    hashed, size = hashlib.sha256(), 0
    for data in _plain_chunks(store, layer):
        hashed.update(data)
        size += len(data)
    if digest_from(hashed) != diff_id:
        raise DigestError(f"the layer {layer.digest} has other content than its image says: {diff_id}")
    return size


def _plain_chunks(store: Store, layer: Descriptor) -> Iterator[bytes]:
    with store.open_blob(layer) as file:
        plain = open_decompressed(file, store.limits, f"the layer {layer.digest}")
        while data := plain.read(CHUNK):
            yield data


def _distinct(images: Sequence[Image]) -> list[Image]:
    """The images without duplicates: docker identifies an image by its ID."""
    return list({image.id: image for image in reversed(images)}.values())[::-1]


def _as_docker(image: Image) -> DockerImage:
    """The entry of docker's manifest.json for an image in an OCI layout."""
    return DockerImage(blob_name(image.id), [blob_name(layer.digest) for layer in image.manifest.layers])


def _docker_manifest(items: Sequence[DockerImage], images: Sequence[Image]) -> bytes:
    """The bytes of manifest.json; `items` are the entries of the distinct images, in order."""
    pairs = zip(items, _distinct(images), strict=True)
    return msgspec.json.encode([replace(item, repo_tags=_tags(images, image)) for item, image in pairs])


def _tags(images: Sequence[Image], image: Image) -> list[str]:
    """All names of one image with a tag; docker has no names by digest alone."""
    references = [other.reference for other in images if other.id == image.id]
    return [f"{reference.name}:{reference.tag}" for reference in references if reference and reference.tag]


def _repositories(images: Sequence[Image]) -> bytes:
    """The `repositories` file of the first format version: repository and tag to the name of the top layer."""
    repositories: dict[str, dict[str, str]] = {}
    for image in images:
        if image.reference and image.reference.tag and image.config.rootfs.diff_ids:
            tags = repositories.setdefault(image.reference.name, {})
            tags[image.reference.tag] = hex_of(image.config.rootfs.diff_ids[-1])
    return json.dumps(repositories, sort_keys=True).encode()


# where it goes


class _Tar:
    """Writes the files as members of a tar."""

    def __init__(self, out: Sink) -> None:
        self._out = out

    def add(self, name: str, size: int, data: Iterable[bytes]) -> None:
        self._out.write(header_blocks(Entry(path=name.encode(), kind="f", mode=0o644, size=size)))
        for chunk in data:
            self._out.write(chunk)
        self._out.write(padding(size))


class _Directory:
    """Writes the files into a directory that is staged under another name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir()

    def add(self, name: str, size: int, data: Iterable[bytes]) -> None:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:  # buffered, as unbuffered streams may write fewer bytes than they are given
            for chunk in data:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def publish(self, path: Path) -> None:
        for directory, _, _ in os.walk(self._path):
            sync_directory(Path(directory))
        self._path.rename(path)
        sync_directory(path.parent)

    def discard(self) -> None:
        """Remove the directory, unless it was published."""
        remove_tree(self._path)
