"""How is an image made from another: by adding a layer, by squashing its layers, by changing its configuration?

Everything that is not changed stays as it was: layers below are the same blobs, and unknown members of a configuration
are kept. All parts of a new image are in the store before it gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ...overlay.changes import Comparison
from ..layer.owners import DiskOwners, OwnerOf
from ..layer.pack import LayerSummary, write_layer
from ..oci.documents import History, RunConfig
from ..oci.instructions import apply_changes
from ..oci.progress import NO_PROGRESS, Progress
from ..oci.reference import Reference
from ..store.lowers import lower_directories
from ..store.store import Image, Store
from .draft import Draft
from .layer_blob import LayerSink, NewLayer
from .verbatim import copy_layer


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


class LayerOf(NamedTuple):
    """A layer that was written, None for one without changes, and its counts."""

    layer: NewLayer | None
    summary: LayerSummary


def commit(
    store: Store,
    base: Image | None,
    comparison: Comparison,
    reference: Reference | None,
    making: Making,
    *,
    may_hold_marks: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Made:
    """The base image with the changes as a new layer (none if nothing changed). Raises the errors of `write_layer`, and
    those of `check`, which is called once the changes were read."""
    apply_changes(RunConfig(), making.changes)  # before the work is done in vain
    try:
        layer, summary = new_layer(store, comparison, making, may_hold_marks=may_hold_marks)
    finally:
        check()
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
    layer, summary = whole_layer(store, lower_directories(store, image), making)
    assert layer is not None
    draft = Draft.on(store, image)
    draft.replace_layers(_step(making), layer)
    return Made(_keep(store, draft, reference, making), summary)


def new_layer(store: Store, comparison: Comparison, making: Making, *, may_hold_marks: bool = True) -> LayerOf:
    """The changes as a layer in the store, None if nothing changed, and their counts. Raises as `write_layer`."""
    with _sink(store, making) as sink:
        summary = write_layer(
            comparison,
            sink,
            source_date_epoch=making.epoch,
            may_hold_marks=may_hold_marks,
            owner_of=_owner_in_layers(),
            limits=store.limits,
        )
        return LayerOf(None if summary.is_empty else sink.commit(), summary)


def whole_layer(store: Store, layers: Sequence[Path], making: Making) -> LayerOf:
    """All that unpacked layers, top first, show together, as one layer."""
    with _sink(store, making) as sink:
        with Comparison.open_whole([os.fsencode(layer) for layer in layers]) as comparison:
            summary = write_layer(
                comparison,
                sink,
                source_date_epoch=making.epoch,
                owner_of=_owner_in_layers(),
                limits=store.limits,
            )
        return LayerOf(sink.commit(), summary)


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
    draft = Draft.on(store, base)
    draft.add(_step(making), layer)
    return _keep(store, draft, reference, making, is_foreign=is_foreign)


def _step(making: Making) -> History:
    return History(created=making.created, created_by=making.created_by, author=making.author, comment=making.message)


def _keep(
    store: Store, draft: Draft, reference: Reference | None, making: Making, *, is_foreign: bool = False
) -> Image:
    """Keep the image, then its name; if `is_foreign`, the layers are unpacked before that."""
    if making.author:
        draft.raw["author"] = making.author
    if making.changes:
        draft.config = apply_changes(draft.config, making.changes)
    descriptor = draft.write(store)
    image = store.load_image(descriptor, reference)
    if is_foreign:
        from ..store.missing_layers import unpack_image

        unpack_image(store, image, making.progress)
    store.keep(descriptor, reference)
    return image
