"""What is known of an image in an engine's storage, and how is one found by its name?"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ..oci.errors import ImageError, InvalidError, NotFoundError

Record = TypeVar("Record")

MAX_RECORD: Final = 64 << 20
"""Bytes; the records of 10,000 images take a tenth."""

_ID: Final = re.compile(r"[0-9a-f]{64}(-init)?")
_SHORTEST_ID: Final = 4


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image; `identity` is the hexadecimal digest of its configuration, `size` in bytes or None if unknown."""

    identity: str
    names: tuple[str, ...]
    created: str
    size: int | None
    layers: tuple[Path, ...]
    """The directories of its layers, top first."""
    missing: str = ""
    """What keeps it from being mounted, in words for the user."""


def joined(images: Iterable[StoredImage]) -> list[StoredImage]:
    """Each image once, with all of its names; of several records of one, the first that can be mounted counts."""
    found: dict[str, StoredImage] = {}
    for image in images:
        known = found.get(image.identity, image)
        names = tuple(dict.fromkeys((*known.names, *image.names)))
        found[image.identity] = replace(image if known.missing else known, names=names)
    return list(found.values())


def read_record(path: Path, kind: type[Record]) -> Record:
    """A JSON record of an engine. NotFoundError where there is none, InvalidError where it is not of this kind."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_RECORD + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path}: there is no such record") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_RECORD:
        raise InvalidError(f"{path} is larger than {MAX_RECORD >> 20} MiB")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidError(f"{path}: {error}") from None


def checked_id(text: str, of: Any) -> str:
    """The id, which may be a part of a path; InvalidError otherwise."""
    if not _ID.fullmatch(text):
        raise InvalidError(f"{of}: {text[:80]!r} is not an id")
    return text


def _layer_directory(path: Path) -> Path:
    """The directory of a layer; ImageError if it is none, or a symlink."""
    try:
        found = path.lstat()
    except OSError as error:
        raise ImageError(f"the layer {path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise InvalidError(f"the layer {path} is not a directory")
    return path


def trees(image: StoredImage) -> list[Path]:
    """The directories to mount, top first; each is checked to be one. NotFoundError where something is missing."""
    if image.missing:
        raise NotFoundError(f"{', '.join(image.names) or image.identity}: {image.missing}")
    return [_layer_directory(path) for path in image.layers]


def find(images: Iterable[StoredImage], name: str) -> StoredImage:
    """The image of this name, or with this start of its id. As podman does it, a short name may be one of localhost."""
    listed = list(images)
    last = name.rpartition("/")[2]
    tagged = name if ":" in last or "@" in last else f"{name}:latest"
    for prefix in ("", "localhost/", "docker.io/library/", "docker.io/"):
        for image in listed:
            if prefix + tagged in image.names:
                return image
    start = name.removeprefix("sha256:")
    matching = [image for image in listed if image.identity.startswith(start)] if len(start) >= _SHORTEST_ID else []
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise InvalidError(f"{len(matching)} images have ids that start with {start}")
    raise NotFoundError(f"no image {name!r} there; `overlayfs images --from` lists what there is")
