"""`overlayfs inspect` and `history`: show an image, and the steps that made it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from overlayfs.cli.app import store_directory
from overlayfs.cli.output import Cell, Lines, format_size, print_json, print_table, safe
from overlayfs.cli.store.images import ago, digests_of, epoch, tags, unpacked_size
from overlayfs.cli.template import print_documents
from overlayfs.image.oci.documents import History, ImageConfig, parse_members
from overlayfs.image.store.store import Image, Store

_SHOWN: Final = (
    "User",
    "WorkingDir",
    "Entrypoint",
    "Cmd",
    "Env",
    "ExposedPorts",
    "Volumes",
    "Labels",
    "StopSignal",
    "Healthcheck",
)
_LONGEST_COMMAND: Final = 60


def show_image(names: Sequence[str], *, as_json: bool, template: str = "") -> None:
    """Configuration, layers and digests of images; as JSON one list, as docker's, or a template filled for each."""
    with Store.open(store_directory()) as store:
        documents = [details_of(store, store.find(name)) for name in names]
    if as_json or template:
        print_documents(documents, template)
        return
    for number, document in enumerate(documents):
        if number:
            print()
        _print_details(document)


def details_of(store: Store, image: Image) -> dict[str, Any]:
    """What `docker image inspect` says, with its names, and the manifest besides."""
    raw = parse_members(store.read_blob(image.manifest.config), ImageConfig, image.name)  # also those we do not know
    names = [
        entry.reference
        for entry in store.entries()
        if entry.reference is not None and entry.descriptor.digest == image.digest
    ]
    unpacked = unpacked_size(store, image)
    return {
        "Id": image.id,
        "RepoTags": tags(names),
        "RepoDigests": digests_of(names, image.digest),
        "Created": image.config.created,
        "Author": image.config.author,
        "Architecture": image.config.architecture,
        "Variant": image.config.variant,
        "Os": image.config.os,
        "Size": image.size if unpacked is None else unpacked,
        "PackedSize": image.size,
        "IsUnpacked": unpacked is not None,
        "Config": raw.get("config", {}),
        "RootFS": {"Type": "layers", "Layers": list(image.config.rootfs.diff_ids)},
        "Digest": image.digest,
        "ManifestDigest": image.descriptor.digest,
        "ManifestType": image.descriptor.media_type,
        "Layers": _layers(image),
    }


def _layers(image: Image) -> list[dict[str, Any]]:
    pairs = zip(image.manifest.layers, image.config.rootfs.diff_ids, strict=True)
    return [
        {"Digest": layer.digest, "DiffID": diff_id, "Size": layer.size, "MediaType": layer.media_type}
        for layer, diff_id in pairs
    ]


def _print_details(document: dict[str, Any]) -> None:
    unpacked = f", {format_size(document['Size'])} unpacked" if document["IsUnpacked"] else ""
    facts = {
        "Names": ", ".join(document["RepoTags"]) or "<none>",
        "ID": document["Id"],
        "Digest": document["Digest"],
        "Created": f"{document['Created'] or '-'} ({ago(document['Created'])})",
        "Author": document["Author"],
        "Platform": "/".join(filter(None, (document["Os"], document["Architecture"], document["Variant"]))),
        "Size": f"{format_size(document['PackedSize'])} in {_count(document['Layers'])}{unpacked}",
        **{name: _in_words(document["Config"].get(name)) for name in _SHOWN},
    }
    lines = Lines()
    for name, text in facts.items():
        if text:
            lines.print(Cell(f"{name:<13}", "bold"), Cell(safe(text)))
    rows = [
        [Cell(str(number)), Cell(format_size(layer["Size"])), Cell(layer["DiffID"]), Cell(layer["Digest"], "dim")]
        for number, layer in enumerate(document["Layers"], 1)  # as `layers` and `tree --layer` count
    ]
    if rows:
        print()
        print_table(("LAYER", "SIZE", "DIFF ID", "DIGEST"), rows)


def _count(layers: Sequence[object]) -> str:
    return f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"


def _in_words(value: object) -> str:
    """A member of the configuration in one line."""
    if not value:  # `case {}` would be any mapping
        return ""
    match value:
        case str():
            return value
        case dict() if all(item == {} for item in value.values()):
            return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)


def show_history(name: str, *, whole: bool, as_json: bool) -> None:
    """Show the steps that made an image, newest first."""
    with Store.open(store_directory()) as store:
        image = store.find(name)
    steps = _steps(image)
    if as_json:
        print_json([_step_document(image, step, size, number) for number, (step, size) in enumerate(steps)])
    elif steps:
        print_table(
            ("CREATED", "CREATED BY", "SIZE", "COMMENT"), [_step_row(step, size, whole) for step, size in steps]
        )


def _steps(image: Image) -> list[tuple[History, int]]:
    """Each step and the compressed size of its layer, newest first; layers without a step come last."""
    sizes = iter([layer.size for layer in image.manifest.layers])
    told = [(step, 0 if step.empty_layer else next(sizes, 0)) for step in image.config.history]
    return [*told, *((History(), size) for size in sizes)][::-1]


def _step_row(step: History, size: int, whole: bool) -> list[Cell]:
    return [
        Cell(ago(step.created)),
        Cell(_command(step.created_by, whole)),
        Cell(format_size(size), "" if size else "dim"),
        Cell(safe(step.comment)),
    ]


def _step_document(image: Image, step: History, size: int, number: int) -> dict[str, Any]:
    """As docker's API has it (HistoryResponseItem)."""
    return {
        "Id": image.id if number == 0 else "<missing>",
        "Created": epoch(step.created),
        "CreatedBy": step.created_by,
        "Tags": [image.name] if number == 0 and image.reference else None,
        "Size": size,
        "Comment": step.comment,
    }


def _command(text: str, whole: bool) -> str:
    """The command of a step in one line, without the prefix that builders add."""
    line = safe(" ".join(text.removeprefix("/bin/sh -c ").removeprefix("#(nop) ").split()))
    return line if whole or len(line) <= _LONGEST_COMMAND else f"{line[: _LONGEST_COMMAND - 1]}…"
