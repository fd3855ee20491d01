"""Where are a user's images, and how are they found? The store: an OCI image layout, extracted layers, containers.

One process, many threads: everything here may be called from any of them. Several processes: each holds the store's
lock shared while it has the store open, `prune` holds it alone. A blob, layer or name appears whole or not at all;
`index.json` is written last, so what has a name is complete.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

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
from .staging import PARTIAL, Staging, remove_tree
from .uses import Use, Uses

_DIRECTORIES: Final = ("blobs", "layers", "containers", "mounts", "tmp")
_OWN: Final = frozenset({*_DIRECTORIES, "oci-layout", "index.json", "lock", "index.lock", "lost+found"})


@dataclass(frozen=True, slots=True)
class Image:
    """One platform's image. `root` is what its name stands for, where that is an index that has it for a member."""

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
        """What its name stands for in a registry: the digest of its manifest, or of the index."""
        return (self.root or self.descriptor).digest

    @property
    def name(self) -> str:
        """How to speak of it to people."""
        return self.reference.familiar if self.reference else self.id

    @property
    def size(self) -> int:
        """Bytes of its configuration and layers, compressed as they are."""
        return self.manifest.config.size + sum(layer.size for layer in self.manifest.layers)


def default_directory() -> Path:
    """Where the store of this user is."""
    if os.geteuid() == 0:
        return Path("/var/lib/overlayfs")
    from platformdirs import user_data_path

    return user_data_path("overlayfs")


class Store(Blobs):
    """One store that is open; `close` (or the end of the `with`) lets others prune it."""

    def __init__(self, path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path, self.limits = path, limits
        self._lock = StoreLock(path / "lock")
        self.stage = Staging(path / "tmp")
        self._layout = Layout(path, self.stage)
        self._uses = Uses(path / "mounts", self.stage)
        super().__init__(path, self.stage)

    @classmethod
    def open(cls, directory: Path | None = None) -> Self:
        """The store in `directory` (None: the user's own), made if it is not there: 0700, for one user.

        InvalidError for a directory that is another's or holds other things, and for a bad OVERLAYFS_LAYER_LIMIT. Waits
        while the store is pruned. A child that is forked without exec must close it too.
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
        """Nobody else works in the store meanwhile; InUseError if others still do after `patience_s`."""
        return self._lock.alone(patience_s)

    def staging(self) -> AbstractContextManager[Path]:
        """A fresh directory on the store's filesystem; what is left of it at the end is removed."""
        return self.stage.new_directory()

    # images

    def entries(self) -> list[Entry]:
        """What the store has, unread: names and descriptors, also of images that are damaged."""
        return self._layout.entries()

    def images(self) -> list[Image]:
        """Every image, named or not; of an index that for this machine. Raises ImageError if one is damaged."""
        return [self.load_image(entry.descriptor, entry.reference) for entry in self.entries()]

    def find(self, name: str) -> Image:
        """By name, or by (the start of) its ID or its manifest's digest.

        NotFoundError names what is similar; InvalidError where an ID's start is that of several images.
        """
        entry = self.find_entry(name)
        return self.load_image(entry.descriptor, entry.reference)

    def find_entry(self, name: str) -> Entry:
        """As `find`, but of the image nothing needs to be readable."""
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
            raise InvalidError(f"{name} is the start of several images' IDs: {listed}")
        for entry in found.values():
            return entry
        raise no_such_image(name, entries)

    def _digests(self, entry: Entry) -> list[Digest]:
        """What an image is known by: its ID, if it can be read, its manifest's digest, and its index's."""
        try:
            image = self.load_image(entry.descriptor, entry.reference)
        except ImageError:
            return [entry.descriptor.digest]
        return [image.id, image.descriptor.digest, entry.descriptor.digest]

    def load_image(
        self, descriptor: Descriptor, reference: Reference | None = None, platform: Platform | None = None
    ) -> Image:
        """Read an image of the store; of an index that for `platform` (None: this machine, or else what is there)."""
        if descriptor.media_type in INDEX_TYPES:
            member = self._member(descriptor, platform)
            return _member_of(bare(descriptor), self.load_image(member, reference, platform))
        manifest = self.load_manifest(descriptor)
        what = f"the configuration {manifest.config.digest}"
        config = parse(self.read_blob(manifest.config), ImageConfig, what)
        check_layer_count(manifest, config, str(reference or descriptor.digest))
        return Image(reference, bare(descriptor), manifest, config)

    def load_by_manifest(self, digest: Digest) -> Image:
        """An image that is here, whether it still has a name or not. Raises NotFoundError."""
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
        """The manifest of an index to use; an index within an index is not followed."""
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
        """Keep a new image whose layers are there: its configuration, its manifest, and last its name.

        `manifest.config` and the media types are set here.
        """
        described = self.add_blob(dump(config), OCI_CONFIG)
        manifest = replace(manifest, config=described, media_type=OCI_MANIFEST)
        descriptor = self.add_blob(dump(manifest), OCI_MANIFEST)
        self.keep(descriptor, reference)
        return self.load_image(descriptor, reference)

    def tag(self, descriptor: Descriptor, reference: Reference) -> None:
        """Give an image that is there a name, at once; who had the name stays, without one."""
        self.keep(descriptor, reference)

    def keep(self, descriptor: Descriptor, reference: Reference | None) -> None:
        """As `tag`; None keeps the image without a name, if it has none yet. Raises as `check_complete`.

        Of the same image by another manifest (with layers compressed otherwise) no line without a name is left.
        """
        self.check_complete(descriptor)
        new = Entry(reference, bare(descriptor))
        self._layout.edit(lambda entries: _with(entries, new, self._same_image(entries, new)))

    def _same_image(self, entries: list[Entry], new: Entry) -> set[Digest]:
        """What has the same ID among the manifests that `new` may replace: so the same layers, however packed."""
        identity = self.load_image(new.descriptor).id
        concerned = [entry for entry in entries if new.reference is None or entry.reference in (None, new.reference)]
        same = {entry.descriptor.digest for entry in concerned if self._whole_id(entry.descriptor) == identity}
        return same | {new.descriptor.digest}

    def _whole_id(self, descriptor: Descriptor) -> Digest | None:
        """The ID of an image of one manifest, if all of it is here; an index is more than its image."""
        if descriptor.media_type not in MANIFEST_TYPES:
            return None
        try:
            self.check_complete(descriptor)
            return self.load_manifest(descriptor).config.digest
        except ImageError:
            return None

    def untag(self, reference: Reference) -> None:
        """Remove a name, and with its last name an image; its bytes stay until `prune`. Raises NotFoundError."""

        def without(entries: list[Entry]) -> list[Entry]:
            if all(entry.reference != reference for entry in entries):
                raise no_such_image(reference.familiar, entries)
            return [entry for entry in entries if entry.reference != reference]

        self._layout.edit(without)

    def forget(self, digest: Digest) -> None:
        """Remove all names of the manifest or index `digest`; its bytes stay until `prune`."""
        self._layout.edit(lambda entries: [entry for entry in entries if entry.descriptor.digest != digest])

    def check_complete(self, descriptor: Descriptor) -> None:
        """Raises NotFoundError if a blob of the image is not there; of an index, one of its images must be whole."""
        if descriptor.media_type in INDEX_TYPES:
            descriptor = self._member(descriptor, None)
        manifest = self.load_manifest(descriptor)
        for blob in (manifest.config, *manifest.layers):
            if not self.has_blob(blob.digest):
                raise NotFoundError(f"{descriptor.digest} is not complete: {blob.digest} is missing; load or pull it")

    # use

    def record_mount(self, use: Use) -> str:
        """Keep what `use` names from being pruned for as long as its process lives; the record's name.

        The store must have been open since before the layers were looked up.
        """
        return self._uses.record(use)

    def mounts(self) -> dict[str, Use]:
        """What live processes use of the store, by the names of the records."""
        return self._uses.listed()

    def uses(self) -> set[Digest]:
        """The keys of the layers that live processes use."""
        return {key for use in self.mounts().values() for key in use.layers}

    def forget_mount(self, name: str) -> None:
        """Remove a record; one whose process has ended needs no removal."""
        self._uses.remove(name)

    def sweep_uses(self) -> None:
        """Remove the records of processes that have ended; only while the store is held alone."""
        self._uses.sweep()

    # removal

    def sweep(self) -> None:
        """Remove what interrupted work left, if nobody else is at work; downloads to be continued stay."""
        left = [path for path in (self.path / "tmp").iterdir() if not path.name.startswith(PARTIAL)]
        if left:
            with suppress(InUseError), self.alone(patience_s=0):
                for path in left:
                    remove_tree(path)


def _member_of(root: Descriptor, image: Image) -> Image:
    return Image(image.reference, image.descriptor, image.manifest, image.config, root)


def _check_is_ours(path: Path) -> None:
    """Nobody else may have a say in what is run from here: InvalidError. The directory's mode becomes 0700."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise InvalidError(
            f"{path} belongs to user {found.st_uid}: a store is for its owner only; name another by --store"
        )
    names = os.listdir(path)
    if not _OWN.issuperset(names) and "oci-layout" not in names:
        raise InvalidError(f"{path} is no store, and not empty: name another by --store")
    if found.st_mode & 0o077:
        path.chmod(0o700)


def _with(entries: list[Entry], new: Entry, same: set[Digest]) -> list[Entry]:
    """The entries with the new one: it takes the name from who had it, and the place of itself without a name.

    `same` are the digests by which the new image may be there already.
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
