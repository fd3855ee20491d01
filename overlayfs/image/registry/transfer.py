"""How are images pulled from registries and pushed to them? What to transfer, and in which order.

A pull keeps documents and layers as verified blobs and names the image last. A push sends what the repository lacks and
the manifest last. So neither leaves half an image when it is interrupted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import trio

from ..oci.artifacts import artifact_type, names_image
from ..oci.digest import hex_of
from ..oci.documents import (
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    check_layer_count,
    parse,
)
from ..oci.errors import ImageError, InvalidError, LimitError, NotFoundError
from ..oci.platforms import choose
from ..oci.progress import NO_PROGRESS, Progress
from ..oci.reference import Reference
from ..store.store import Image, Store
from .download import download
from .endpoints import Registries
from .repository import Document, Repository, connect
from .retrying import Retrying
from .upload import CHUNK, upload

_MOST_LAYERS: Final = 1000
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach registries: the configuration and the options of the command line."""

    registries: Registries = field(default_factory=Registries)
    ca: Path | None = None
    insecure: bool = False
    retrying: Retrying = Retrying()  # noqa: RUF009 - immutable
    chunk: int = CHUNK
    """Bytes of an upload's requests."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push: the digest of the manifest, and how many blobs were sent, mounted, or there before."""

    descriptor: Descriptor
    reference: Reference
    counts: dict[str, int]


async def pull(
    store: Store,
    reference: Reference,
    platform: Platform | None = None,
    access: Access = Access(),
    *,
    all_platforms: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Image:
    """Pull an image into the store and name it; from an index the one for `platform` (None: this machine's).

    Mirrors are asked first, each for what the ones before it could not give, the registry itself last. Raises
    ImageError, OSError; blobs that were received, even in part, are kept for the next pull.
    """
    async with AsyncExitStack() as connections:
        sources = await _sources(connections, reference, access, mirrors=True)
        fetch = _Fetch(store, sources, progress)
        root = await fetch.document(reference.version, None)
        if root.descriptor.media_type not in INDEX_TYPES:
            kept, images = root.descriptor, [root]
        else:
            members = _members(root, reference, platform, all_platforms)
            images = [await fetch.document(member.digest, member) for member in members]
            kept = root.descriptor if all_platforms else images[0].descriptor
            if all_platforms:
                await trio.to_thread.run_sync(store.add_blob, root.data, root.descriptor.media_type)
        for image in images:
            await fetch.image(image)
    await trio.to_thread.run_sync(store.tag, kept, reference)
    return store.load_image(kept, reference, platform)


def _members(root: Document, reference: Reference, platform: Platform | None, all_platforms: bool) -> list[Descriptor]:
    """The requested manifests of an index. Raises NotFoundError, InvalidError."""
    index = parse(root.data, Index, f"the index of {reference}")
    images = [member for member in index.manifests if names_image(member)]
    if all_platforms and not images:
        raise NotFoundError(f"{reference} is an index without images")
    return images if all_platforms else [choose(images, platform)]


class _Fetch:
    """Fetches documents and blobs from the first source that has them."""

    def __init__(self, store: Store, sources: list[Repository], progress: Progress) -> None:
        self._store = store
        self._sources = sources
        self._progress = progress

    async def document(self, version: str, expected: Descriptor | None) -> Document:
        return await _first_of(self._sources, lambda source: source.manifest(version, expected))

    async def image(self, document: Document) -> None:
        """Fetch the configuration, the layers, and then the manifest."""
        what = f"the manifest {document.descriptor.digest}"
        manifest = parse(document.data, Manifest, what)
        _check_is_image(manifest, what)
        await self.blob(manifest.config)
        config = parse(self._store.read_blob(manifest.config), ImageConfig, f"the configuration of {what}")
        check_layer_count(manifest, config, what)
        layers = {layer.digest: layer for layer in manifest.layers}  # the same layer may be there twice
        await at_once(self._sources[-1].connection.endpoint.connections, self.blob, layers.values())
        await trio.to_thread.run_sync(self._store.add_blob, document.data, document.descriptor.media_type)

    async def blob(self, descriptor: Descriptor) -> None:
        task = self._progress.begin(hex_of(descriptor.digest)[:12], descriptor.size)
        if self._store.has_blob(descriptor.digest):
            self._store.open_blob(descriptor).close()  # its size is that of the manifest
            task.advance(descriptor.size)
            task.done("already there")
            return
        await _first_of(self._sources, lambda source: download(self._store, source, descriptor, task))
        task.done()


def _check_is_image(manifest: Manifest, what: str) -> None:
    """Raises InvalidError for artifacts that are not images, and for foreign layers."""
    if kind := artifact_type(manifest):
        raise InvalidError(f"{what} is of no image, but of {kind!r:.100}")
    if manifest.config.size > MAX_DOCUMENT:
        raise LimitError(
            f"{what}: its configuration has {manifest.config.size} bytes; at most {MAX_DOCUMENT} are allowed"
        )
    if len(manifest.layers) > _MOST_LAYERS:
        raise InvalidError(f"{what} has {len(manifest.layers)} layers; at most {_MOST_LAYERS} are allowed")
    for layer in manifest.layers:
        if layer.media_type not in LAYER_TYPES:
            raise InvalidError(
                f"{what}: the layer {layer.digest} is of {layer.media_type!r:.100}, which is no layer here"
            )


async def push(
    store: Store,
    image: Image,
    reference: Reference,
    access: Access = Access(),
    progress: Progress = NO_PROGRESS,
) -> Pushed:
    """Send an image to a repository, under the reference's tag or digest. Raises ImageError, OSError.

    If the image came from an index and the store has all images of it, the index is sent with all of them.
    """
    async with AsyncExitStack() as connections:
        (repository,) = await _sources(connections, reference, access, mirrors=False)
        sending = _Sending(store, repository, _mount_sources(store, reference), progress, access.chunk)
        return await sending.run(image, reference)


class _Sending:
    """One push; `counts` are the numbers of blobs that were sent, mounted, or there before."""

    def __init__(
        self,
        store: Store,
        repository: Repository,
        sources: dict[str, list[str]],
        progress: Progress,
        chunk: int,
    ) -> None:
        self._store = store
        self._repository = repository
        self._sources = sources
        self._progress = progress
        self._chunk = chunk
        self._counts = {"sent": 0, "mounted": 0, "exists": 0}

    async def run(self, image: Image, reference: Reference) -> Pushed:
        root, members = self._plan(image)
        if reference.digest is not None and reference.digest != root.digest:
            raise InvalidError(f"{reference}: the image's digest is {root.digest}; push it under a tag")
        blobs = [blob for member in members for blob in _blobs_of(self._store.load_manifest(member))]
        unique = {blob.digest: blob for blob in blobs}
        await self._repository.greet("pull,push")
        await at_once(self._repository.connection.endpoint.connections, self._blob, unique.values())
        for member in members:
            if member.digest != root.digest:
                await self._manifest(member, member.digest)
        await self._manifest(root, reference.digest or reference.version)
        return Pushed(root, reference, self._counts)

    def _plan(self, image: Image) -> tuple[Descriptor, list[Descriptor]]:
        """The descriptor that gets the name, and the manifests to send before it."""
        if image.root is None:
            return image.descriptor, [image.descriptor]
        members = self._store.load_index(image.root).manifests
        if not all(self._is_whole(member) for member in members):
            return image.descriptor, [image.descriptor]
        return image.root, members

    def _is_whole(self, member: Descriptor) -> bool:
        if member.media_type not in MANIFEST_TYPES or not self._store.has_blob(member.digest):
            return False
        return all(self._store.has_blob(blob.digest) for blob in _blobs_of(self._store.load_manifest(member)))

    async def _manifest(self, descriptor: Descriptor, version: str) -> None:
        data = self._store.read_blob(descriptor)
        await self._repository.put_manifest(version, Document(descriptor, data))

    async def _blob(self, descriptor: Descriptor) -> None:
        task = self._progress.begin(hex_of(descriptor.digest)[:12], descriptor.size)
        sources = self._sources.get(descriptor.digest, [])
        how = await upload(self._store, self._repository, descriptor, sources, task, self._chunk)
        self._counts[how] += 1
        task.done("" if how == "sent" else "already there" if how == "exists" else how)


def _blobs_of(manifest: Manifest) -> list[Descriptor]:
    return [manifest.config, *manifest.layers]


def _mount_sources(store: Store, to: Reference) -> dict[str, list[str]]:
    """For each blob the repositories of the same registry that should have it, judging by the store's names."""
    sources: dict[str, list[str]] = {}
    for entry in store.entries():
        known = entry.reference
        if known is None or known.registry != to.registry or known.repository == to.repository:
            continue
        try:
            other = store.load_image(entry.descriptor)
        except ImageError:  # a damaged image is ignored
            continue
        for blob in _blobs_of(other.manifest):
            sources.setdefault(blob.digest, [known.repository])
    return sources


async def tags(reference: Reference, access: Access = Access()) -> list[str]:
    """All tags of a repository, as the registry orders them."""
    async with AsyncExitStack() as connections:
        (repository,) = await _sources(connections, reference, access, mirrors=False)
        return await repository.tags()


async def _sources(
    connections: AsyncExitStack, reference: Reference, access: Access, *, mirrors: bool
) -> list[Repository]:
    """The repository at each endpoint, that of the registry itself last; `connections` closes them."""
    endpoints = access.registries.endpoints(reference, ca=access.ca, insecure=access.insecure, mirrors=mirrors)
    opened = [await connections.enter_async_context(connect(at, reference, access.retrying)) for at in endpoints]
    return [Repository(connection, reference.repository) for connection in opened]


async def _first_of(sources: list[Repository], ask: Callable[[Repository], Awaitable[Result]]) -> Result:
    """The result of the first source that succeeds; if none does, the error of the last one is raised."""
    for source in sources[:-1]:
        try:
            return await ask(source)
        except ImageError:
            continue
    return await ask(sources[-1])


async def at_once(most: int, work: Callable[[Descriptor], Awaitable[None]], blobs: Iterable[Descriptor]) -> None:
    """Start `work` on the blobs in order, so many at a time; the first failure cancels the others and is raised."""
    free = trio.Semaphore(most)

    async def one(blob: Descriptor) -> None:
        try:
            await work(blob)
        finally:
            free.release()

    try:
        async with trio.open_nursery() as nursery:
            for blob in blobs:
                await free.acquire()
                nursery.start_soon(one, blob)
    except BaseExceptionGroup as group:
        raise first_of(group) from None


def first_of(group: BaseException) -> BaseException:
    """The first error of an exception group; an interruption by the user precedes other errors."""
    if not isinstance(group, BaseExceptionGroup):
        return group
    found = [first_of(error) for error in group.exceptions]
    return next((error for error in found if isinstance(error, KeyboardInterrupt)), found[0])
