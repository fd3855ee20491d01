"""How is an image made from another: by adding a layer, by squashing its layers, by changing its configuration?

Everything that is not changed stays as it was: layers below are the same blobs, and unknown members of a configuration
are kept. All parts of a new image are in the store before it gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from ...overlay.changes import Comparison
from ..layer.owners import DiskOwners, OwnerOf
from ..layer.pack import LayerSummary, write_layer
from ..oci.documents import (
    LAYER_TYPES,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    History,
    ImageConfig,
    Manifest,
    RunConfig,
    dump,
    parse_members,
)
from ..oci.instructions import apply_changes
from ..oci.platforms import this_platform
from ..oci.progress import NO_PROGRESS, Progress
from ..oci.reference import Reference
from ..store.lowers import lower_directories
from ..store.store import Image, Store
from .layer_blob import LayerSink, NewLayer
from .verbatim import copy_layer

_OF_A_CONTAINER: Final = ("container", "container_config", "docker_version", "id", "parent")
"""Members of docker's configurations that describe the container of the base image, not of the new one."""
_RUN_MEMBERS: Final = tuple(member.encode_name for member in msgspec.structs.fields(RunConfig))

Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Making:
    """Options for making an image. `epoch`, in seconds, is the creation time, and no time in the layer is later."""

    message: str = ""
    author: str = ""
    changes: Sequence[str] = ()
    created_by: str = ""
    compression: str | None = "gzip"
    epoch: int | None = None
    progress: Progress = NO_PROGRESS

    @property
    def created(self) -> str:
        """RFC 3339, in UTC."""
        moment = datetime.now(UTC) if self.epoch is None else datetime.fromtimestamp(self.epoch, UTC)
        return moment.isoformat().replace("+00:00", "Z")


class Made(NamedTuple):
    """A new image, and the counts of its new layer."""

    image: Image
    summary: LayerSummary


def commit(
    store: Store,
    base: Image | None,
    comparison: Comparison,
    reference: Reference | None,
    making: Making,
    *,
    may_hold_marks: bool = True,
) -> Made:
    """The base image with the changes as a new layer (none if nothing changed). Raises the errors of `write_layer`."""
    apply_changes(RunConfig(), making.changes)  # before the work is done in vain
    with _sink(store, making) as sink:
        summary = write_layer(
            comparison,
            sink,
            source_date_epoch=making.epoch,
            may_hold_marks=may_hold_marks,
            owner_of=_owner_in_layers(),
            limits=store.limits,
        )
        layer = None if summary.is_empty else sink.commit()
    return Made(_add_layer(store, base, layer, reference, making), summary)


def append(
    store: Store,
    base: Image | None,
    source: Path,
    reference: Reference | None,
    making: Making,
    *,
    owner: tuple[int, int] | None = None,
) -> Made:
    """The base image with one more layer: a directory, or the unchanged members of a tar.

    With `owner` (uid, gid) all files of the directory belong to it; without, the files of an ordinary user become
    root's. The metadata of the directory itself do not replace those of the image's root. A tar is unpacked at once to
    check it: where that fails, InvalidError is raised and the image gets no name.
    """
    apply_changes(RunConfig(), making.changes)
    with _sink(store, making) as sink:
        if source.is_dir():
            with Comparison.open(os.fsencode(source), []) as comparison:
                summary = write_layer(
                    comparison,
                    sink,
                    source_date_epoch=making.epoch,
                    may_hold_marks=False,
                    has_root=base is None,
                    owner_of=_owner_in_directory(owner),
                    limits=store.limits,
                )
        else:
            summary = copy_layer(source, sink, store.limits)
        layer = sink.commit()
    return Made(_add_layer(store, base, layer, reference, making, is_foreign=not source.is_dir()), summary)


def squash(store: Store, image: Image, reference: Reference | None, making: Making) -> Made:
    """The image with a single layer that holds the merged tree of all its layers."""
    apply_changes(RunConfig(), making.changes)
    layers = lower_directories(store, image)
    with _sink(store, making) as sink:
        with Comparison.open_whole([os.fsencode(layer) for layer in layers]) as comparison:
            summary = write_layer(
                comparison,
                sink,
                source_date_epoch=making.epoch,
                owner_of=_owner_in_layers(),
                limits=store.limits,
            )
        layer = sink.commit()
    raw = _configuration(store, image)
    raw["history"] = [{**step, "empty_layer": True} for step in raw["history"]] + [_step(making, is_empty=False)]
    raw["rootfs"]["diff_ids"] = [layer.diff_id]
    return Made(_put(store, raw, [layer.descriptor], reference, making), summary)


def _owner_in_layers() -> OwnerOf | None:
    users = DiskOwners.of_this_user()
    return None if users is None else users.of_layer_file


def _owner_in_directory(owner: tuple[int, int] | None) -> OwnerOf | None:
    if owner is not None:
        return lambda _: owner
    users = DiskOwners.of_this_user()
    return None if users is None else users.of_plain_file


def _sink(store: Store, making: Making) -> LayerSink:
    return LayerSink(store, making.compression, task=making.progress.begin("layer", None))


def _add_layer(
    store: Store,
    base: Image | None,
    layer: NewLayer | None,
    reference: Reference | None,
    making: Making,
    *,
    is_foreign: bool = False,
) -> Image:
    raw = _configuration(store, base)
    layers = [] if base is None else [_as_oci(descriptor) for descriptor in base.manifest.layers]
    raw["history"].append(_step(making, is_empty=layer is None))
    if layer is not None:
        raw["rootfs"]["diff_ids"].append(layer.diff_id)
        layers.append(layer.descriptor)
    return _put(store, raw, layers, reference, making, is_foreign=is_foreign)


def _configuration(store: Store, base: Image | None) -> Raw:
    """The configuration of the base, decoded for editing, with a history entry for each layer."""
    if base is None:
        platform = msgspec.to_builtins(this_platform())
        return {**platform, "config": {}, "rootfs": {"type": "layers", "diff_ids": []}, "history": []}
    raw: Raw = parse_members(store.read_blob(base.manifest.config), ImageConfig, base.name)
    raw["rootfs"]["diff_ids"] = diff_ids = list(base.config.rootfs.diff_ids)
    history = raw.get("history", [])
    unknown = len(diff_ids) - sum(not step.get("empty_layer") for step in history)
    raw["history"] = [{} for _ in range(unknown)] + history
    return {name: member for name, member in raw.items() if name not in _OF_A_CONTAINER}


def _step(making: Making, *, is_empty: bool) -> Raw:
    step = History(
        created=making.created,
        created_by=making.created_by,
        author=making.author,
        comment=making.message,
        empty_layer=is_empty,
    )
    members: Raw = msgspec.to_builtins(step)
    return members


def _put(
    store: Store,
    raw: Raw,
    layers: list[Descriptor],
    reference: Reference | None,
    making: Making,
    *,
    is_foreign: bool = False,
) -> Image:
    """Keep configuration and manifest, then the name; if `is_foreign`, the layers are unpacked before that."""
    raw["created"] = making.created
    if making.author:
        raw["author"] = making.author
    raw["config"] = _changed(raw.get("config", {}), making.changes)
    config = store.add_blob(msgspec.json.encode(raw), OCI_CONFIG)
    manifest = Manifest(schema_version=2, media_type=OCI_MANIFEST, config=config, layers=layers)
    descriptor = store.add_blob(dump(manifest), OCI_MANIFEST)
    image = store.load_image(descriptor, reference)
    if is_foreign:
        from ..store.missing_layers import unpack_image

        unpack_image(store, image, making.progress)
    store.keep(descriptor, reference)
    return image


def _changed(raw: Raw, changes: Sequence[str]) -> Raw:
    """The `config` member after the changes; unknown members are kept."""
    if not changes:
        return raw
    config = apply_changes(msgspec.convert(raw, RunConfig), changes)
    unknown = {name: member for name, member in raw.items() if name not in _RUN_MEMBERS}
    return {**msgspec.to_builtins(config), **unknown}


def _as_oci(layer: Descriptor) -> Descriptor:
    """The same blob with OCI's media type, as a manifest may not mix OCI's and docker's."""
    compression = LAYER_TYPES.get(layer.media_type, "")
    if compression == "":
        return layer
    return replace(layer, media_type=f"{OCI_LAYER}+{compression}" if compression else OCI_LAYER)
