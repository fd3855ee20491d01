"""How are images loaded from files? From archives of docker and OCI, and from OCI layout directories.

docker-archive: the output of `docker save` (Docker Image Specification v1.2, "Combined Image JSON + Filesystem
Changeset Format"). oci-archive: an OCI image layout (image-layout.md) as a tar. Both may be compressed. Blobs are
published first and names last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..oci.documents import Descriptor
from ..oci.errors import InvalidError, NotFoundError
from ..oci.limits import Limits
from ..oci.progress import NO_PROGRESS, Progress, Task
from ..oci.reference import Reference
from ..store.store import Image, Store
from ..tar.compression import Source
from .docker import docker_images
from .members import ArchiveMembers, DirectoryMembers, Members
from .oci_layout import oci_images, read_index
from .save import save, save_directory

__all__ = ["load", "save", "save_directory"]


def load(
    store: Store,
    source: Path | Source,
    name: str | None = None,
    *,
    what: str = "the archive",
    unpack: bool = False,
    progress: Progress = NO_PROGRESS,
    limits: Limits | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Image]:
    """Load all images of an archive (a path, or a stream that is read to its end) or of a layout directory.

    The images keep their names; a single image gets `name` instead, if given. A tag without a repository, which layouts
    may have, belongs to the repository that the file or directory is named after; an image without any name is kept
    unnamed. With `unpack` the layers are unpacked too. `tell` gets a line for each skipped artifact. If ImageError is
    raised, no image has been named.
    """
    taking = _Taking(store, name, unpack, progress, tell)
    limits = limits or store.limits.of_archive
    if isinstance(source, Path) and source.is_dir():
        return _load_directory(taking, source)
    if isinstance(source, Path):
        with open(source, "rb", buffering=0) as file:
            task = progress.begin(f"load {source.name}", os.fstat(file.fileno()).st_size or None)
            return _load_stream(taking, _Watched(file, task), str(source), _stem(source), limits)
    return _load_stream(taking, _Watched(source, progress.begin("load", None)), what, None, limits)


def _load_directory(taking: _Taking, directory: Path) -> list[Image]:
    task = taking.progress.begin(f"load {directory.name}", None)
    members = DirectoryMembers(taking.store, directory, task)
    try:
        found = taking.find(members, _stem(directory.resolve()))
    finally:
        members.close()
    task.done()
    return taking.name_all(found)


def _load_stream(taking: _Taking, stream: _Watched, what: str, stem: str | None, limits: Limits) -> list[Image]:
    with taking.store.staging() as directory:
        members = ArchiveMembers(taking.store, directory, what)
        members.read_all(stream, limits)
        found = taking.find(members, stem)
    stream.task.done()
    return taking.name_all(found)


class _Watched:
    """A source that reports the progress of its reader."""

    def __init__(self, source: Source, task: Task) -> None:
        self._source, self.task = source, task

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.task.advance(len(data))
        return data


_MOST_TOLD: Final = 3
Found = list[tuple[Descriptor, Reference | None]]


@dataclass(frozen=True, slots=True)
class _Taking:
    """Takes in the images of an archive: keeps their blobs, unpacks them, and names them last."""

    store: Store
    name: str | None
    unpack: bool
    progress: Progress
    tell: Callable[[str], None]

    def find(self, members: Members, stem: str | None) -> Found:
        """Keep the blobs of the images; their descriptors and names."""
        skipped: list[str] = []
        found = self._oci_images(members, stem, skipped.append)
        if not found and members.has("manifest.json"):
            found = [*docker_images(self.store, members)]
        if found is None:
            raise InvalidError(
                f"{members.what} is no image archive: neither manifest.json nor index.json is in it; "
                "a root filesystem is taken in by import"
            )
        if not found:
            raise NotFoundError("; ".join([f"{members.what} holds no image", *skipped[:_MOST_TOLD]]))
        for line in skipped:
            self.tell(f"{members.what}: skipped, as {line}")
        return found if self.name is None else self._renamed(found, Reference.parse(self.name), members.what)

    def _oci_images(self, members: Members, stem: str | None, skip: Callable[[str], None]) -> Found | None:
        """The images of index.json; None without it, or if it is broken and there is a manifest.json."""
        if not members.has("index.json"):
            return None
        try:
            index = read_index(members)
        except InvalidError as error:
            if not members.has("manifest.json"):
                raise
            self.tell(f"{error}; manifest.json is read instead")
            return None
        return [*oci_images(members, index, stem, skip)]

    def _renamed(self, found: Found, reference: Reference, what: str) -> Found:
        digests = {descriptor.digest for descriptor, _ in found}
        if len(digests) > 1:
            raise InvalidError(f"{what} holds {len(digests)} images: they cannot all be {reference.familiar}")
        return [(found[0][0], reference)]

    def name_all(self, found: Found) -> list[Image]:
        images = [self.store.load_image(descriptor, reference) for descriptor, reference in found]
        if self.unpack:
            from ..store.missing_layers import unpack_image

            for image in {image.descriptor.digest: image for image in images}.values():
                unpack_image(self.store, image, self.progress)
        for descriptor, reference in found:
            self.store.keep(descriptor, reference)
        return images


def _stem(path: Path) -> str | None:
    """The repository for bare tags in a file `debian.tar.gz` or directory `debian`; None if the name does not suit."""
    stem = re.sub(r"(\.(oci|docker|tar|tgz|gz|zst|zstd))+$", "", path.name).lower()
    try:
        Reference.parse(stem)
    except InvalidError:
        return None
    return None if {":", "@"} & set(stem) else stem
