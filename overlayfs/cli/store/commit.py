"""`commit`, `squash` and `append`: from what a person names to a new image, and what is said of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlayfs.cli.mounts.live import CommandError, in_time, is_ours, mount_at, read_status, resolve
from overlayfs.cli.output import print_json, printable
from overlayfs.cli.progress import shown_progress
from overlayfs.container.containers import Containers
from overlayfs.image.make import commit as mutate
from overlayfs.image.make.commit import Made, Making
from overlayfs.image.oci.errors import InvalidError, NotFoundError
from overlayfs.image.oci.progress import Progress
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.lowers import lower_directories
from overlayfs.image.store.store import Image, Store
from overlayfs.overlay.changes import Comparison
from overlayfs.tree import marks
from overlayfs.tree.syscalls import sync_filesystem

SYNC_WITHIN_S: Final = 60.0
_COMPRESSIONS: Final = {"gzip": "gzip", "zstd": "zstd", "none": None}
NO_IMAGE: Final = "scratch"


@dataclass(frozen=True, slots=True)
class Request:
    """What all commands that make an image are told; `name` is the new one's."""

    name: str | None
    message: str
    author: str
    changes: tuple[str, ...]
    compression: str
    as_json: bool

    def making(self, verb: str, progress: Progress) -> Making:
        """Raises InvalidError for a compression, a text or a SOURCE_DATE_EPOCH that makes no sense."""
        if self.compression not in _COMPRESSIONS:
            raise InvalidError(f"no compression is called {self.compression!r}: use {', '.join(_COMPRESSIONS)}")
        for text in (self.message, self.author, *self.changes):
            _check_is_text(text)
        return Making(
            message=self.message,
            author=self.author,
            changes=self.changes,
            created_by=f"overlayfs {verb}",
            compression=_COMPRESSIONS[self.compression],
            epoch=_epoch(),
            progress=progress,
        )


def _check_is_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidError(f"{printable(os.fsencode(text))}: an image holds nothing but UTF-8") from None


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be committed, and on which image it is, if that is known. Of a mount its marks' spelling is."""

    comparison: Comparison
    base: Image | None
    may_hold_marks: bool = True


def commit_changes(
    directory: Path | None, source: str, base: str | None, request: Request, *, user_xattr: bool = False
) -> None:
    """Commit a container, a mount or an upper directory, whose marks are `user_xattr`s if it was mounted so."""

    def make(store: Store, reference: Reference | None, making: Making) -> Made:
        base_image = None if base is None else store.find(base)
        found = _find_source(store, source, base_image, making.progress, user_xattr)
        with found.comparison as comparison:
            return mutate.commit(store, found.base, comparison, reference, making, may_hold_marks=found.may_hold_marks)

    _make(directory, "commit", request, make)


def squash_image(directory: Path | None, name: str, request: Request) -> None:
    def make(store: Store, reference: Reference | None, making: Making) -> Made:
        image = store.find(name)
        return mutate.squash(store, image, reference or image.reference, making)

    _make(directory, "squash", request, make)


def append_to(directory: Path | None, name: str, source: Path, chown: str | None, request: Request) -> None:
    """Append a directory or tar; to no image if that is called `scratch`."""

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
    """A container by name or ID, else a mountpoint, else an upper. Raises ImageError or CommandError."""
    is_path = "/" in source or source in (os.curdir, os.pardir)
    if not is_path and not user_xattr:
        try:
            return _container(store, source, base)
        except NotFoundError:
            if not os.path.isdir(source):
                raise
    path = resolve(os.fsencode(source))
    entry = mount_at(path)
    if entry is not None and is_ours(entry):
        if user_xattr:
            raise CommandError(f"{printable(path)}: a mount knows how its marks are spelled: leave --userxattr out")
        return _mount(store, path, base)
    if not os.path.isdir(path):
        raise CommandError(f"{printable(os.fsencode(source))}: no container, mount or directory of that name")
    if base is None:
        raise CommandError(f"{printable(os.fsencode(source))}: say with --base on which image this upper is")
    lowers = lower_directories(store, base, progress)
    prefix = marks.USER if user_xattr else None
    return Source(Comparison.open(path, [os.fsencode(lower) for lower in lowers], prefix=prefix), base)


def _container(store: Store, name: str, base: Image | None) -> Source:
    containers = Containers(store)
    container = containers.find(name)
    for mountpoint in (container.mountpoint, os.fspath(containers.root(container.name))):
        _sync_mount(os.fsencode(mountpoint))
    return Source(containers.compare(container), base or store.load_by_manifest(container.manifest))


def _mount(store: Store, path: bytes, base: Image | None) -> Source:
    status = read_status(path)
    if status.upper is None:
        raise CommandError(f"{printable(path)}: mounted without an upper, so nothing can have changed")
    base = base or _image_below(store, path, status.lowers)
    _sync_mount(path)
    comparison = Comparison.open(
        status.upper, status.lowers, status.data_lowers, status.work, prefix=status.xattr_prefix
    )
    return Source(comparison, base, may_hold_marks=status.whiteout == "oci")


def _image_below(store: Store, mountpoint: bytes, lowers: Sequence[bytes]) -> Image:
    """The image whose layers are mounted: as its record says, or one that has the very same."""
    for use in store.mounts().values():
        if use.image is not None and os.fsencode(use.mountpoint) == mountpoint:
            return store.load_by_manifest(use.image)
    layers = LayerStore(store)
    for image in store.images():
        keys = layers.keys(image)
        if keys is not None and [os.path.realpath(os.fsencode(layers.path(key))) for key in reversed(keys)] == list(
            map(os.path.realpath, lowers)
        ):
            return image
    raise CommandError(f"{printable(mountpoint)}: say with --base on which image it is: its layers are not the store's")


def _sync_mount(mountpoint: bytes) -> None:
    """Let the kernel hand what it has not written yet to the daemon; nothing where nothing of ours is mounted."""
    entry = mount_at(mountpoint) if mountpoint else None
    if entry is None or not is_ours(entry):
        return

    def sync() -> None:
        with ExitStack() as stack:
            fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            sync_filesystem(fd)

    in_time(sync, SYNC_WITHIN_S)


def _owner(text: str | None) -> tuple[int, int] | None:
    """`UID:GID`, or `UID` for both."""
    if text is None:
        return None
    uid, _, gid = text.partition(":")
    numbers = uid, gid or uid
    if not all(number.isascii() and number.isdigit() and int(number) < (1 << 32) - 1 for number in numbers):
        raise InvalidError(f"--chown {text!r}: give numbers, as 1000:1000")
    return int(numbers[0]), int(numbers[1])


def _epoch() -> int | None:
    """https://reproducible-builds.org/specs/source-date-epoch: seconds since 1970."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 36):
        raise InvalidError(f"SOURCE_DATE_EPOCH={text!r}: seconds since 1970 are expected")
    return int(text)
