"""How does a whole root file system become an image, and an image or container a tar of its root file system?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ...overlay.changes import Comparison
from ..layer.pack import LayerSummary, Output, write_layer
from ..make.commit import Making, append
from ..oci.progress import NO_PROGRESS, Progress
from ..oci.reference import Reference
from ..store.lowers import lower_directories
from ..store.store import Image, Store


def import_rootfs(
    store: Store, source: Path | BinaryIO, reference: Reference | None, making: Making | None = None
) -> Image:
    """Make an image of one layer from a directory or an unchanged tar (plain, gzip or zstd; a file is read to its end).

    Raises InvalidError for a tar or directory that does not suit a layer.
    """
    # the descriptor as a path: pipes can be opened by it too
    path = source if isinstance(source, Path) else Path(f"/proc/self/fd/{source.fileno()}")
    return append(store, None, path, reference, making or Making(created_by="import")).image


def export_rootfs(directories: Sequence[Path], out: Output, *, source_date_epoch: int | None = None) -> LayerSummary:
    """Write the merged tree of layers (top first) as an uncompressed tar."""
    with Comparison.open_whole([os.fsencode(path) for path in directories]) as whole:
        return write_layer(whole, out, source_date_epoch=source_date_epoch)


def export_image(store: Store, image: Image, out: Output, progress: Progress = NO_PROGRESS) -> LayerSummary:
    """As `export_rootfs`, for an image; missing layers are unpacked."""
    return export_rootfs(lower_directories(store, image, progress), out)
