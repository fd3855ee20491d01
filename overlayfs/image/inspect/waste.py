"""Which bytes of an image can nobody see?

The bytes of a file are hidden once all its names are deleted or replaced by later layers; they are still stored and
pulled. The efficiency is the share of bytes that are not hidden. Dive's score (wagoodman/dive, filetree/efficiency.go)
differs: for every path the smallest size that a layer has there, over the sum of all sizes that layers have there; so a
deleted directory costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ...overlay.changes import Aspect
from ..layer.file_index import LayerIndex, Record
from .browse import EMPTY, Node, NodeChange, differing, find, gone, walk


class Reason(Enum):
    """How a later layer hid a file; the last such change if the file had several names."""

    DELETED = "deleted"
    REPLACED = "replaced"
    REWRITTEN = "rewritten as it was"
    """With the same bytes: its owner, mode or times were changed, or nothing."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """What one change in layer `hidden_by` hid: a file, or a directory with `count` files.

    `size` is their bytes, `layers` the layers that they come from.
    """

    path: bytes
    size: int
    count: int
    layers: tuple[int, ...]
    hidden_by: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Waste:
    """The hidden files, largest first. `total` are the bytes of all layers' files; dive's best score is 1."""

    hidden: Sequence[Hidden]
    total: int
    dive_score: float

    @property
    def wasted(self) -> int:
        """The number of hidden bytes."""
        return sum(item.size for item in self.hidden)

    @property
    def efficiency(self) -> float:
        """The share of all bytes that are visible; 1 is best."""
        return 1 - self.wasted / self.total if self.total else 1.0

    @property
    def count(self) -> int:
        """The number of hidden files."""
        return sum(item.count for item in self.hidden)


class _Step(NamedTuple):
    """The change that hid a file: the deleted or replaced path, the layer, and the kind of change."""

    path: bytes
    layer: int
    reason: Reason


def find_waste(indexes: Sequence[LayerIndex], trees: Sequence[Node]) -> Waste:
    """`trees` are the merged trees of the layers `indexes`, bottom first."""
    seen = {node.origin for node in walk(trees[-1])} if trees else set[tuple[int, bytes]]()
    steps: dict[tuple[int, bytes], _Step] = {}
    sizes: dict[tuple[int, bytes], int] = {}
    for number, (below, tree) in enumerate(zip([EMPTY, *trees], trees, strict=False)):
        for change in differing(below, tree):
            for node, reason in _lost(change):
                if node.size and node.origin not in seen:
                    steps[node.origin] = _Step(change.path, number, reason)
                    sizes[node.origin] = node.size
    return Waste(_grouped(steps, sizes), sum(index.size for index in indexes), dive_score(indexes, trees))


def _grouped(steps: dict[tuple[int, bytes], _Step], sizes: dict[tuple[int, bytes], int]) -> list[Hidden]:
    """The hidden files by change; `steps` and `sizes` are keyed by the origin of the file."""
    by_step: dict[_Step, list[tuple[int, bytes]]] = {}
    for origin, step in steps.items():
        by_step.setdefault(step, []).append(origin)
    hidden = [
        Hidden(
            step.path,
            sum(sizes[origin] for origin in origins),
            len(origins),
            tuple(sorted({layer for layer, _ in origins})),
            step.layer,
            step.reason,
        )
        for step, origins in by_step.items()
    ]
    return sorted(hidden, key=lambda item: (-item.size, item.path, item.hidden_by))


def _lost(change: NodeChange) -> Iterator[tuple[Node, Reason]]:
    """The names of files that a change removed."""
    for node in gone(change):
        yield node, Reason.DELETED
    if change.before is not None and change.after is not None and not change.before.is_directory:
        is_same = change.before.record.kind == change.after.record.kind and Aspect.CONTENT not in change.aspects
        yield change.before, Reason.REWRITTEN if is_same else Reason.REPLACED


def dive_score(indexes: Sequence[LayerIndex], trees: Sequence[Node]) -> float:
    """The score of dive: 1 if no path has bytes in two layers and nothing is deleted."""
    smallest: dict[bytes, int] = {}
    total = 0
    for index, below in zip(indexes, [EMPTY, *trees], strict=False):
        parents = {record.path.rpartition(b"/")[0] for record in index.records}
        for record in index.records:
            if record.kind == "d" and record.path in parents:
                continue  # only what has nothing below it is counted
            size = _size_of_deleted(below, record) if record.kind == "w" else record.size * (record.kind == "f")
            smallest[record.path] = min(size, smallest.get(record.path, size))
            total += size
    return sum(smallest.values()) / total if total else 1.0


def _size_of_deleted(below: Node, whiteout: Record) -> int:
    """Dive counts a deleted file as 0 bytes, a deleted directory with all its contents except hard links."""
    node = find(below, whiteout.path)
    if node is None or not node.is_directory:
        return 0
    return sum(item.size for item in walk(node) if item.origin[1] == item.path)
