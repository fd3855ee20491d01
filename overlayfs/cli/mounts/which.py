"""`overlayfs which`: the layer that provides a file, and the layers that hide or delete other versions."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from overlayfs.cli.mounts.listing import layers_of
from overlayfs.cli.mounts.live import CommandError, Status, is_ours, mount_containing, read_status, resolve_name
from overlayfs.cli.output import Cell, Lines, plain, print_json, print_table, printable
from overlayfs.overlay.layer import UPPER_INDEX, Layer, open_to_read
from overlayfs.overlay.provenance import Answer, Provenance, Role, trace

_INDEX = UPPER_INDEX - 1
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_STYLES = {
    Role.PROVIDES: "bold green",
    Role.MERGED: "green",
    Role.DATA: "green",
    Role.HIDDEN: "dim",
    Role.DELETES: "red",
}


def show_provenance(paths: Sequence[str], as_json: bool) -> bool:
    """Show where each path comes from; False if one of them is not in the merged tree."""
    traced = [_trace(os.fsencode(path)) for path in paths]
    if as_json:
        print_json([_document(path, status, found) for path, status, found in traced])
    else:
        for number, (path, status, found) in enumerate(traced):
            if number:
                print()
            _show(path, status, found)
    return all(found.provider is not None for _, _, found in traced)


def _trace(path: bytes) -> tuple[bytes, Status, Provenance]:
    absolute = resolve_name(path)
    entry = mount_containing(absolute)
    if entry is None or not is_ours(entry):
        raise CommandError(f"{printable(path)}: not in an overlayfs mount")
    try:
        status = read_status(entry.mountpoint)
    except CommandError as error:
        raise type(error)(f"{printable(entry.mountpoint)}: {error}") from error
    relative = absolute[len(entry.mountpoint) :].strip(b"/")
    with ExitStack() as stack:
        layers, data_layers, index = _open_layers(status, stack)
        return absolute, status, trace(relative, layers, data_layers, index)


def _open_layers(status: Status, stack: ExitStack) -> tuple[list[Layer], list[Layer], Layer | None]:
    def opened(number: int, path: bytes, data_only: bool = False) -> Layer:
        layer = open_to_read(number, path, data_only).spelled(status.xattr_prefix)
        stack.callback(os.close, layer.root_fd)
        return layer

    layers = [opened(UPPER_INDEX, status.upper)] if status.upper else []
    layers += [opened(number, path) for number, path in enumerate(status.lowers)]
    first = len(status.lowers)
    data_layers = [opened(first + number, path, True) for number, path in enumerate(status.data_lowers)]
    index = None if status.work is None else os.path.join(status.work, b"index")
    return layers, data_layers, opened(_INDEX, index) if index and os.path.isdir(index) else None


def _number(layer: int, status: Status) -> int:
    """The layer's number as `overlayfs layers` counts: the upper is 0 where there is one."""
    return 0 if layer <= UPPER_INDEX else layer + (status.upper is not None)


def _directory(layer: int, status: Status) -> bytes:
    if layer == _INDEX and status.work is not None:
        return os.path.join(status.work, b"index")
    return layers_of(status)[_number(layer, status)][1]


def _role(answer: Answer, status: Status) -> str:
    if answer.hidden_by is not None:
        return f"hidden by {_number(answer.hidden_by, status)}"
    return answer.role.value


def _kind(answer: Answer) -> str:
    return "whiteout" if any(note.startswith("whiteout") for note in answer.notes) else _KINDS[answer.kind]


def _summary(found: Provenance, status: Status) -> tuple[str, str]:
    provider, deleter = found.provider, found.deleter
    if provider is not None:
        layer = _number(provider.place.layer, status)
        return f"{_KINDS[provider.kind]} of layer {layer}", "green"
    if deleter is not None:
        return f"deleted by layer {_number(deleter.place.layer, status)}", "red"
    if found.answers:
        return f"not there: hidden by layer {_number(found.answers[0].hidden_by or 0, status)}", "red"
    return "in no layer", "red"


def _show(path: bytes, status: Status, found: Provenance) -> None:
    text, style = _summary(found, status)
    Lines().print(Cell(printable(path), "bold"), Cell(": "), Cell(text, style))
    if found.answers:
        print_table(("LAYER", "ROLE", "WHAT", "WHERE", "MARKS"), [_row(answer, status) for answer in found.answers])


def _row(answer: Answer, status: Status) -> list[Cell]:
    style = _STYLES[answer.role]
    where = os.path.join(_directory(answer.place.layer, status), answer.place.path)
    return [
        Cell(str(_number(answer.place.layer, status)), style),
        Cell(_role(answer, status), style),
        Cell(_kind(answer)),
        Cell(printable(where)),
        Cell("; ".join(printable(os.fsencode(note)) for note in answer.notes), "dim"),
    ]


def _document(path: bytes, status: Status, found: Provenance) -> dict[str, Any]:
    provider, deleter = found.provider, found.deleter
    return {
        "path": plain(path),
        "exists": provider is not None,
        "provider": None if provider is None else _number(provider.place.layer, status),
        "deleted_by": None if deleter is None else _number(deleter.place.layer, status),
        "layers": [_answer_document(answer, status) for answer in found.answers],
    }


def _answer_document(answer: Answer, status: Status) -> dict[str, Any]:
    directory = _directory(answer.place.layer, status)
    return {
        "layer": _number(answer.place.layer, status),
        "role": answer.role.value,
        "kind": _kind(answer),
        "directory": plain(directory),
        "path": plain(answer.place.path),
        "hidden_by": None if answer.hidden_by is None else _number(answer.hidden_by, status),
        "marks": list(answer.notes),
    }
