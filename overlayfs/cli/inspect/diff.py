"""`overlayfs diff`: the additions, modifications and deletions of an upper: a list, with sizes, a patch, or JSON."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, Protocol

from overlayfs.cli.app import store_directory
from overlayfs.cli.container.containers import compare_container
from overlayfs.cli.inspect.patch import Changed, print_patch
from overlayfs.cli.mounts.changes import compare_mount, writable_status
from overlayfs.cli.mounts.live import CommandError, is_ours, mount_at, mount_containing, resolve
from overlayfs.cli.output import Cell, Lines, format_size, plain, print_json, printable
from overlayfs.overlay.changes import Change, ChangeKind, Comparison, Version
from overlayfs.tree import marks

_STYLES = {ChangeKind.ADDED: "green", ChangeKind.MODIFIED: "yellow", ChangeKind.DELETED: "red"}
_WORDS = {ChangeKind.ADDED: "added", ChangeKind.MODIFIED: "modified", ChangeKind.DELETED: "deleted"}


class Form(Enum):
    """How the changes are shown."""

    NAMES = "names"
    STAT = "stat"
    PATCH = "patch"
    JSON = "json"


def show_changes(
    tree: str,
    lowers: Sequence[str] | None,
    form: Form,
    everything: bool,
    *,
    user_xattr: bool = False,
    since: str | None = None,
    until: str | None = None,
) -> None:
    """Show the changes of a mount, a container, or an upper directory; of the first two also those after the snapshot
    `since`, and up to the snapshot `until`."""
    with _open(os.fsencode(tree), lowers, user_xattr, since, until) as comparison:
        show(comparison, form, everything)


class Compared(Changed, Protocol):
    """The changes of an upper, or between two images."""

    def __iter__(self) -> Iterator[Change]: ...


def show(comparison: Compared, form: Form, everything: bool) -> None:
    """Show changes; directories of which only the times changed are shown with `everything`."""
    changes = (c for c in comparison if everything or not c.touches_only_directory_times)
    if form is Form.JSON:
        print_json([_document(change) for change in changes])
    elif form is Form.PATCH:
        print_patch(changes, comparison)
    elif form is Form.STAT:
        _show_sizes(changes)
    else:
        _show_names(changes)


def _open(
    tree: bytes, lowers: Sequence[str] | None, user_xattr: bool, since: str | None, until: str | None
) -> Comparison:
    """A container precedes a directory of the same name, for which users write ./NAME; as in `commit`."""
    if not lowers and not user_xattr and b"/" not in tree:
        container = compare_container(store_directory(), os.fsdecode(tree), since, until)
        if container is not None:
            return container
    path = resolve(tree)
    entry = mount_at(path)
    if entry is None or not is_ours(entry):
        around = mount_containing(path)
        if lowers is None and around is not None and is_ours(around):
            where = printable(around.mountpoint)
            raise CommandError(f"{printable(tree)}: lies in the mount {where}: name that, or for an upper its --lower")
        if not os.path.isdir(path):
            raise CommandError(f"{printable(tree)}: not a directory, and no container of that name")
        if since is not None or until is not None:
            raise CommandError(f"{printable(tree)}: --from and --to name snapshots of a mount, and it is none")
        below = None if lowers is None else [os.fsencode(lower) for lower in lowers]
        return Comparison.open(path, below, prefix=marks.USER if user_xattr else None)
    if lowers:
        raise CommandError(f"{printable(tree)}: the lower layers of a mount are known: leave out --lower")
    if user_xattr:
        raise CommandError(f"{printable(tree)}: the spelling of a mount's marks is known: leave out --userxattr")
    return compare_mount(path, writable_status(path), since, until)


def _shown_path(change: Change) -> str:
    return printable(b"/" + change.path + (b"/" if change.is_directory and change.path else b""))


def _show_names(changes: Iterable[Change]) -> None:
    lines = Lines()
    for change in changes:
        lines.print(Cell(f"{change.kind.value} {_shown_path(change)}", _STYLES[change.kind]))


def _show_sizes(changes: Iterable[Change]) -> None:
    lines, count, grown = Lines(), Counter[ChangeKind](), 0
    for change in changes:
        count[change.kind] += 1
        grown += _size(change.after) - _size(change.before)
        head = Cell(f"{change.kind.value} {_shown_path(change)}", _STYLES[change.kind])
        lines.print(head, Cell(_size_note(change), "dim"))
    parts = [f"{count[kind]} {word}" for kind, word in _WORDS.items()]
    sign = "+" if grown >= 0 else "-"
    lines.print(Cell(", ".join(parts) + f", {sign}{format_size(abs(grown))} in files", "bold"))


def _size(version: Version | None) -> int:
    return version.stat.size if version is not None and stat.S_ISREG(version.stat.mode) else 0


def _size_note(change: Change) -> str:
    sizes = [
        format_size(_size(version))
        for version in (change.before, change.after)
        if version is not None and stat.S_ISREG(version.stat.mode)
    ]
    if change.kind is ChangeKind.MODIFIED and len(sizes) == 2 and sizes[0] == sizes[1]:
        sizes.pop()
    aspects = ", ".join(sorted(aspect.value for aspect in change.aspects))
    note = " → ".join(sizes) + (f" ({aspects})" if aspects else "")
    return "  " + note.strip() if note else ""


def _document(change: Change) -> dict[str, Any]:
    return {
        "path": plain(b"/" + change.path),
        "kind": _WORDS[change.kind],
        "aspects": sorted(aspect.value for aspect in change.aspects),
        "before": _version_document(change.before),
        "after": _version_document(change.after),
    }


def _device(version: Version) -> list[int] | None:
    mode, rdev = version.stat.mode, version.stat.rdev
    return [os.major(rdev), os.minor(rdev)] if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None


def _version_document(version: Version | None) -> dict[str, Any] | None:
    if version is None:
        return None
    return {
        "mode": f"{version.stat.mode:06o}",
        "uid": version.stat.uid,
        "gid": version.stat.gid,
        "size": version.stat.size,
        "mtime_ns": version.stat.mtime_ns,
        "device": _device(version),
        "target": plain(version.target),
        "xattrs": {os.fsdecode(name): value.hex() for name, value in sorted(version.xattrs.items())},
    }
