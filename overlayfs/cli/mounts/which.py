"""`overlayfs which`: the layer that provides a file, and the layers that hide or delete other versions."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from overlayfs.cli.mounts.live import CommandError, Status, is_ours, mount_containing, read_status, resolve_name
from overlayfs.cli.output import Cell, Lines, plain, print_json, print_table, printable
from overlayfs.overlay import history
from overlayfs.overlay.layer import UPPER_INDEX, Layer, open_to_read
from overlayfs.overlay.provenance import Answer, Provenance, Role, trace

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
        print_json([_document(path, stack, found) for path, stack, found in traced])
    else:
        for number, (path, stack, found) in enumerate(traced):
            if number:
                print()
            _show(path, stack, found)
    return all(found.provider is not None for _, _, found in traced)


def _trace(path: bytes) -> tuple[bytes, _Stack, Provenance]:
    absolute = resolve_name(path)
    entry = mount_containing(absolute)
    if entry is None or not is_ours(entry):
        raise CommandError(f"{printable(path)}: not in an overlayfs mount")
    try:
        status = read_status(entry.mountpoint)
    except CommandError as error:
        raise type(error)(f"{printable(entry.mountpoint)}: {error}") from error
    stack = _Stack.of(status)
    relative = absolute[len(entry.mountpoint) :].strip(b"/")
    with ExitStack() as resources:
        layers, data_layers, indexes = stack.open(status.xattr_prefix, resources)
        return absolute, stack, trace(relative, layers, data_layers, indexes)


@dataclass(frozen=True, slots=True)
class _Stack:
    """The directories of a mount's layers, top first, as `overlayfs layers` counts them. Those of the writable side
    come first, and `indexes` are where the hard links of each are kept; the last `data_layers` have data alone.

    The numbers for `trace` are 0 for the topmost lower, UPPER_INDEX and less for uppers, and less still for indexes.
    """

    directories: list[bytes]
    indexes: list[bytes]
    data_layers: int

    @classmethod
    def of(cls, status: Status) -> _Stack:
        indexes = history.indexes(status.upper, status.work) if status.upper and status.work else {}
        directories = [*reversed(indexes), *status.lowers, *status.data_lowers]
        return cls(directories, [*reversed(indexes.values())], len(status.data_lowers))

    def open(self, prefix: bytes, resources: ExitStack) -> tuple[list[Layer], list[Layer], dict[int, Layer]]:
        """The layers, those with data alone, and the indexes by the number of their layer."""

        def opened(number: int, path: bytes, data_only: bool = False) -> Layer:
            layer = open_to_read(number, path, data_only).spelled(prefix)
            resources.callback(os.close, layer.root_fd)
            return layer

        first_data = len(self.directories) - self.data_layers
        numbered = [(self._layer(at), path) for at, path in enumerate(self.directories)]
        layers = [opened(number, path) for number, path in numbered[:first_data]]
        data_layers = [opened(number, path, True) for number, path in numbered[first_data:]]
        count = len(self.indexes)
        indexes = {
            self._layer(at): opened(self._layer(at) - count, path)
            for at, path in enumerate(self.indexes)
            if os.path.isdir(path)
        }
        return layers, data_layers, indexes

    def _layer(self, at: int) -> int:
        count = len(self.indexes)
        return UPPER_INDEX - at if at < count else at - count

    def number(self, layer: int) -> int:
        """Which layer that is, as `overlayfs layers` counts; an index counts as its layer."""
        count = len(self.indexes)
        return (UPPER_INDEX - layer) % count if layer <= UPPER_INDEX else layer + count

    def directory(self, layer: int) -> bytes:
        at, count = UPPER_INDEX - layer, len(self.indexes)
        return self.indexes[at - count] if at >= count else self.directories[self.number(layer)]


def _role(answer: Answer, stack: _Stack) -> str:
    if answer.hidden_by is not None:
        return f"hidden by {stack.number(answer.hidden_by)}"
    return answer.role.value


def _kind(answer: Answer) -> str:
    return "whiteout" if any(note.startswith("whiteout") for note in answer.notes) else _KINDS[answer.kind]


def _summary(found: Provenance, stack: _Stack) -> tuple[str, str]:
    provider, deleter = found.provider, found.deleter
    if provider is not None:
        layer = stack.number(provider.place.layer)
        return f"{_KINDS[provider.kind]} of layer {layer}", "green"
    if deleter is not None:
        return f"deleted by layer {stack.number(deleter.place.layer)}", "red"
    if found.answers:
        return f"not there: hidden by layer {stack.number(found.answers[0].hidden_by or 0)}", "red"
    return "in no layer", "red"


def _show(path: bytes, stack: _Stack, found: Provenance) -> None:
    text, style = _summary(found, stack)
    Lines().print(Cell(printable(path), "bold"), Cell(": "), Cell(text, style))
    if found.answers:
        print_table(("LAYER", "ROLE", "WHAT", "WHERE", "MARKS"), [_row(answer, stack) for answer in found.answers])


def _row(answer: Answer, stack: _Stack) -> list[Cell]:
    style = _STYLES[answer.role]
    where = os.path.join(stack.directory(answer.place.layer), answer.place.path)
    return [
        Cell(str(stack.number(answer.place.layer)), style),
        Cell(_role(answer, stack), style),
        Cell(_kind(answer)),
        Cell(printable(where)),
        Cell("; ".join(printable(os.fsencode(note)) for note in answer.notes), "dim"),
    ]


def _document(path: bytes, stack: _Stack, found: Provenance) -> dict[str, Any]:
    provider, deleter = found.provider, found.deleter
    return {
        "path": plain(path),
        "exists": provider is not None,
        "provider": None if provider is None else stack.number(provider.place.layer),
        "deleted_by": None if deleter is None else stack.number(deleter.place.layer),
        "layers": [_answer_document(answer, stack) for answer in found.answers],
    }


def _answer_document(answer: Answer, stack: _Stack) -> dict[str, Any]:
    directory = stack.directory(answer.place.layer)
    return {
        "layer": stack.number(answer.place.layer),
        "role": answer.role.value,
        "kind": _kind(answer),
        "directory": plain(directory),
        "path": plain(answer.place.path),
        "hidden_by": None if answer.hidden_by is None else stack.number(answer.hidden_by),
        "marks": list(answer.notes),
    }
