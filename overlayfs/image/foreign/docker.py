"""The storage of dockerd with its overlay2 or fuse-overlayfs driver (moby's layer and image stores).

`image/DRIVER/repositories.json` names the images, `imagedb` has their configurations, `layerdb` the cache id of each
chainID. The layer's tree is `DRIVER/CACHE-ID/diff`, in the kernel's format.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from ..oci.digest import Digest, chain_ids, hex_of, parse_digest
from ..oci.errors import ImageError, InvalidError, NotFoundError
from .stored_image import StoredImage, checked_id, read_record

_DRIVERS: Final = ("overlay2", "fuse-overlayfs")
_SMALL: Final = 4096


class _Repositories(Struct):
    repositories: dict[str, dict[str, str]] = field(default_factory=dict, name="Repositories")


class _RootFS(Struct):
    diff_ids: list[str] = []


class _Configuration(Struct):
    rootfs: _RootFS
    created: str = ""


def images_of_docker(root: Path) -> Iterator[StoredImage]:
    """All images below a data root, of each driver that has some; those without a name too."""
    for driver in _DRIVERS:
        yield from _images_of(root / "image" / driver, root / driver)


def _images_of(records: Path, trees: Path) -> Iterator[StoredImage]:
    try:
        listed = sorted(path.name for path in (records / "imagedb/content/sha256").iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise ImageError(f"{records}: {error.strerror}") from None
    names = _names(records)
    for identity in listed:
        configuration = read_record(
            records / "imagedb/content/sha256" / checked_id(identity, "an image of docker"), _Configuration
        )
        layers = [records / "layerdb/sha256" / hex_of(each) for each in chain_ids(_digests(configuration))][::-1]
        yield StoredImage(
            identity,
            tuple(names.get(f"sha256:{identity}", ())),
            configuration.created,
            sum(_size(layer / "size") for layer in layers),
            tuple(trees / checked_id(_line(layer / "cache-id"), layer) / "diff" for layer in layers),
        )


def _digests(configuration: _Configuration) -> list[Digest]:
    return [parse_digest(text) for text in configuration.rootfs.diff_ids]


def _names(records: Path) -> dict[str, list[str]]:
    """The names, with tags, of each image id."""
    try:
        repositories = read_record(records / "repositories.json", _Repositories).repositories
    except NotFoundError:
        return {}
    names: dict[str, list[str]] = {}
    for references in repositories.values():
        for reference, identity in references.items():
            if "@" not in reference:
                names.setdefault(identity, []).append(reference)
    return names


def _size(path: Path) -> int:
    text = _line(path)
    if not text.isdecimal():
        raise InvalidError(f"{path}: {text[:80]!r} is not a size")
    return int(text)


def _line(path: Path) -> str:
    """The content of a file of one short line."""
    try:
        with open(path, "rb") as file:
            return file.read(_SMALL).decode("ascii", "replace").strip()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
