"""How do images come from files and go to files? Archives of docker and OCI, and OCI layout directories.

docker-archive: what `docker save` writes (Docker Image Specification v1.2, "Combined Image JSON + Filesystem
Changeset Format"). oci-archive: an OCI image layout (image-layout.md) as a tar. `load` takes both, a directory too,
also compressed; it publishes blobs first and names last.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .compression import Source
from .docker_archive import docker_images
from .errors import InvalidError, NotFoundError
from .limits import Limits
from .members import ARCHIVE_LIMITS, ArchiveMembers, DirectoryMembers, Members
from .model import Descriptor
from .oci_archive import oci_images
from .progress import NO_PROGRESS, Progress, Task
from .reference import Reference
from .saving import save
from .store import Image, Store

__all__ = ["load", "save"]


def load(
    store: Store,
    source: Path | Source,
    name: str | None = None,
    *,
    what: str = "the archive",
    progress: Progress = NO_PROGRESS,
    limits: Limits = ARCHIVE_LIMITS,
) -> list[Image]:
    """Take in all images of an archive (a path, or a stream that is read to its end) or of a layout directory.

    They keep their names, or have `name` if it is one image. A tag without a repository, as layouts may have, is one
    of the repository that the file or directory is named for; an image for which no name is found has none. Raises
    ImageError; what was complete by then stays, the rest leaves nothing.
    """
    if isinstance(source, Path) and source.is_dir():
        return _load_directory(store, source, name, progress)
    if isinstance(source, Path):
        with open(source, "rb", buffering=0) as file:
            task = progress.begin(f"load {source.name}", os.fstat(file.fileno()).st_size or None)
            return _load_stream(store, file, name, str(source), _stem(source), task, limits)
    return _load_stream(store, source, name, what, None, progress.begin("load", None), limits)


def _load_directory(store: Store, directory: Path, name: str | None, progress: Progress) -> list[Image]:
    task = progress.begin(f"load {directory.name}", None)
    members = DirectoryMembers(store, directory, task)
    try:
        images = _keep_images(store, members, name, _stem(directory.resolve()))
    finally:
        members.close()
    task.done()
    return images


def _load_stream(
    store: Store, stream: Source, name: str | None, what: str, stem: str | None, task: Task, limits: Limits
) -> list[Image]:
    with store.staging() as directory:
        members = ArchiveMembers(store, directory, what)
        members.read_all(_Watched(stream, task), limits)
        images = _keep_images(store, members, name, stem)
    task.done()
    return images


class _Watched:
    """A source whose reader is watched."""

    def __init__(self, source: Source, task: Task) -> None:
        self._source, self._task = source, task

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._task.advance(len(data))
        return data


def _stem(path: Path) -> str | None:
    """The repository that tags in a file `debian.tar.gz` or a directory `debian` are of; None if it cannot be one."""
    stem = re.sub(r"(\.(oci|docker|tar|tgz|gz|zst|zstd))+$", "", path.name).lower()
    try:
        Reference.parse(stem)
    except InvalidError:
        return None
    return None if {":", "@"} & set(stem) else stem


def _keep_images(store: Store, members: Members, name: str | None, stem: str | None) -> list[Image]:
    """Keep the blobs of all images, then their names."""
    if members.has("index.json"):
        found = [*oci_images(members, stem)]
    elif members.has("manifest.json"):
        found = [*docker_images(store, members)]
    else:
        raise InvalidError(
            f"{members.what} is no image archive: neither manifest.json nor index.json is in it; "
            "a root filesystem is taken in by import"
        )
    if not found:
        raise NotFoundError(f"{members.what} holds no image")
    if name is not None:
        found = _renamed(found, Reference.parse(name), members.what)
    for descriptor, reference in found:
        store.keep(descriptor, reference)
    return [store.load_image(descriptor, reference) for descriptor, reference in found]


Found = tuple[Descriptor, Reference | None]


def _renamed(found: list[Found], reference: Reference, what: str) -> list[Found]:
    digests = {descriptor.digest for descriptor, _ in found}
    if len(digests) > 1:
        raise InvalidError(f"{what} holds {len(digests)} images: they cannot all be {reference.familiar}")
    return [(found[0][0], reference)]
