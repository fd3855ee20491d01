"""Which parts of the store are damaged, and how is the damage removed?

Blobs are compared with their digests, images with the list of their parts, unpacked layers with their file indexes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..oci.digest import ALGORITHM, Digest, chain_ids, parse_digest
from ..oci.documents import INDEX_TYPES, Descriptor
from ..oci.errors import ImageError
from ..oci.progress import NO_PROGRESS, Progress, Task
from ..tar.compression import CHUNK
from .layers import LayerStore
from .names import Entry
from .published import stamp_file
from .store import Image, Store

_OCTETS: Final = "application/octet-stream"
_MOST_FINDINGS: Final = 20
"""Lines shown for one layer; a layer with more should simply be unpacked again."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A damaged object and its fault. `path` is the file to remove if that mends it: the object can then be loaded,
    pulled or unpacked again."""

    what: str
    problem: str
    path: Path | None = None


def verify(store: Store, names: Sequence[str] = (), progress: Progress = NO_PROGRESS) -> list[Finding]:
    """Read everything, or all of the images `names`; the damage. Raises NotFoundError for an unknown name."""
    entries = [store.find_entry(name) for name in names] or store.entries()
    findings = [finding for entry in entries for finding in _incomplete(store, entry)]
    blobs, keys = _digests(store.path / "blobs" / ALGORITHM), _digests(store.path / "layers")
    if names:
        images = [store.load_image(entry.descriptor) for entry in entries] if not findings else []
        blobs &= {blob.digest for image in images for blob in _blobs(image)}
        keys &= {key for image in images for key in _keys(image)}
    return [*findings, *_damaged_blobs(store, blobs, progress), *_damaged_layers(store, keys, progress)]


def mend(store: Store, findings: Iterable[Finding]) -> list[Finding]:
    """Remove damaged objects that can be fetched again; the findings mended so. Layers in use are left alone.

    The caller has held the store alone since before the `findings` were made.
    """
    in_use = {LayerStore(store).path(key).parent for key in store.uses()}
    mended = [finding for finding in findings if finding.path is not None and finding.path not in in_use]
    store.stage.remove_whole({finding.path for finding in mended if finding.path})
    stamp_file(store.path).unlink(missing_ok=True)  # podman's view of the layers is to be made again
    return mended


def _blobs(image: Image) -> list[Descriptor]:
    root = [image.root] if image.root else []
    return [*root, image.descriptor, image.manifest.config, *image.manifest.layers]


def _keys(image: Image) -> list[Digest]:
    """All keys that its layers may have."""
    diff_ids = image.config.rootfs.diff_ids
    return [*diff_ids, *chain_ids(diff_ids)]


def _digests(directory: Path) -> set[Digest]:
    """The files of a directory whose names are digests."""
    found = set()
    for name in os.listdir(directory):
        try:
            found.add(parse_digest(f"{ALGORITHM}:{name}"))
        except ImageError:
            continue
    return found


def _incomplete(store: Store, entry: Entry) -> list[Finding]:
    """Why an image cannot be read at all."""
    name = entry.reference.familiar if entry.reference else entry.descriptor.digest
    try:
        if entry.descriptor.media_type in INDEX_TYPES:
            store.load_index(entry.descriptor)
        store.load_image(entry.descriptor)
        store.check_complete(entry.descriptor)
    except ImageError as error:
        return [Finding(name, str(error))]
    return []


def _damaged_blobs(store: Store, digests: Iterable[Digest], progress: Progress) -> list[Finding]:
    """Blobs that do not match their digest, read by several threads."""
    present = [digest for digest in sorted(digests) if store.has_blob(digest)]
    sizes = {digest: store.blob_path(digest).stat().st_size for digest in present}
    task = progress.begin("verify blobs", sum(sizes.values()))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = pool.map(lambda digest: _damaged_blob(store, digest, sizes[digest], task), present)
        findings = [finding for finding in found if finding]
    task.done()
    return findings


def _damaged_blob(store: Store, digest: Digest, size: int, task: Task) -> Finding | None:
    try:
        with store.open_blob(Descriptor(_OCTETS, digest, size)) as blob:
            while data := blob.read(CHUNK):
                task.advance(len(data))
    except (ImageError, OSError) as error:
        return Finding(f"blob {digest}", _said(error).removeprefix(f"{digest} "), store.blob_path(digest))
    return None


def _said(error: ImageError | OSError) -> str:
    return str(error) if isinstance(error, ImageError) else f"{error.strerror}: {error.filename}"


def _damaged_layers(store: Store, keys: Iterable[Digest], progress: Progress) -> list[Finding]:
    layers = LayerStore(store)
    present = [key for key in sorted(keys) if layers.path(key).parent.is_dir()]
    task = progress.begin("verify layers", None)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(lambda key: _damaged_layer(layers, key), present))
    task.done()
    return [finding for findings in found for finding in findings]


def _damaged_layer(layers: LayerStore, key: Digest) -> list[Finding]:
    path = layers.path(key).parent
    try:
        problems = layers.verify(key)
    except (ImageError, OSError) as error:
        problems = [_said(error)]
    shown = problems[:_MOST_FINDINGS]
    more = [f"{len(problems) - len(shown)} more findings"] if len(problems) > len(shown) else []
    return [Finding(f"layer {key}", problem, path) for problem in (*shown, *more)]
