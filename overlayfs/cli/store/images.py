"""`overlayfs images`: list the images of the store."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from overlayfs.cli.app import store_directory
from overlayfs.cli.output import Cell, format_duration, format_size, print_json, print_table
from overlayfs.cli.template import print_filled
from overlayfs.image.oci.digest import Digest, hex_of
from overlayfs.image.oci.errors import ImageError
from overlayfs.image.oci.reference import Reference
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.names import Entry
from overlayfs.image.store.store import Image, Store

_SHORT = 12
_LONG_AGO_S = 40 * 365 * 86400


@dataclass(frozen=True, slots=True)
class _Listed:
    """One line: an entry of the index, and its image or the reason why that cannot be read."""

    entry: Entry
    image: Image | None
    problem: str = ""
    unpacked: int | None = None

    @classmethod
    def read(cls, store: Store, entry: Entry) -> Self:
        try:
            image = store.load_image(entry.descriptor, entry.reference)
            return cls(entry, image, unpacked=unpacked_size(store, image))
        except ImageError as error:
            return cls(entry, None, str(error))

    @property
    def id(self) -> Digest:
        return self.image.id if self.image else self.entry.descriptor.digest

    @property
    def order(self) -> tuple[bool, str, str]:
        return self.entry.reference is None, str(self.entry.reference), self.id


def unpacked_size(store: Store, image: Image) -> int | None:
    """Bytes of all files in an image's layers; None if they are not all unpacked."""
    layers = LayerStore(store)
    keys = layers.keys(image)
    return None if keys is None else sum(layers.info(key).size for key in keys)


def show_images(
    wanted: str | None, *, quiet: bool, whole: bool, digests: bool, as_json: bool, template: str = ""
) -> None:
    """List all images, or those of one repository or name, damaged ones included."""
    repository = Reference.parse(wanted) if wanted is not None else None
    has_tag = wanted is not None and ":" in wanted.rpartition("/")[2]
    with Store.open(store_directory()) as store:
        listed = [_Listed.read(store, entry) for entry in store.entries() if _is_wanted(entry, repository, has_tag)]
    listed.sort(key=lambda item: item.order)
    if as_json or template == "json":
        print_json([_summary(item) for item in listed])
    elif template:
        print_filled(template, [_fields(item, whole) for item in listed])
    elif quiet:
        for identity in dict.fromkeys(item.id for item in listed):
            print(identity if whole else hex_of(identity)[:_SHORT])
    elif listed:
        headings = ["REPOSITORY", "TAG", *(["DIGEST"] if digests else []), "IMAGE ID", "CREATED", "SIZE"]
        print_table(headings, [_row(item, whole, digests) for item in listed])


def _is_wanted(entry: Entry, wanted: Reference | None, has_tag: bool) -> bool:
    if wanted is None or entry.reference == wanted:
        return True
    return not has_tag and entry.reference is not None and entry.reference.name == wanted.name


def _row(item: _Listed, whole: bool, digests: bool) -> list[Cell]:
    repository, tag = familiar(item.entry.reference)
    named = Cell(repository, "bold" if item.entry.reference else "dim")
    shown = [Cell(item.entry.descriptor.digest, "dim")] if digests else []
    identified = Cell(item.id if whole else hex_of(item.id)[:_SHORT])
    if item.image is None:
        return [named, Cell(tag), *shown, identified, Cell("damaged", "red"), Cell("see verify", "red")]
    size = (
        Cell(format_size(item.unpacked))
        if item.unpacked is not None
        else Cell(f"{format_size(item.image.size)} packed")
    )
    return [named, Cell(tag), *shown, identified, Cell(ago(item.image.config.created)), size]


def _fields(item: _Listed, whole: bool) -> dict[str, str]:
    """What a template can name, as docker calls it."""
    names = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")
    return dict(zip(names, (cell.text for cell in _row(item, whole, digests=True)), strict=True))


def familiar(reference: Reference | None) -> tuple[str, str]:
    """Repository and tag as docker shows them."""
    if reference is None:
        return "<none>", "<none>"
    name = reference.familiar.partition("@")[0]
    return name.removesuffix(f":{reference.tag}"), reference.tag or "<none>"


def _summary(item: _Listed) -> dict[str, Any]:
    """One line, as docker's API has it (ImageSummary)."""
    names = [item.entry.reference] if item.entry.reference else []
    digest = item.entry.descriptor.digest
    document: dict[str, Any] = {
        "Id": item.id,
        "RepoTags": tags(names),
        "RepoDigests": digests_of(names, digest),
        "Digest": digest,
    }
    if item.image is None:
        return document | {"Problem": item.problem}
    return document | {
        "Created": epoch(item.image.config.created),
        "Size": item.image.size if item.unpacked is None else item.unpacked,
        "PackedSize": item.image.size,
        "IsUnpacked": item.unpacked is not None,
        "Labels": item.image.config.config.labels,
    }


def tags(names: Iterable[Reference]) -> list[str]:
    """As docker's RepoTags."""
    return [name.familiar.partition("@")[0] for name in names if name.tag]


def digests_of(names: Iterable[Reference], digest: Digest) -> list[str]:
    """As docker's RepoDigests."""
    return list(dict.fromkeys(f"{familiar(name)[0]}@{digest}" for name in names))


def ago(created: str) -> str:
    """How long ago an RFC 3339 time was; the date if it is very old, as in reproducible images."""
    moment = _parse_time(created)
    if moment is None:
        return "-"
    seconds = time.time() - moment.timestamp()
    return f"{format_duration(seconds).split()[0]} ago" if seconds < _LONG_AGO_S else moment.strftime("%Y-%m-%d")


def epoch(created: str) -> int:
    """An RFC 3339 time in seconds; 0 if it is none, as docker has it."""
    moment = _parse_time(created)
    return int(moment.timestamp()) if moment else 0


def _parse_time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
