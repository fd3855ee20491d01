"""`commit`, `squash` and `append`: make a new image of the named source, and report it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlayfs.cli.mounts.changes import compare_mount, writable_status, write_back
from overlayfs.cli.mounts.live import CommandError, is_ours, mount_at, resolve
from overlayfs.cli.output import print_json, printable
from overlayfs.cli.progress import shown_progress
from overlayfs.container.containers import Container, Containers
from overlayfs.image.make import commit as mutate
from overlayfs.image.make.commit import Made, Making
from overlayfs.image.oci.errors import ImageError, InvalidError, NotFoundError
from overlayfs.image.oci.progress import Progress
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.lowers import lower_directories
from overlayfs.image.store.store import Image, Store
from overlayfs.overlay.changes import Comparison
from overlayfs.tree import marks

_COMPRESSIONS: Final = {"gzip": "gzip", "zstd": "zstd", "none": None}
NO_IMAGE: Final = "scratch"


@dataclass(frozen=True, slots=True)
class Request:
    """The options common to all commands that make an image; `name` is the name of the new one."""

    name: str | None
    message: str
    author: str
    changes: tuple[str, ...]
    compression: str
    as_json: bool

    def making(self, verb: str, progress: Progress) -> Making:
        """The options as a Making. Raises InvalidError for an invalid compression, text or SOURCE_DATE_EPOCH."""
        compression = compression_of(self.compression)
        for text in (self.message, self.author, *self.changes):
            _check_is_text(text)
        return Making(
            message=self.message,
            author=self.author,
            changes=self.changes,
            created_by=f"overlayfs {verb}",
            compression=compression,
            epoch=epoch(),
            progress=progress,
        )


def compression_of(text: str) -> str | None:
    """The compression of layers that an option names. Raises InvalidError."""
    if text not in _COMPRESSIONS:
        raise InvalidError(f"unknown compression {text!r}: use {', '.join(_COMPRESSIONS)}")
    return _COMPRESSIONS[text]


def _check_is_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidError(f"{printable(os.fsencode(text))}: an image configuration can hold only UTF-8") from None


@dataclass(frozen=True, slots=True)
class Source:
    """The changes to commit, and the image below them if known. `may_hold_marks`: see `write_layer`; `check`: see
    `mutate.commit`."""

    comparison: Comparison
    base: Image | None
    may_hold_marks: bool = True
    check: Callable[[], None] = lambda: None


def commit_changes(
    directory: Path | None, source: str, base: str | None, request: Request, *, user_xattr: bool = False
) -> None:
    """Commit a container, a mount or an upper directory; `user_xattr` if the upper has user.overlay.* marks."""

    def make(store: Store, reference: Reference | None, making: Making) -> Made:
        base_image = None if base is None else store.find(base)
        found = _find_source(store, source, base_image, making.progress, user_xattr)
        with found.comparison as comparison:
            return mutate.commit(
                store,
                found.base,
                comparison,
                reference,
                making,
                may_hold_marks=found.may_hold_marks,
                check=found.check,
            )

    _make(directory, "commit", request, make)


def squash_image(directory: Path | None, name: str, request: Request) -> None:
    def make(store: Store, reference: Reference | None, making: Making) -> Made:
        image = store.find(name)
        return mutate.squash(store, image, reference or image.reference, making)

    _make(directory, "squash", request, make)


def append_to(directory: Path | None, name: str, source: Path, chown: str | None, request: Request) -> None:
    """Append a directory or tar to an image; `scratch` stands for an empty one."""

    def make(store: Store, reference: Reference | None, making: Making) -> Made:
        image = None if name == NO_IMAGE else store.find(name)
        kept = reference or (None if image is None else image.reference)
        return mutate.append(store, image, source, kept, making, owner=_owner(chown))

    _make(directory, "append", request, make)


def _make(
    directory: Path | None,
    verb: str,
    request: Request,
    make: Callable[[Store, Reference | None, Making], Made],
) -> None:
    reference = None if request.name is None else Reference.parse(request.name)
    if reference is not None and reference.digest is not None:
        raise InvalidError(f"{request.name}: a new image cannot be named by a digest: leave it out")
    with Store.open(directory) as store, shown_progress() as progress:
        made = make(store, reference, request.making(verb, progress))
    _tell(made, request.as_json)


def _tell(made: Made, as_json: bool) -> None:
    image, summary = made
    if summary.sockets_left_out:
        print(f"overlayfs: {summary.sockets_left_out} sockets were left out: no image can hold one", file=sys.stderr)
    if not as_json:
        print(image.id)
        return
    print_json(
        {
            "id": image.id,
            "digest": image.digest,
            "name": image.reference.familiar if image.reference else None,
            "layers": [layer.digest for layer in image.manifest.layers],
            "added": summary.added,
            "modified": summary.modified,
            "deleted": summary.deleted,
            "size": image.size,
        }
    )


def _find_source(store: Store, source: str, base: Image | None, progress: Progress, user_xattr: bool) -> Source:
    """A container by name or ID, else a mountpoint, each maybe with @SNAPSHOT; else an upper. Raises ImageError,
    CommandError or MountError."""
    source, snapshot = _split(source)
    is_path = "/" in source or source in (os.curdir, os.pardir)
    if not is_path and not user_xattr:
        try:
            return _container(store, source, base, snapshot)
        except NotFoundError:
            if not os.path.isdir(source):
                raise
    path = resolve(os.fsencode(source))
    entry = mount_at(path)
    if entry is not None and is_ours(entry):
        if user_xattr:
            raise CommandError(f"{printable(path)}: the spelling of a mount's marks is known: leave out --userxattr")
        return _mount(store, path, base, snapshot)
    if not os.path.isdir(path):
        raise CommandError(f"{printable(os.fsencode(source))}: no container, mount or directory of that name")
    if snapshot is not None:
        raise CommandError(f"{printable(os.fsencode(source))}: no overlayfs is mounted here, so there are no snapshots")
    if base is None:
        raise CommandError(f"{printable(os.fsencode(source))}: name the image below this upper with --base")
    lowers = lower_directories(store, base, progress)
    prefix = marks.USER if user_xattr else None
    return Source(Comparison.open(path, [os.fsencode(lower) for lower in lowers], prefix=prefix), base)


def _split(source: str) -> tuple[str, str | None]:
    """SOURCE@SNAPSHOT as its parts; what there is a file of that name for has none."""
    name, at, snapshot = source.rpartition("@")
    return (name, snapshot) if at and name and not os.path.lexists(source) else (source, None)


def _container(store: Store, name: str, base: Image | None, snapshot: str | None) -> Source:
    containers = Containers(store)
    container = containers.find(name)
    write_back_of(containers, container)
    check = containers.still_there(container)
    comparison = containers.compare(container, until=snapshot)
    return Source(comparison, base or store.load_by_manifest(container.manifest), check=check)


def write_back_of(containers: Containers, container: Container) -> None:
    """Make the kernel write what it holds of a container's tree, wherever that is mounted."""
    for mountpoint in (container.mountpoint, os.fspath(containers.root(container))):
        write_back(os.fsencode(mountpoint))


def _mount(store: Store, path: bytes, base: Image | None, snapshot: str | None) -> Source:
    status = writable_status(path)
    base = base or _image_below(store, path, status.lowers)
    return Source(compare_mount(path, status, None, snapshot), base, may_hold_marks=status.whiteout == "oci")


def _image_below(store: Store, mountpoint: bytes, lowers: Sequence[bytes]) -> Image:
    """The image whose layers are mounted: the one in the record of the mount, or one with the same layers."""
    for use in store.mounts().values():
        if use.image is not None and os.fsencode(use.mountpoint) == mountpoint:
            return store.load_by_manifest(use.image)
    layers = LayerStore(store)
    for entry in store.entries():
        try:
            image = store.load_image(entry.descriptor, entry.reference)
            keys = layers.keys(image)
        except ImageError:  # it is not needed
            continue
        if keys is not None and [os.path.realpath(os.fsencode(layers.path(key))) for key in reversed(keys)] == list(
            map(os.path.realpath, lowers)
        ):
            return image
    raise CommandError(f"{printable(mountpoint)}: its layers are not in the store: name its image with --base")


def _owner(text: str | None) -> tuple[int, int] | None:
    """`UID:GID`, or `UID` for both."""
    if text is None:
        return None
    uid, _, gid = text.partition(":")
    numbers = uid, gid or uid
    if not all(number.isascii() and number.isdigit() and int(number) < (1 << 32) - 1 for number in numbers):
        raise InvalidError(f"--chown {text!r}: give numbers, as 1000:1000")
    return int(numbers[0]), int(numbers[1])


def epoch(given: str = "") -> int | None:
    """https://reproducible-builds.org/specs/source-date-epoch: seconds since 1970; as given, else the caller's."""
    text = given or os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 36):
        raise InvalidError(f"SOURCE_DATE_EPOCH={text!r}: seconds since 1970 are expected")
    return int(text)
