"""How does a merged tree become a small JSON document? One column for each attribute, in the order of a walk.

The page's script (page/page.js, `readTree`) decodes it. A column of numbers has each value once, followed by its number
of repetitions as a negative number: [7, -3, 8] is 7 7 7 7 8. Names are joined by "/", which no name contains; an empty
name ends a directory. 100,000 files take about 3 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

from .browse import Node, walk

T = TypeVar("T", bound=Hashable)


def tree_document(root: Node, printable: Callable[[bytes], str]) -> dict[str, Any]:
    """The columns of a tree; `printable` escapes names.

    `kinds` numbers a palette of [kind, permission bits, uid, gid], `times` one of seconds; `first` has, for each
    further name of a hard-linked file, its position and that of the first name, which alone has the size.
    """
    nodes = list(walk(root))
    kinds, times = Palette[tuple[str, int, int, int]](), Palette[int]()
    first = _first_names(nodes)
    repeated = {position for position, _ in first}
    return {
        "names": names_column(nodes, printable),
        "kinds": repeats(kinds.number(_kind(node)) for node in nodes),
        "layers": repeats(node.layer for node in nodes),
        "sizes": repeats(0 if position in repeated else node.size for position, node in enumerate(nodes)),
        "times": repeats(times.number(node.record.mtime_ns // 1_000_000_000) for node in nodes),
        "targets": [printable(node.record.target) for node in nodes if node.record.kind == "l"],
        "first": [number for pair in first for number in pair],
        "kind_palette": kinds.values,
        "time_palette": times.values,
    }


def _kind(node: Node) -> tuple[str, int, int, int]:
    record = node.record
    return record.kind, record.mode, record.uid, record.gid


def _first_names(nodes: Iterable[Node]) -> list[tuple[int, int]]:
    """(position, position of the first name) of each further name of a file."""
    first: dict[tuple[int, bytes], int] = {}
    known = ((position, first.setdefault(node.origin, position)) for position, node in enumerate(nodes))
    return [(position, earlier) for position, earlier in known if position != earlier]


def names_column(nodes: Iterable[Node], printable: Callable[[bytes], str]) -> str:
    """The names of a walk, without the root."""
    parts: list[str] = []
    depth = 0
    for node in nodes:
        if not node.path:
            continue
        above = node.path.count(b"/")
        parts.extend([""] * (depth - above))
        parts.append(printable(node.name))
        depth = above + node.is_directory
    return "/".join(parts)


def repeats(values: Iterable[int]) -> list[int]:
    """Non-negative values with runs shortened."""
    column: list[int] = []
    last, again = -1, 0
    for value in values:
        if value == last:
            again += 1
            continue
        if again:
            column.append(-again)
        column.append(value)
        last, again = value, 0
    return [*column, -again] if again else column


class Palette(Generic[T]):
    """Numbers distinct values in order of appearance."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}

    def number(self, value: T) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def values(self) -> list[T]:
        return list(self._numbers)
