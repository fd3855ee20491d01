"""What is in a user's store, and how are images found in it? An OCI image layout, unpacked layers, and containers.

All functions may be called from any thread. Each process holds the store's lock shared while it has the store open;
`prune` holds it alone. Blobs, layers and names are published atomically, and `index.json` is written last, so an image
that has a name is complete.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from msgspec import Struct
from msgspec.structs import replace

from ..oci.artifacts import names_image
from ..oci.digest import Digest
from ..oci.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    check_layer_count,
    dump,
    parse,
)
from ..oci.errors import ImageError, InUseError, InvalidError, NotFoundError
from ..oci.limits import DEFAULT_LIMITS, Limits, limits_of_environment
from ..oci.platforms import choose
from ..oci.reference import Reference
from .blobs import Blobs
from .locking import StoreLock
from .names import Entry, Layout, bare, is_start_of, matching, no_such_image
from .published import is_shared
from .staging import PARTIAL, Staging, remove_leftovers
from .uses import Use, Uses

_DIRECTORIES: Final = ("blobs", "layers", "containers", "mounts", "tmp")
_OWN: Final = frozenset({*_DIRECTORIES, "oci-layout", "index.json", "lock", "index.lock", "lost+found"})


class Image(Struct, frozen=True):
    """The image of one platform. `root` is the index that the name refers to, if it is not the manifest itself."""

    reference: Reference | None
    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig
    root: Descriptor | None = None

    @property
    def id(self) -> Digest:
        """The digest of its configuration, as docker has it."""
        return self.manifest.config.digest

    @property
    def digest(self) -> Digest:
        """The digest that a registry has for its name: that of the manifest, or of the index."""
        return (self.root or self.descriptor).digest

    @property
    def name(self) -> str:
        """The name to show to users."""
        return self.reference.familiar if self.reference else self.id

    @property
    def size(self) -> int:
        """Bytes of its configuration and layers, as compressed in the store."""
        return self.manifest.config.size + sum(layer.size for layer in self.manifest.layers)


def default_directory() -> Path:
    """The directory of the current user's store."""
    if os.geteuid() == 0:
        return Path("/var/lib/overlayfs")
    from platformdirs import user_data_path

    return user_data_path("overlayfs")


class Store(Blobs):
    """An open store; `close` (or the end of the `with`) allows others to prune it."""

    def __init__(self, path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path, self.limits = path, limits
        self._lock = StoreLock(path / "lock")
        self.stage = Staging(path / "tmp")
        self._layout = Layout(path, self.stage)
        self._uses = Uses(path / "mounts", self.stage)
        super().__init__(path, self.stage)

    @classmethod
    def open(cls, directory: Path | None = None) -> Self:
        """Open the store in `directory` (None: the user's own); it is made if missing, with mode 0700.

        InvalidError for a directory of another user or with other contents, and for a bad OVERLAYFS_LAYER_LIMIT. Waits
        while the store is pruned. A child that is forked without exec must close the store too.
        """
        limits = limits_of_environment()
        path = (directory or default_directory()).absolute()
        path.mkdir(0o700, parents=True, exist_ok=True)
        _check_is_ours(path)
        store = cls(path, limits)
        try:
            for name in _DIRECTORIES:
                (path / name).mkdir(0o700, exist_ok=True)
            store._layout.create()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def alone(self, patience_s: float = 10.0) -> AbstractContextManager[None]:
        """Hold the store alone in the context; InUseError if others still work in it after `patience_s`."""
        return self._lock.alone(patience_s)

    def staging(self) -> AbstractContextManager[Path]:
        """A new directory on the file system of the store; removed at the end of the context if it is still there."""
        return self.stage.new_directory()

    # images

    def entries(self) -> list[Entry]:
        """Names and descriptors of all images, damaged ones included, as the images are not read."""
        return self._layout.entries()

    def images(self) -> list[Image]:
        """All images, named or not; for an index the image of this machine. Raises ImageError if one is damaged."""
        return [self.load_image(entry.descriptor, entry.reference) for entry in self.entries()]

    def find(self, name: str) -> Image:
        """Find an image by name, or by (the start of) its ID or the digest of its manifest.

        NotFoundError suggests similar names; InvalidError if several images have IDs with this start.
        """
        entry = self.find_entry(name)
        return self.load_image(entry.descriptor, entry.reference)

    def find_entry(self, name: str) -> Entry:
        """As `find`, for an image that may be damaged."""
        entries = self.entries()
        for entry in matching(entries, name):
            return entry
        found: dict[Digest, Entry] = {}
        for entry in sorted(entries, key=lambda entry: entry.reference is None):
            digests = self._digests(entry)
            if is_start_of(name, digests):
                found.setdefault(digests[0], entry)
        if len(found) > 1:
            listed = ", ".join(sorted(str(entry.reference or entry.descriptor.digest) for entry in found.values()))
            raise InvalidError(f"{name} matches the IDs of several images: {listed}")
        for entry in found.values():
            return entry
        raise no_such_image(name, entries)

    def _digests(self, entry: Entry) -> list[Digest]:
        """The digests that identify an image: its ID (if it is readable), those of its manifest and of its index."""
        try:
            image = self.load_image(entry.descriptor, entry.reference)
        except ImageError:
            return [entry.descriptor.digest]
        return [image.id, image.descriptor.digest, entry.descriptor.digest]

    def load_image(
        self, descriptor: Descriptor, reference: Reference | None = None, platform: Platform | None = None
    ) -> Image:
        """Read an image; from an index the one for `platform` (None: that of this machine, or else any)."""
        if descriptor.media_type in INDEX_TYPES:
            member = self._member(descriptor, platform)
            return _member_of(bare(descriptor), self.load_image(member, reference, platform))
        manifest = self.load_manifest(descriptor)
        what = f"the configuration {manifest.config.digest}"
        config = parse(self.read_blob(manifest.config), ImageConfig, what)
        check_layer_count(manifest, config, str(reference or descriptor.digest))
        return Image(reference, bare(descriptor), manifest, config)

    def load_by_manifest(self, digest: Digest) -> Image:
        """Read an image by the digest of its manifest, whether it has a name or not. Raises NotFoundError."""
        try:
            size = self.blob_path(digest).stat().st_size
        except FileNotFoundError:
            raise NotFoundError(f"the image {digest} is not in the store any more: load or pull it again") from None
        manifest = self.load_manifest(Descriptor(OCI_MANIFEST, digest, size))
        return self.load_image(Descriptor(manifest.media_type or OCI_MANIFEST, digest, size))

    def load_manifest(self, descriptor: Descriptor) -> Manifest:
        if descriptor.media_type not in MANIFEST_TYPES:
            raise InvalidError(f"{descriptor.digest} is no image: its media type is {descriptor.media_type!r}")
        return parse(self.read_blob(descriptor), Manifest, f"the manifest {descriptor.digest}")

    def load_index(self, descriptor: Descriptor) -> Index:
        return parse(self.read_blob(descriptor), Index, f"the index {descriptor.digest}")

    def _member(self, descriptor: Descriptor, platform: Platform | None) -> Descriptor:
        """The member of an index to use; nested indexes are not followed."""
        manifests = [member for member in self.load_index(descriptor).manifests if names_image(member)]
        try:
            return choose(manifests, platform, lambda member: self.has_blob(member.digest))
        except NotFoundError:
            here = [member for member in manifests if self.has_blob(member.digest)]
            if platform is not None or not here:
                raise
            return here[0]

    # names

    def put_image(self, manifest: Manifest, config: ImageConfig, reference: Reference | None) -> Image:
        """Keep a new image whose layers are in the store: its configuration, its manifest, and last its name.

        `manifest.config` and the media types are set here.
        """
        described = self.add_blob(dump(config), OCI_CONFIG)
        manifest = replace(manifest, config=described, media_type=OCI_MANIFEST)
        descriptor = self.add_blob(dump(manifest), OCI_MANIFEST)
        self.keep(descriptor, reference)
        return self.load_image(descriptor, reference)

    def tag(self, descriptor: Descriptor, reference: Reference) -> None:
        """Give an image of the store a name, atomically; the image that had the name is kept without it."""
        self.keep(descriptor, reference)

    def keep(self, descriptor: Descriptor, reference: Reference | None) -> None:
        """As `tag`; None keeps an image without a name, unless it has one already. Raises as `check_complete`.

        Unnamed entries of the same image by another manifest (its layers compressed otherwise) are dropped.
        """
        self.check_complete(descriptor)
        new = Entry(reference, bare(descriptor))
        self._layout.edit(lambda entries: _with(entries, new, self._same_image(entries, new)))

    def _same_image(self, entries: list[Entry], new: Entry) -> set[Digest]:
        """The manifests that `new` may replace and that have the same ID: the same layers, compressed otherwise."""
        identity = self.load_image(new.descriptor).id
        concerned = [entry for entry in entries if new.reference is None or entry.reference in (None, new.reference)]
        same = {entry.descriptor.digest for entry in concerned if self._whole_id(entry.descriptor) == identity}
        return same | {new.descriptor.digest}

    def _whole_id(self, descriptor: Descriptor) -> Digest | None:
        """The ID of an image of one manifest, if it is complete; None for an index."""
        if descriptor.media_type not in MANIFEST_TYPES:
            return None
        try:
            self.check_complete(descriptor)
            return self.load_manifest(descriptor).config.digest
        except ImageError:
            return None

    def untag(self, reference: Reference) -> None:
        """Remove a name, and with its last name the image; its blobs stay until `prune`. Raises NotFoundError."""

        def without(entries: list[Entry]) -> list[Entry]:
            if all(entry.reference != reference for entry in entries):
                raise no_such_image(reference.familiar, entries)
            return [entry for entry in entries if entry.reference != reference]

        self._layout.edit(without)

    def forget(self, digest: Digest) -> None:
        """Remove all entries of the manifest or index `digest`; its blobs stay until `prune`."""
        self._layout.edit(lambda entries: [entry for entry in entries if entry.descriptor.digest != digest])

    def check_complete(self, descriptor: Descriptor) -> None:
        """Raises NotFoundError if a blob of the image is missing; of an index one image must be complete."""
        if descriptor.media_type in INDEX_TYPES:
            descriptor = self._member(descriptor, None)
        manifest = self.load_manifest(descriptor)
        for blob in (manifest.config, *manifest.layers):
            if not self.has_blob(blob.digest):
                raise NotFoundError(f"{descriptor.digest} is not complete: {blob.digest} is missing; load or pull it")

    # use

    def record_mount(self, use: Use) -> str:
        """Protect everything that `use` refers to from pruning while its process lives; the name of the record.

        The store must have been open since before the layers were looked up.
        """
        return self._uses.record(use)

    def mounts(self) -> dict[str, Use]:
        """The uses of live processes, by the names of their records."""
        return self._uses.listed()

    def uses(self) -> set[Digest]:
        """The keys of the layers that live processes use, or podman."""
        used = {key for use in self.mounts().values() for key in use.layers}
        if is_shared(self.path):
            from .podman_records import layers_in_use

            used |= {record.key for record in layers_in_use(self.path)}
        return used

    def forget_mount(self, name: str) -> None:
        """Remove a record; `prune` removes records of ended processes."""
        self._uses.remove(name)

    def sweep_uses(self) -> None:
        """Remove the records of processes that have ended; only while the store is held alone."""
        self._uses.sweep()

    # removal

    def sweep(self) -> None:
        """Remove the leftovers of interrupted work, if nobody else works in the store; partial downloads stay."""
        left = [path for path in (self.path / "tmp").iterdir() if not path.name.startswith(PARTIAL)]
        if left:
            with suppress(InUseError), self.alone(patience_s=0):
                remove_leftovers(left)


def _member_of(root: Descriptor, image: Image) -> Image:
    return Image(image.reference, image.descriptor, image.manifest, image.config, root)


def _check_is_ours(path: Path) -> None:
    """Raises InvalidError for a directory that others own or that is not a store. Sets the mode to 0700."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise InvalidError(
            f"{path} belongs to user {found.st_uid}: a store is for its owner only; name another by --store"
        )
    names = os.listdir(path)
    is_store = "oci-layout" in names or {"index.json", "blobs"}.issubset(names)  # one of them may be lost
    if not is_store and not _OWN.issuperset(names):
        raise InvalidError(f"{path} is no store, and not empty: name another by --store")
    if found.st_mode & 0o077:
        path.chmod(0o700)


def _with(entries: list[Entry], new: Entry, same: set[Digest]) -> list[Entry]:
    """The entries with the new one, which takes its name from another entry and replaces unnamed ones of its own.

    `same` are the digests under which the new image may be listed already.
    """
    if new.reference is None:
        return entries if any(entry.descriptor.digest in same for entry in entries) else [*entries, new]
    if any(entry.reference == new.reference and entry.descriptor.digest == new.descriptor.digest for entry in entries):
        return entries
    others = [entry for entry in entries if entry.reference or entry.descriptor.digest not in same]
    kept = []
    for entry in others:
        if entry.reference != new.reference:
            kept.append(entry)
        elif entry.descriptor.digest not in same and _is_only_name(entry, others):
            kept.append(Entry(None, entry.descriptor))
    return [*kept, new]


def _is_only_name(entry: Entry, entries: list[Entry]) -> bool:
    return sum(other.descriptor.digest == entry.descriptor.digest for other in entries) == 1
