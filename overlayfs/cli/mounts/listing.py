"""`overlayfs mounts` and `overlayfs layers MNT`: list the mounts, and the layers of a mount."""

from __future__ import annotations

import os
import time
from itertools import chain, repeat
from typing import Any

from overlayfs.cli.mounts.live import (
    CommandError,
    NotAnswering,
    Status,
    is_ours,
    mount_at,
    our_mounts,
    read_status,
    resolve,
)
from overlayfs.cli.output import Cell, format_duration, plain, print_json, print_table, printable
from overlayfs.overlay import history
from overlayfs.tree.mount_table import MountEntry


def show_mounts(as_json: bool) -> None:
    """Show all overlayfs mounts of this namespace, including those whose daemon does not answer."""
    answers = [(entry, _ask(entry)) for entry in our_mounts()]
    if as_json:
        print_json([_mount_document(entry, answer) for entry, answer in answers])
    elif answers:
        headings = ("MOUNTPOINT", "MODE", "LOWERS", "UPPER", "UPTIME", "PID")
        print_table(headings, [_mount_row(entry, answer) for entry, answer in answers])


def _ask(entry: MountEntry) -> Status | CommandError:
    try:
        return read_status(entry.mountpoint, timeout_s=2.0)
    except CommandError as error:
        return error


def _mount_document(entry: MountEntry, answer: Status | CommandError) -> dict[str, Any]:
    document: dict[str, Any] = {"mountpoint": plain(entry.mountpoint), "source": plain(entry.source)}
    if isinstance(answer, Status):
        return document | {"status": answer.document}
    return document | {"status": None, "problem": str(answer)}


def _mount_row(entry: MountEntry, answer: Status | CommandError) -> list[Cell]:
    mountpoint = Cell(printable(entry.mountpoint), "bold")
    mode = Cell("ro") if b"ro" in entry.options else Cell("rw", "green")
    if not isinstance(answer, Status):
        problem = Cell(str(answer), "red" if isinstance(answer, NotAnswering) else "yellow")
        return [mountpoint, mode, Cell("?"), problem, Cell("?"), Cell("?")]
    return [
        mountpoint,
        Cell("ro") if answer.read_only else mode,
        Cell(str(len(answer.lowers) + len(answer.data_lowers))),
        Cell(printable(answer.upper)) if answer.upper else Cell("-", "dim"),
        Cell(format_duration(time.time() - answer.mounted_at)),
        Cell(str(answer.pid)),
    ]


def status_of(mountpoint: str) -> tuple[MountEntry, Status]:
    """The overlayfs mount on `mountpoint` and what its daemon says; CommandError if there is none."""
    path = resolve(os.fsencode(mountpoint))
    entry = mount_at(path)
    nothing = CommandError(f"{printable(path)}: no overlayfs is mounted here")
    if entry is None or not is_ours(entry):
        raise nothing
    try:
        return entry, read_status(path)
    except CommandError as error:
        if mount_at(path) != entry:  # it was unmounted meanwhile, and the mount below has answered
            raise nothing from error
        raise type(error)(f"{printable(path)}: {error}") from error


def is_mountpoint(name: str) -> bool:
    """Whether the name means a mount, not an image: it looks like a path, or something is mounted there."""
    return name.startswith(("/", ".")) or mount_at(resolve(os.fsencode(name))) is not None


def show_layers(mountpoint: str, as_json: bool) -> None:
    """The layers of one mount, top first."""
    _, status = status_of(mountpoint)
    layers = layers_of(status)
    if as_json:
        print_json([{"layer": n, "role": role, "directory": plain(path)} for n, (role, path) in enumerate(layers)])
        return
    styles = {"upper": "green", "snapshot": "green", "lower": "", "data": "dim"}
    print_table(
        ("LAYER", "ROLE", "DIRECTORY"),
        [
            [Cell(str(n), "dim"), Cell(role, styles[role]), Cell(printable(path))]
            for n, (role, path) in enumerate(layers)
        ],
    )


def layers_of(status: Status) -> list[tuple[str, bytes]]:
    """(role, directory) of each layer, top first; the position is the layer's number in all output."""
    uppers = zip(chain(["upper"], repeat("snapshot")), _uppers(status), strict=False)
    lowers = [("lower", path) for path in status.lowers]
    return [*uppers, *lowers, *(("data", path) for path in status.data_lowers)]


def _uppers(status: Status) -> list[bytes]:
    """The layers of the writable side, top first: the one that takes changes, and those that snapshots made of it."""
    if status.upper is None or status.work is None:
        return []
    return [path for _, path in reversed(history.uppers(status.upper, status.work))]
