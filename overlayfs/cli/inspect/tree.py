"""`overlayfs tree`: the files of an image, or the changes of one of its layers, as a tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overlayfs.cli.inspect.looking import Looked, open_image
from overlayfs.cli.output import Cell, Lines, format_size, plain, print_json, printable
from overlayfs.image.inspect.browse import EMPTY, Node, compare, gone, resolve, walk
from overlayfs.overlay.changes import ChangeKind

_STYLES = {ChangeKind.ADDED: "green", ChangeKind.MODIFIED: "yellow", ChangeKind.DELETED: "red"}
_TYPES = {"f": "file", "d": "directory", "l": "symlink", "p": "fifo", "c": "character device", "b": "block device"}


@dataclass(frozen=True, slots=True)
class Shown:
    """The tree to show; for the tree of one layer also the kind of change of each path."""

    root: Node
    changes: dict[bytes, ChangeKind] | None = None


def show_tree(name: str, path: str, layer: int | None, depth: int | None, as_json: bool, store: Path | None) -> None:
    """Show the tree at `path` of an image, or the changes of `layer` (from 1, the bottom one) there."""
    with open_image(name, store) as looked:
        shown = Shown(looked.tree) if layer is None else _of_layer(looked, looked.layer_number(layer))
        shown = replace(shown, root=resolve(shown.root, os.fsencode(path)))
        if as_json:
            print_json([_document(shown, node) for node in _to_depth(shown.root, depth)])
        else:
            _print(shown, depth)


def _of_layer(looked: Looked, number: int) -> Shown:
    """The paths that a layer added, modified or deleted, and the directories above them."""
    before, after = looked.trees[number - 1] if number else EMPTY, looked.trees[number]
    changes: dict[bytes, ChangeKind] = {}
    root = _bare(after)
    for change in compare(before, after):
        for node in gone(change):
            changes[node.path] = ChangeKind.DELETED
            _put(root, after, node)
        if change.after is not None and not change.touches_only_directory_times:
            changes[change.path] = change.kind
            _put(root, after, change.after)
    return Shown(root, changes)


def _bare(node: Node) -> Node:
    return Node(node.record, node.layer, node.origin, {})


def _put(root: Node, tree: Node, node: Node) -> None:
    """Add a node to the tree under construction, with its parent directories as they are in `tree`."""
    here, there = root, tree
    for name in node.path.split(b"/")[:-1]:
        there = there.children.get(name, EMPTY)
        here = here.children.setdefault(name, _bare(there))
    if node.path and node.name not in here.children:
        here.children[node.name] = _bare(node)


def _to_depth(root: Node, depth: int | None) -> Iterator[Node]:
    top = root.path.count(b"/") + bool(root.path)
    for node in walk(root):
        if depth is None or node.path.count(b"/") + bool(node.path) - top <= depth:
            yield node


def _print(shown: Shown, depth: int | None) -> None:
    lines, sizes = Lines(), _sizes(shown.root)
    waiting: list[tuple[Node, str, str]] = [(shown.root, "", "")]
    while waiting:
        node, branch, below = waiting.pop()
        lines.print(*_line(shown, node, sizes, branch))
        if depth is not None and len(below) >= 3 * depth:
            continue
        children = [child for _, child in sorted(node.children.items(), reverse=True)]
        for position, child in enumerate(children):  # the last one comes first
            waiting.append((child, below + ("├─ " if position else "└─ "), below + ("│  " if position else "   ")))


def _sizes(root: Node) -> dict[bytes, int]:
    """Bytes of each directory with all below it; a file with several names is counted once."""
    sizes: dict[bytes, int] = {}
    counted: set[tuple[int, bytes]] = set()
    for node in walk(root):
        sizes[node.path] = 0 if node.origin in counted else node.size
        counted.add(node.origin)
    for path in sorted(sizes, key=lambda path: path.count(b"/"), reverse=True):
        if path and path != root.path:
            sizes[path.rpartition(b"/")[0]] += sizes[path]
    return sizes


def _line(shown: Shown, node: Node, sizes: dict[bytes, int], branch: str) -> Iterator[Cell]:
    record = node.record
    kind = None if shown.changes is None else shown.changes.get(node.path)
    if shown.changes is not None:
        yield Cell(f"{kind.value if kind else ' '} ", _STYLES[kind] if kind else "")
    size = sizes[node.path] if node.is_directory else node.size
    facts = f"{stat.filemode(node.mode)} {record.uid:>5}:{record.gid:<5} {format_size(size):>10} {node.layer + 1:>3}  "
    yield Cell(facts, "dim")
    yield Cell(branch, "dim")
    name = printable(node.name) if node is not shown.root else printable(b"/" + node.path)
    style = _STYLES[kind] if kind else "bold blue" if node.is_directory else ""
    yield Cell(name + ("/" if node.is_directory and not name.endswith("/") else ""), style)
    if record.kind == "l":
        yield Cell(f" -> {printable(record.target)}", "dim")


def _document(shown: Shown, node: Node) -> dict[str, Any]:
    record = node.record
    document: dict[str, Any] = {
        "path": plain(b"/" + node.path),
        "type": _TYPES[record.kind],
        "layer": node.layer + 1,
        "mode": f"{node.mode:06o}",
        "uid": record.uid,
        "gid": record.gid,
        "size": node.size,
        "mtime_ns": record.mtime_ns,
        "device": list(record.device) if record.kind in "cb" else None,
        "target": plain(record.target) if record.kind == "l" else None,
        "links_to": None if node.origin[1] == node.path else plain(b"/" + node.origin[1]),
        "xattrs": {os.fsdecode(name): value.hex() for name, value in sorted(record.xattrs.items())},
    }
    if shown.changes is not None:
        kind = shown.changes.get(node.path)
        document["change"] = kind.name.lower() if kind else None
    return document
