"""How does podman run the images of this store without a copy? By a directory in the layout of containers/storage.

`podman/overlay/layers` is the store's directory of layers, and `layers` a symlink to it: podman maps ids by an idmapped
mount of `overlay`, so the trees must lie below. `overlay/ID` of a layer is a symlink to the tree's directory, which
then also has the files `link` and `lower`; a tree that stands on different layers in different images has further
layers in directories of their own, whose `diff` is a symlink. A layer has the ID that podman would give it, so that a
`podman pull` uses those that are here.

The records are replaced when images of the store have come or gone. What podman uses stays until podman removes it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from msgspec.structs import replace

from ..._log import Log
from ...tree.syscalls import RENAME_EXCHANGE, renameat2
from ..layer.file_index import Record
from ..layer.hashed_chunks import HashedChunks
from ..oci.digest import Digest, digest_of, hex_of
from ..oci.errors import DigestError, ImageError, InUseError, InvalidError
from ..tar.compression import open_decompressed
from ..tar.split import Split, write_split
from .layers import Layer, LayerStore, layers_of
from .locking import locked
from .podman_documents import check_readable
from .podman_records import (
    ImageRecord,
    LayerRecord,
    known_roots,
    layer_records,
    layers_file,
    layers_in_use,
    no_new_uses,
    podmans_lock,
    read_records,
    roots_file,
    split_file,
)
from .published import DIRECTORY, images_file, is_shared, stamp_file, stamp_of
from .staging import remove_tree, sync_directory
from .store import Image, Store

_log = Log(__name__)
_AT_FDCWD: Final = -100
_MOVED: Final = f"{DIRECTORY}/overlay/layers"
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.")


def share(store: Store, graph_root: Path) -> Path:
    """Let a podman that keeps its containers in `graph_root` see the images; the directory to configure."""
    place = store.path / DIRECTORY
    for name in ("", "overlay", "overlay/l", "overlay-images", "overlay-layers"):
        (place / name).mkdir(0o755, exist_ok=True)
    with locked(place / "lock"):
        _exchange_layers(store, is_shared=True)
        roots = sorted({*known_roots(store.path), str(graph_root)})
        _replace(store, roots_file(store.path), msgspec.json.encode(roots))
        if not is_shared(store.path):
            _replace(store, images_file(store.path), b"[]")
    publish(store)
    return place


def unshare(store: Store) -> None:
    """Take the images away from podman. InUseError while it uses some."""
    if not is_shared(store.path):
        return
    place = store.path / DIRECTORY
    with locked(place / "lock"), no_new_uses(store.path):
        check_unused(store)
        images_file(store.path).unlink()
        _remove_all_but(place, {}, {})
        _exchange_layers(store, is_shared=False)
    if (store.path / _MOVED).is_symlink():  # not the layers themselves
        remove_tree(place)


def check_unused(store: Store) -> None:
    """Raises InUseError if podman needs this store."""
    if layers_in_use(store.path):
        raise InUseError("podman has containers or images that stand on layers of this store: remove them first")


def publish(store: Store) -> None:
    """Bring the records up to date with the images of the store; layers that are packed are unpacked."""
    if is_shared(store.path):
        with locked(store.path / DIRECTORY / "lock"):
            _publish(store, no_new_uses(store.path))


def publish_held(store: Store) -> None:
    """As `publish`, within `no_new_uses`."""
    if is_shared(store.path):
        with locked(store.path / DIRECTORY / "lock"):
            _publish(store, nullcontext())


def _publish(store: Store, holding: AbstractContextManager[None]) -> None:
    place = store.path / DIRECTORY
    before = {record.id: record for record in layer_records(store.path)}
    stamp = stamp_of(store.path)
    images, layers = _records(store, before)
    with holding:
        layers |= {record.id: record for record in layers_in_use(store.path) if LayerStore(store).has(record.key)}
        for record in layers.values():
            if record.id in before and before[record.id].key != record.key:
                _remove_layer(place / "overlay" / record.id)
            _make_layer(store, record, layers)
        with podmans_lock(place / "overlay-layers/layers.lock"), podmans_lock(place / "overlay-images/images.lock"):
            _replace(store, layers_file(store.path), msgspec.json.encode(list(layers.values())))
            _replace(store, images_file(store.path), msgspec.json.encode(list(images.values())))
        _remove_all_but(place, images, layers)
    _replace(store, stamp_file(store.path), stamp.encode())


def _exchange_layers(store: Store, *, is_shared: bool) -> None:
    """Let the store's layers lie below podman's directory or not; the store's own path leads to them all the time."""
    layers, moved = store.path / "layers", store.path / _MOVED
    if layers.is_symlink() == is_shared:
        return
    if is_shared:
        with suppress(FileExistsError):
            moved.symlink_to(_MOVED)
    renameat2(_AT_FDCWD, os.fsencode(layers), _AT_FDCWD, os.fsencode(moved), RENAME_EXCHANGE)
    sync_directory(store.path)


def _records(store: Store, before: dict[str, LayerRecord]) -> tuple[dict[str, ImageRecord], dict[str, LayerRecord]]:
    """The images by ID, and their layers. An image that is damaged is left out, and said to be."""
    written: dict[str, ImageRecord] = {}
    with suppress(InvalidError):  # they are made again
        written = {record.id: record for record in read_records(images_file(store.path), ImageRecord)}
    images: dict[str, ImageRecord] = {}
    layers: dict[str, LayerRecord] = {}
    for entry in store.entries():
        try:
            image = store.load_image(entry.descriptor, entry.reference)
            stack = _stack(store, image, before)
            name = hex_of(image.id)
            record = images.get(name) or _image(store, image, stack[-1].id if stack else "", written.get(name))
        except ImageError as error:
            _log.warning("podman does not see %s: %s", entry.reference or entry.descriptor.digest, error)
            continue
        layers |= {record.id: record for record in stack}
        images[name] = replace(record, names=[*record.names, *_names(image)])
    return images, layers


def _names(image: Image) -> list[str]:
    """As podman spells them: with a tag or a digest."""
    reference = image.reference
    if reference is None:
        return []
    return [f"{reference.name}@{reference.digest}" if reference.digest else str(reference)]


def _stack(store: Store, image: Image, before: dict[str, LayerRecord]) -> list[LayerRecord]:
    """The layers of an image, bottom first."""
    unpacked = LayerStore(store)
    keys = unpacked.keys(image)
    if keys is None:
        from .missing_layers import unpack_image

        keys = unpack_image(store, image)
    stack: list[LayerRecord] = []
    for layer, key in zip(layers_of(image), keys, strict=True):
        parent = stack[-1].id if stack else ""
        known = before.get(_layer_id(parent, layer.diff_id))
        stack.append(known if known and known.key == key else _layer(store, layer, key, parent))
    return stack


def _layer_id(parent: str, diff_id: Digest) -> str:
    """The ID that containers/image (storage/storage_dest.go) gives to a layer on its parent."""
    own = hex_of(diff_id)
    return hashlib.sha256(f"{parent}+{own}".encode()).hexdigest() if parent else own


def _layer(store: Store, layer: Layer, key: Digest, parent: str) -> LayerRecord:
    """The record of a layer, after that of its tar was written, which `podman push` and `save` need."""
    records = LayerStore(store).index(key).records
    name = _layer_id(parent, layer.diff_id)
    return LayerRecord(
        id=name,
        key=key,
        parent=parent,
        compressed_digest=layer.blob.digest,
        compressed_size=layer.blob.size,
        digest=layer.diff_id,
        size=_write_split(store, layer, records, split_file(store.path, name)),
        uids=sorted({record.uid for record in records}),
        gids=sorted({record.gid for record in records}),
    )


def _write_split(store: Store, layer: Layer, records: Sequence[Record], path: Path) -> int:
    """Write what the tar of a layer has besides the files' data; the length of the tar."""
    tree = {record.path: record.content for record in records if record.kind == "f"}
    with _replacing(store, path) as file:
        found = _split(store, layer, tree, file, frozenset())
        if found.unlike:
            file.seek(0)
            file.truncate()
            found = _split(store, layer, tree, file, found.unlike)
    return found.length


def _split(store: Store, layer: Layer, tree: dict[bytes, bytes], file: BinaryIO, embedded: frozenset[bytes]) -> Split:
    """Raises DigestError where the blob has changed since the layer was unpacked."""
    with (
        gzip.GzipFile("", "wb", 1, file) as out,
        open(store.blob_path(layer.blob.digest), "rb", buffering=0) as blob,
        HashedChunks(open_decompressed(blob, store.limits, layer.name)) as chunks,
    ):
        found = write_split(chunks, out, store.limits, layer.name, tree, embedded)
        if chunks.digest() != layer.diff_id:
            raise DigestError(f"{layer.name}: its content has another digest, {chunks.digest()}")
    return found


def _image(store: Store, image: Image, top: str, written: ImageRecord | None) -> ImageRecord:
    """The record of an image, still without names; its documents are written if they are not yet."""
    if written and written.digest == image.descriptor.digest:
        return replace(written, names=[], layer=top)
    manifest, config = store.read_blob(image.descriptor), store.read_blob(image.manifest.config)
    check_readable(image.manifest, manifest, config)
    documents = {
        "manifest": manifest,
        f"manifest-{image.descriptor.digest}": manifest,
        image.id: config,
    }
    directory = images_file(store.path).parent / hex_of(image.id)
    directory.mkdir(0o755, exist_ok=True)
    for name, data in documents.items():
        _replace(store, directory / _file_name(name), data)
    return ImageRecord(
        id=hex_of(image.id),
        digest=image.descriptor.digest,
        names=[],
        layer=top,
        created=image.config.created,
        documents=list(documents),
        sizes={name: len(data) for name, data in documents.items()},
        digests={name: digest_of(data) for name, data in documents.items()},
    )


def _file_name(name: str) -> str:
    """The file of a document (containers/storage, images.go, makeBigDataBaseName)."""
    return name if _PLAIN.issuperset(name) else "=" + base64.b64encode(name.encode()).decode()


def _make_layer(store: Store, record: LayerRecord, layers: dict[str, LayerRecord]) -> None:
    """The entry of a layer below `overlay`, where it is missing."""
    overlay = store.path / DIRECTORY / "overlay"
    own = overlay / record.id
    is_first = _text(overlay / "layers" / hex_of(record.key) / "link") in ("", record.link)
    if own.is_symlink() and not is_first:  # an interrupted change made it, and another layer has the tree now
        own.unlink()
    with suppress(FileExistsError):
        own.symlink_to(f"layers/{hex_of(record.key)}") if is_first else own.mkdir(0o755)
    with suppress(FileExistsError):
        # absolute: podman refuses to save a layer with a relative one
        (own / "diff").symlink_to(store.path / "layers" / hex_of(record.key) / "diff")
    if _text(own / "link") != record.link:
        if lower := _lower(record, layers):
            _replace(store, own / "lower", lower.encode())
        _replace(store, own / "link", record.link.encode())
    with suppress(FileExistsError):
        (overlay / "l" / record.link).symlink_to(f"../{record.id}/diff")


def _lower(record: LayerRecord, layers: dict[str, LayerRecord]) -> str:
    """The links of the layers below, top first; of a tree that an image has twice, only the upper one counts."""
    links, passed, below = list[str](), {record.key}, layers.get(record.parent)
    while below:
        if below.key not in passed:
            links.append(f"l/{below.link}")
        passed.add(below.key)
        below = layers.get(below.parent)
    return ":".join(links)


def _remove_all_but(place: Path, images: dict[str, ImageRecord], layers: dict[str, LayerRecord]) -> None:
    """Remove what belongs to no record, such as that of an interrupted change."""
    records = ("images.json", "images.lock", "layers.json", "layers.lock")
    splits = [f"{name}.tar-split.gz" for name in layers]
    for path in _others(place / "overlay", ("l", "layers", *layers)):
        _remove_layer(path)
    for path in _others(place / "overlay/l", [record.link for record in layers.values()]):
        path.unlink()
    for path in (
        *_others(place / "overlay-layers", (*records, *splits)),
        *_others(place / "overlay-images", (*records, *images)),
    ):
        remove_tree(path)


def _others(directory: Path, names: Iterable[str]) -> list[Path]:
    return [directory / name for name in set(os.listdir(directory)).difference(names)]


def _remove_layer(own: Path) -> None:
    if own.is_symlink():
        leads = own.parent / "l" / _text(own / "link")
        if not leads.is_symlink() or os.readlink(leads) == f"../{own.name}/diff":  # else another layer has the tree now
            for name in ("link", "lower"):
                (own / name).unlink(missing_ok=True)
        own.unlink()
    else:
        remove_tree(own)


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except FileNotFoundError:
        return ""


def _replace(store: Store, path: Path, data: bytes) -> None:
    with _replacing(store, path) as file:
        file.write(data)


@contextmanager
def _replacing(store: Store, path: Path) -> Iterator[BinaryIO]:
    """The file that is `path` afterwards. A crash leaves it whole, as it was or as it is to be."""
    staged = store.stage.new_name()
    try:
        with open(staged, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
    finally:
        staged.unlink(missing_ok=True)
