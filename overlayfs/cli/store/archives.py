"""`load` and `save`: images from and to files, pipes and directories."""

from __future__ import annotations

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from overlayfs.cli.app import store_directory
from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.output import print_json, safe
from overlayfs.cli.progress import shown_progress
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.store import Image, Store

_STDIN = "-"


def load_images(source: str, name: str | None, *, unpack: bool, quiet: bool, as_json: bool) -> None:
    """Load the images of an archive or layout directory, and print their names."""
    from overlayfs.image.archive.load import load

    with Store.open(store_directory()) as store, shown_progress(quiet) as progress:
        store.sweep()
        if source == _STDIN:
            stream = standard_input("an image archive")
            images = load(store, stream, name, what="standard input", unpack=unpack, progress=progress, tell=_warn)
        else:
            images = load(store, Path(source), name, unpack=unpack, progress=progress, tell=_warn)
        tell_what_was_lost(store, images)
    if as_json:
        print_json([{"Id": image.id, "Name": str(image.reference) if image.reference else None} for image in images])
        return
    for image in images:
        print(f"Loaded image: {image.name}" if image.reference else f"Loaded image ID: {image.id}")


def tell_what_was_lost(store: Store, images: Sequence[Image]) -> None:
    """Report on standard error how many attributes of the layers could not be kept."""
    layers = LayerStore(store)
    keys = dict.fromkeys(key for image in images for key in layers.keys(image) or ())
    lost = Counter[str]()
    for key in keys:
        lost.update(layers.info(key).warnings)
    for what, count in sorted(lost.items()):
        _warn(f"{what} ({count} times)")


def _warn(line: str) -> None:
    print(f"overlayfs: {safe(line)}", file=sys.stderr)


def standard_input(expected: str) -> BinaryIO:
    """Standard input; CommandError if it is a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        raise CommandError(f"{expected} is expected on standard input: redirect it, or name a file")
    return sys.stdin.buffer


def save_images(names: Sequence[str], target: str | None, kind: str, compression: str | None, quiet: bool) -> None:
    """Write images to one archive, or to a layout directory."""
    from overlayfs.image.archive.load import save, save_directory
    from overlayfs.image.tar.compression import open_compressed

    if kind == "oci-dir" and (target is None or compression is not None):
        raise CommandError("a directory is not compressed, and has a name: use -o DIR")
    with Store.open(store_directory()) as store, shown_progress(quiet) as progress:
        images = _distinct([store.find(name) for name in names])
        if kind == "oci-dir" and target is not None:
            save_directory(store, images, Path(target), progress)
            return
        with written(target, "an archive") as out, open_compressed(out, compression) as packed:
            save(store, images, packed, kind, progress)


def _distinct(images: list[Image]) -> list[Image]:
    """Each name of an image once."""
    return list({(image.digest, str(image.reference)): image for image in images}.values())


@contextmanager
def written(target: str | None, what: str) -> Iterator[BinaryIO]:
    """The stream to write to: standard output, which must not be a terminal, or a file.

    The file appears once it is complete and synced; an existing pipe or device is written to.
    """
    if target in (None, _STDIN):
        if sys.stdout.isatty():
            raise CommandError(f"{what} is not for a terminal: redirect the output, or use -o FILE")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with open(path, "wb") as out:
            yield out
        return
    path = Path(os.path.realpath(path))  # a symlink is written through
    staged = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    try:
        with _new_file(staged, path) as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        staged.rename(path)
    finally:
        staged.unlink(missing_ok=True)


def _new_file(staged: Path, path: Path) -> BinaryIO:
    """The file `staged`, which becomes `path`; errors name `path`."""
    try:
        return open(staged, "xb", buffering=1 << 20)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
