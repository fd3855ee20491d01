"""`overlayfs layers IMAGE`: what each layer of an image adds, changes and deletes, and the step that made it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overlayfs.cli.inspect.looking import Looked, open_image
from overlayfs.cli.output import Cell, format_size, is_terminal, print_json, print_table, safe
from overlayfs.image.inspect.browse import LayerChanges, layer_changes
from overlayfs.image.oci.documents import Descriptor, History, layer_steps

_LONGEST_COMMAND = 60
_HEADINGS = ("LAYER", "SIZE", "STORED", "ADDED", "MODIFIED", "DELETED", "CREATED BY")


def show_image_layers(name: str, as_json: bool, store: Path | None) -> None:
    """The layers of an image, the bottom one first; it is number 1."""
    with open_image(name, store) as looked:
        rows = list(_rows(looked))
    if as_json:
        print_json([_document(*row) for row in rows])
    else:
        print_table(_HEADINGS, [_cells(changes, descriptor, step) for changes, descriptor, _, step in rows])


def _rows(looked: Looked) -> Iterator[tuple[LayerChanges, Descriptor, str, History]]:
    changes = layer_changes(looked.indexes, looked.trees)
    config = looked.image.config
    return zip(changes, looked.image.manifest.layers, config.rootfs.diff_ids, layer_steps(config), strict=True)


def _cells(changes: LayerChanges, descriptor: Descriptor, step: History) -> list[Cell]:
    command = safe(step.created_by or step.comment)
    if is_terminal() and len(command) > _LONGEST_COMMAND:
        command = command[: _LONGEST_COMMAND - 1] + "…"
    return [
        Cell(str(changes.number + 1), "dim"),
        Cell(format_size(changes.size), "bold"),
        Cell(format_size(descriptor.size)),
        Cell(str(changes.added), "green" if changes.added else "dim"),
        Cell(str(changes.modified), "yellow" if changes.modified else "dim"),
        Cell(str(changes.deleted), "red" if changes.deleted else "dim"),
        Cell(command),
    ]


def _document(changes: LayerChanges, descriptor: Descriptor, diff_id: str, step: History) -> dict[str, Any]:
    return {
        "layer": changes.number + 1,
        "diff_id": diff_id,
        "digest": descriptor.digest,
        "media_type": descriptor.media_type,
        "size": changes.size,
        "stored": descriptor.size,
        "added": changes.added,
        "modified": changes.modified,
        "deleted": changes.deleted,
        "created": step.created,
        "created_by": step.created_by,
        "comment": step.comment,
    }
