"""Which images, blobs and layers are no longer needed, and how are they removed? Leftovers of crashes are removed too.

Everything that a name, a container or a live mount refers to is kept, with all that it needs in turn. In the documents
of containers and mounts, and in the records of the steps of builds, every digest counts as a reference, so this module
does not depend on their layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

from ..oci.digest import ALGORITHM, Digest, chain_ids
from ..oci.documents import INDEX_TYPES, OCI_MANIFEST, Descriptor, ImageConfig, parse
from ..oci.errors import ImageError, InUseError, InvalidError
from . import records
from .names import Entry, matching
from .podman import publish_held
from .podman_records import no_new_uses
from .staging import occupied, remove_leftovers, remove_tree, sync_directory
from .store import Store
from .uses import digests_in

_HEX: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Steps(Enum):
    """Which steps of builds stay cached: those whose layers an image has cost nothing."""

    ALL = auto()
    OF_IMAGES = auto()
    NONE = auto()


@dataclass(frozen=True, slots=True)
class PruneReport:
    """The images that were (or would be) removed, by name or digest; counts of the rest, and bytes of disk space."""

    images: tuple[str, ...] = ()
    blobs: int = 0
    layers: int = 0
    steps: int = 0
    leftovers: int = 0
    freed: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    images: list[Entry]
    steps: list[Path]
    blobs: list[Path]
    layers: list[Path]
    leftovers: list[Path]


def prune(store: Store, *, unnamed: bool = True, named: bool = False, dry_run: bool = False) -> PruneReport:
    """As `prune_held`, with the store held alone meanwhile. Raises InUseError if others work in the store."""
    with store.alone():
        return prune_held(store, unnamed=unnamed, named=named, dry_run=dry_run)


def prune_held(
    store: Store,
    *,
    unnamed: bool = True,
    named: bool = False,
    leftovers: bool = True,
    steps: Steps = Steps.OF_IMAGES,
    dry_run: bool = False,
) -> PruneReport:
    """Remove everything that nothing refers to: first images without a name (`unnamed`) or with one (`named`) that no
    container or live mount uses, and all `steps` of builds but these, then blobs and layers. `leftovers` are those of
    interrupted work and downloads.

    The caller holds the store alone. Raises ImageError, with nothing removed, if a document that may hold references
    cannot be read.
    """
    with no_new_uses(store.path):
        plan = _plan(store, unnamed, named, steps)
        if not leftovers:
            plan.leftovers.clear()
        everything = (*plan.blobs, *plan.layers, *plan.leftovers)
        freed = sum(occupied(path) for path in everything) if dry_run else _do(store, plan)
    names = tuple(_name(entry) for entry in plan.images)
    return PruneReport(names, len(plan.blobs), len(plan.layers), len(plan.steps), len(plan.leftovers), freed)


def remove_image(store: Store, name: str, *, force: bool = False) -> list[str]:
    """Remove a name, or all names of the image with that ID; the removed names, as users write them.

    Its bytes stay until `prune`. Raises NotFoundError, and without `force` InUseError where a container or a live
    mount uses it, or its ID has several names.
    """
    entries = store.entries()
    entry = store.find_entry(name)
    same = [other for other in entries if other.descriptor.digest == entry.descriptor.digest]
    is_by_name = entry in matching(entries, name)
    if not is_by_name and len(same) > 1 and not force:
        raise InUseError(f"{name} has several names: {', '.join(map(_name, same))}; name one, or use --force")
    if (len(same) == 1 or not is_by_name) and entry.descriptor.digest in _with_roots(store, entries) and not force:
        raise InUseError(f"a container or mount uses {name}: remove it first, or use --force")
    if is_by_name and entry.reference is not None:
        store.untag(entry.reference)
        return [_name(entry)]
    store.forget(entry.descriptor.digest)
    return list(map(_name, same))


def _plan(store: Store, unnamed: bool, named: bool, steps: Steps) -> _Plan:
    entries = store.entries()
    in_use = _with_roots(store, entries)
    doomed = [
        entry for entry in entries if (named if entry.reference else unnamed) and entry.descriptor.digest not in in_use
    ]
    kept = in_use.union(*(_needs_of(store, entry) for entry in entries if entry not in doomed))
    cached = _cached_steps(store, steps, kept)
    kept = kept.union(*cached.values())
    return _Plan(
        doomed,
        [path for path in _records(store) if path not in cached],
        [path for path in _listed(store.path / "blobs" / ALGORITHM) if _is_garbage(path, kept)],
        [path for path in _listed(store.path / "layers") if _is_garbage(path, kept)],
        _listed(store.path / "tmp"),
    )


def _with_roots(store: Store, entries: Iterable[Entry]) -> set[Digest]:
    """The digests that containers and live mounts refer to, what these need, and the indexes that contain them.

    Of what podman stands on, only the layers.
    """
    held = store.uses() | {use.image for use in store.mounts().values() if use.image}
    for container in _listed(store.path / "containers"):
        record = records.read(container / "container.json", dict)  # without one it can be neither mounted nor run
        held |= digests_in(json.dumps(record).encode())
    needed = held.union(*(_needs_of_unknown(store, digest) for digest in held))
    roots = {
        entry.descriptor.digest
        for entry in entries
        if entry.descriptor.media_type in INDEX_TYPES and not held.isdisjoint(_members(store, entry.descriptor))
    }
    return needed | roots


def _records(store: Store) -> list[Path]:
    """The records of the steps of builds (build/cache.py)."""
    directory = store.path / "build"
    return [path for path in _listed(directory) if path.is_file()] if directory.is_dir() else []


def _cached_steps(store: Store, steps: Steps, kept: set[Digest]) -> dict[Path, set[Digest]]:
    """The records that stay, with the needs of the images that they name; one whose image is gone does not."""
    if steps is Steps.NONE:
        return {}
    found: dict[Path, set[Digest]] = {}
    for record in _records(store):
        try:
            data = record.read_bytes()
        except OSError:  # no build finds it either
            continue
        for digest in digests_in(data):
            needed = _needs_of_unknown(store, digest)
            if needed and (steps is Steps.ALL or _top(store, digest) in kept):
                found[record] = needed
    return found


def _top(store: Store, manifest: Digest) -> Digest | None:
    """The chainID of all layers of an image, None for one without layers."""
    diff_ids = store.load_by_manifest(manifest).config.rootfs.diff_ids
    return chain_ids(diff_ids)[-1] if diff_ids else None


def _members(store: Store, index: Descriptor) -> set[Digest]:
    with suppress(ImageError):  # a damaged index is reported if it is to be kept
        return {member.digest for member in store.load_index(index).manifests}
    return set()


def _needs_of(store: Store, entry: Entry) -> set[Digest]:
    """An image and all that it needs. Raises InvalidError, which says what to do, for a damaged image."""
    try:
        return _needs(store, entry.descriptor)
    except ImageError as error:
        name = _name(entry)
        raise InvalidError(f"{name} is damaged: {error}; or remove it: overlayfs rmi {name}") from None


def _needs(store: Store, descriptor: Descriptor) -> set[Digest]:
    """The digests of its blobs and the possible keys of its layers: diffIDs and chainIDs."""
    if descriptor.media_type in INDEX_TYPES:
        here = [member for member in store.load_index(descriptor).manifests if store.has_blob(member.digest)]
        return {descriptor.digest}.union(*(_needs(store, member) for member in here))
    manifest = store.load_manifest(descriptor)
    needed = {descriptor.digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)}
    diff_ids = parse(store.read_blob(manifest.config), ImageConfig, "its configuration").rootfs.diff_ids
    return needed.union(diff_ids, chain_ids(diff_ids))


def _needs_of_unknown(store: Store, digest: Digest) -> set[Digest]:
    """As `_needs`; nothing if the digest is not that of a manifest in the store."""
    with suppress(ImageError, FileNotFoundError):
        size = store.blob_path(digest).stat().st_size
        return _needs(store, Descriptor(OCI_MANIFEST, digest, size))
    return set()


def _do(store: Store, plan: _Plan) -> int:
    """Remove names and records first: if this is interrupted, none is left without its blobs."""
    for entry in plan.images:
        store.forget(entry.descriptor.digest)
    for record in plan.steps:
        record.unlink(missing_ok=True)
    store.sweep_uses()
    freed = remove_leftovers(plan.leftovers) + sum(map(remove_tree, plan.blobs))
    sync_directory(store.path / "blobs" / ALGORITHM)
    publish_held(store)  # podman needs no blobs; on a full disk its new records need their space
    return freed + store.stage.remove_whole(plan.layers)


def _listed(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def _is_garbage(path: Path, kept: set[Digest]) -> bool:
    """Whether a file is unused; files whose names are not digests are left alone."""
    return _HEX.fullmatch(path.name) is not None and Digest(f"{ALGORITHM}:{path.name}") not in kept


def _name(entry: Entry) -> str:
    return entry.reference.familiar if entry.reference else entry.descriptor.digest
