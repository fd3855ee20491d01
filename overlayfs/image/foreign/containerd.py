"""The storage of containerd, with the layers of its own overlayfs snapshotter and of ours.

`meta.db` (metadata/buckets.go) has for each namespace the images by name and the snapshots of each snapshotter by
chainID; the snapshotter's own database has the id and parent of each snapshot (snapshots/storage/bolt.go). The tree of
a snapshot is `snapshots/ID/fs`, in the kernel's format. Documents lie in the content store under their digests.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

from ..oci.artifacts import names_image
from ..oci.digest import Digest, chain_ids, digest_of, hex_of, parse_digest
from ..oci.documents import INDEX_TYPES, MAX_DOCUMENT, ImageConfig, Index, Manifest, parse
from ..oci.errors import DigestError, ImageError, InvalidError, NotFoundError
from ..oci.platforms import choose
from .bolt import Bucket, open_database
from .stored_image import StoredImage, joined

Document = TypeVar("Document")

_METADATA: Final = "io.containerd.metadata.v1.bolt/meta.db"
_CONTENT: Final = "io.containerd.content.v1.content/blobs/sha256"
_SNAPSHOTTER: Final = "io.containerd.snapshotter.v1.overlayfs"
_COMMITTED: Final = 3
_LONGEST_VARINT: Final = 10
_OURS: Final = f"""
SELECT own.id, own.name, coalesce(above.name, '')
FROM snapshots AS own LEFT JOIN snapshots AS above ON above.id = own.parent WHERE own.kind = {_COMMITTED}
"""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The tree of a committed snapshot, and the name of its parent or an empty one."""

    tree: Path
    parent: str


Snapshots = Mapping[str, _Snapshot]


def images_of_containerd(root: Path, ours: Mapping[str, Path], namespace: str) -> Iterator[StoredImage]:
    """The images of all namespaces, those of `namespace` first.

    `ours` has the directories of our own snapshotters by the names under which containerd knows them.
    """
    try:
        top = open_database(root / _METADATA).buckets().get(b"v1")
    except NotFoundError:
        return
    trees = {"overlayfs": _snapshots_of_containerd(root / _SNAPSHOTTER)}
    trees |= {name: _snapshots_of_ours(directory) for name, directory in ours.items()}
    namespaces = sorted((top.buckets() if top else {}).items(), key=lambda item: (item[0] != namespace.encode(), item))
    # containerd has a record for each name, and for each namespace
    yield from joined(image for _, bucket in namespaces for image in _images_in(bucket, root / _CONTENT, trees))


def _images_in(namespace: Bucket, content: Path, trees: Mapping[str, Snapshots]) -> Iterator[StoredImage]:
    members = namespace.buckets()
    images, snapshots = (members.get(name) for name in (b"images", b"snapshots"))
    chains = _chains(snapshots) if snapshots else {}
    for name, record in (images.buckets() if images else {}).items():
        yield _image(name.decode("utf-8", "replace"), record, content, chains, trees)


def _chains(snapshots: Bucket) -> dict[str, list[tuple[str, str]]]:
    """For each chainID the snapshotters that have it, with their own names for the snapshot."""
    chains: dict[str, list[tuple[str, str]]] = {}
    for snapshotter, bucket in snapshots.buckets().items():
        for key, record in bucket.buckets().items():
            if name := record.values().get(b"name"):
                chains.setdefault(_text(key), []).append((_text(snapshotter), _text(name)))
    return chains


def _image(
    name: str,
    record: Bucket,
    content: Path,
    chains: Mapping[str, list[tuple[str, str]]],
    trees: Mapping[str, Snapshots],
) -> StoredImage:
    """An image, or what has the name of one: an artifact, content of other platforms alone, or none yet."""
    target = record.buckets().get(b"target")
    described = target.values() if target else {}
    digest, media_type = (_text(described.get(key, b"")) for key in (b"digest", b"mediatype"))
    try:
        manifest = _manifest(content, parse_digest(digest), media_type)
        config = _document(content, manifest.config.digest, ImageConfig)
    except ImageError as error:
        return StoredImage(digest.rpartition(":")[2], (name,), "", None, (), str(error))
    size = sum(layer.size for layer in manifest.layers)
    image = StoredImage(hex_of(manifest.config.digest), (name,), config.created, size, ())
    try:
        return replace(image, layers=_layers(chain_ids(config.rootfs.diff_ids), chains, trees))
    except ImageError as error:
        return replace(image, missing=str(error))


def _layers(
    chain: list[Digest], chains: Mapping[str, list[tuple[str, str]]], trees: Mapping[str, Snapshots]
) -> tuple[Path, ...]:
    """The trees of the first snapshotter that has the whole chain, top first. Raises NotFoundError, InvalidError."""
    if not chain:
        return ()
    for snapshotter, name in chains.get(chain[-1], ()):
        if name in trees.get(snapshotter, ()):
            return tuple(_lineage(name, trees[snapshotter]))
    raise NotFoundError("it is not unpacked for containerd's overlayfs snapshotter, nor for ours")


def _lineage(name: str, snapshots: Snapshots) -> Iterator[Path]:
    """The tree of a snapshot and those of its parents."""
    passed = set[str]()
    while name:
        if name in passed or name not in snapshots:
            raise InvalidError(f"snapshot {name!r} of containerd is unknown or below itself")
        passed.add(name)
        yield snapshots[name].tree
        name = snapshots[name].parent


def _snapshots_of_containerd(directory: Path) -> Snapshots:
    try:
        snapshots = open_database(directory / "metadata.db").find(b"v1", b"snapshots")
    except NotFoundError:
        return {}
    records = {key: bucket.values() for key, bucket in (snapshots.buckets() if snapshots else {}).items()}
    return {
        _text(key): _Snapshot(_tree(directory, _number(values.get(b"id", b""))), _text(values.get(b"parent", b"")))
        for key, values in records.items()
        if values.get(b"kind") == bytes([_COMMITTED])
    }


def _tree(directory: Path, number: int) -> Path:
    return directory / "snapshots" / str(number) / "fs"


def _snapshots_of_ours(directory: Path) -> Snapshots:
    path = directory / "metadata.db"
    if not path.exists():
        return {}
    # a reader makes the files beside a database that nobody has open, unless it is told that nobody will write
    is_open = path.with_name("metadata.db-wal").exists()
    try:
        database = sqlite3.connect(f"file:{quote(str(path))}?{'mode=ro' if is_open else 'immutable=1'}", uri=True)
        try:
            rows = database.execute(_OURS).fetchall()
        finally:
            database.close()
    except sqlite3.Error as error:
        raise ImageError(f"{path}: {error}") from None
    return {name: _Snapshot(_tree(directory, number), parent) for number, name, parent in rows}


def _manifest(content: Path, digest: Digest, media_type: str) -> Manifest:
    """The manifest for this machine, of those whose content is here."""
    if media_type in INDEX_TYPES:
        members = [member for member in _document(content, digest, Index).manifests if names_image(member)]
        digest = choose(members, None, lambda member: (content / hex_of(member.digest)).exists()).digest
    return _document(content, digest, Manifest)


def _document(content: Path, digest: Digest, kind: type[Document]) -> Document:
    path = content / hex_of(digest)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_DOCUMENT + 1)
    except FileNotFoundError:
        raise NotFoundError(f"{digest} is not in containerd's content store") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    document = parse(data, kind, str(path))
    if digest_of(data) != digest:
        raise DigestError(f"{path} has other content than its digest says")
    return document


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _number(data: bytes) -> int:
    """An unsigned number as encoding/binary.PutUvarint writes it: 7 bits a byte, the lowest first."""
    if not 0 < len(data) <= _LONGEST_VARINT or data[-1] & 0x80:
        raise InvalidError(f"the id {data.hex()} of a snapshot of containerd is not a number")
    return sum((byte & 0x7F) << (7 * index) for index, byte in enumerate(data))
