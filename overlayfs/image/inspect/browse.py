"""What does an image show, which layer shows it, and what did each layer change?

The answers come from the file indexes of the layers alone; no file is opened. The nodes of a merged tree are never
changed once their layer is added. The tree after each layer thus shares everything that the layer did not touch with
the tree before, and a comparison of two trees skips shared nodes. Layers are numbered from 0, the bottom one. All walks
are loops, as an image may nest directories deeper than Python nests calls.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

import msgspec

from ...overlay.changes import Aspect, ChangeKind
from ..layer.file_index import LayerIndex, Record
from ..oci.errors import InvalidError

_MOST_SYMLINKS: Final = 40  # as path_resolution(7)
_TYPES: Final = {
    "f": stat.S_IFREG,
    "d": stat.S_IFDIR,
    "l": stat.S_IFLNK,
    "p": stat.S_IFIFO,
    "c": stat.S_IFCHR,
    "b": stat.S_IFBLK,
}
_NO_CHILDREN: Final[
    dict[bytes, Node]
] = {}  # shared by all nodes but directories, as a dict each would cost as much as the node


@dataclass(frozen=True, slots=True)
class Node:
    """A path of a merged tree, as the topmost layer with that path describes it.

    `layer` is that layer's number. A hard link has the record of its file under its own path; `origin`, the layer
    and path of the record with the bytes, is the same for all names of one file.
    """

    record: Record
    layer: int
    origin: tuple[int, bytes]
    children: dict[bytes, Node] = field(default_factory=lambda: _NO_CHILDREN)

    @property
    def path(self) -> bytes:
        return self.record.path

    @property
    def name(self) -> bytes:
        return self.record.path.rpartition(b"/")[2]

    @property
    def is_directory(self) -> bool:
        return self.record.kind == "d"

    @property
    def size(self) -> int:
        """Bytes of a regular file, 0 for anything else."""
        return self.record.size if self.record.kind == "f" else 0

    @property
    def mode(self) -> int:
        """Type and permission bits, as stat(2)."""
        return _TYPES[self.record.kind] | self.record.mode


EMPTY: Final = Node(Record(b"", "d", 0o755), 0, (0, b""))
"""The tree of an image without layers."""


def merged_trees(indexes: Iterable[LayerIndex]) -> list[Node]:
    """The root after each layer, bottom first; the last one is the image's. InvalidError where an index is damaged."""
    trees = [EMPTY]
    for number, index in enumerate(indexes):
        trees.append(add_layer(trees[-1], index, number))
    return trees[1:]


def merged_tree(indexes: Iterable[LayerIndex]) -> Node:
    """The root of the merged tree of all layers."""
    return (merged_trees(indexes) or [EMPTY])[-1]


def merged_pair(left: Sequence[LayerIndex], right: Sequence[LayerIndex]) -> tuple[Node, Node]:
    """The roots of two images. They share the nodes of common bottom layers, which makes comparing them fast."""
    alike = takewhile(lambda pair: pair[0].diff_id == pair[1].diff_id, zip(left, right, strict=False))
    common = sum(1 for _ in alike)
    base = merged_tree(left[:common])
    return _on_top(base, left, common), _on_top(base, right, common)


def _on_top(tree: Node, indexes: Sequence[LayerIndex], start: int) -> Node:
    for number, index in enumerate(indexes[start:], start):
        tree = add_layer(tree, index, number)
    return tree


def add_layer(below: Node, index: LayerIndex, number: int) -> Node:
    """The root of the tree with one more layer on top; `below` stays as it is."""
    adding = _Adding(below, index, number)
    for record in index.records:  # deletions first: a layer may delete a name and make it again
        if record.kind == "w":
            adding.delete(record.path)
        elif record.is_opaque:
            adding.directory(record.path).children.clear()
    for record in index.records:
        if record.kind != "w":
            adding.add(record)
    return adding.root


class _Adding:
    """A tree under construction. Invariant: directories in `_own` are copies of this layer and may still change."""

    def __init__(self, below: Node, index: LayerIndex, number: int) -> None:
        self._below, self._index, self._number = below, index, number
        self._records: dict[bytes, Record] | None = None
        self._own = {b"": self._copy(below)}

    @property
    def root(self) -> Node:
        return self._own[b""]

    def _copy(self, node: Node) -> Node:
        return Node(node.record, node.layer, node.origin, dict(node.children))

    def directory(self, path: bytes) -> Node:
        """This layer's copy of a directory, which is made if it is missing or a file."""
        missing = []
        while path not in self._own:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        here = self._own[path]
        for path in reversed(missing):
            name = path.rpartition(b"/")[2]
            known = here.children.get(name)
            if known is None or not known.is_directory:
                known = self._node(Record(path, "d", 0o755))
            here.children[name] = self._own[path] = here = self._copy(known)
        return here

    def _node(self, record: Record) -> Node:
        return Node(record, self._number, (self._number, record.path))

    def delete(self, path: bytes) -> None:
        above, _, name = path.rpartition(b"/")
        self.directory(above).children.pop(name, None)

    def add(self, record: Record) -> None:
        if record.kind == "d":
            here = self.directory(record.path)
            node = Node(record, self._number, (self._number, record.path), here.children)
            self._own[record.path] = node
        else:
            node = self._linked(record) if record.kind == "h" else self._node(record)
        above, _, name = record.path.rpartition(b"/")
        if record.path:
            self.directory(above).children[name] = node

    def _linked(self, link: Record) -> Node:
        """The file that a hard link refers to: in this layer or, as umoci writes it, in one below."""
        if self._records is None:
            self._records = {record.path: record for record in self._index.records if record.kind != "w"}
        record, seen = link, set[bytes]()
        while record.kind == "h" and record.target not in seen:
            seen.add(record.target)
            known = self._records.get(record.target)
            if known is None:
                return self._linked_below(link, record.target)
            record = known
        if record.kind in "hd":
            raise self._damaged(link)
        return Node(_renamed(record, link.path), self._number, (self._number, record.path))

    def _linked_below(self, link: Record, target: bytes) -> Node:
        node = find(self._below, target)
        if node is None or node.is_directory:
            raise self._damaged(link)
        return Node(_renamed(node.record, link.path), self._number, node.origin)

    def _damaged(self, link: Record) -> InvalidError:
        what = f"layer {self._index.diff_id}: the file index is damaged"
        return InvalidError(f"{what}: the hard link {link.path!r} leads to no file (see overlayfs verify)")


def _renamed(record: Record, path: bytes) -> Record:
    return msgspec.structs.replace(record, path=path)


def find(root: Node, path: bytes) -> Node | None:
    """The node at a path, without following symlinks; None if there is none."""
    node: Node | None = root
    for name in filter(None, path.split(b"/")):
        node = node.children.get(name) if node else None
    return node


def resolve(root: Node, path: bytes, *, follow: bool = True) -> Node:
    """The node that a process inside the image would find at `path`: symlinks never lead out of the image.

    Without `follow` the last component itself stays a symlink. Raises ENOENT, ENOTDIR or ELOOP with the path.
    """
    trail, left, links = [root], deque(_components(path)), 0
    while left:
        name = left.popleft()
        if not trail[-1].is_directory:
            raise _not_found(errno.ENOTDIR, path)
        if name in (b".", b".."):
            if name == b"..":
                del trail[max(1, len(trail) - 1) :]
            continue
        node = trail[-1].children.get(name)
        if node is None:
            raise _not_found(errno.ENOENT, path)
        if node.record.kind != "l" or not (left or follow):
            trail.append(node)
            continue
        links += 1
        if links > _MOST_SYMLINKS:
            raise _not_found(errno.ELOOP, path)
        left.extendleft(reversed(_components(node.record.target)))
        if node.record.target.startswith(b"/"):
            del trail[1:]
    return trail[-1]


def _components(path: bytes) -> list[bytes]:
    """The components of a path; a slash at the end requires a directory, like `/.`."""
    return [*filter(None, path.split(b"/")), *([b"."] if path.endswith(b"/") else [])]


def _not_found(code: int, path: bytes) -> OSError:
    return OSError(code, f"{os.strerror(code)} in the image", path)


def walk(node: Node) -> Iterator[Node]:
    """The node and all its descendants: directories before their entries, names in byte order."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        if node.children:
            waiting += [child for _, child in sorted(node.children.items(), reverse=True)]


@dataclass(frozen=True, slots=True)
class NodeChange:
    """One path in which two trees differ. A deleted directory, or one replaced by a file, is one change."""

    before: Node | None
    after: Node | None

    @property
    def path(self) -> bytes:
        node = self.after or self.before
        assert node is not None
        return node.path

    @property
    def kind(self) -> ChangeKind:
        if self.before is None:
            return ChangeKind.ADDED
        return ChangeKind.DELETED if self.after is None else ChangeKind.MODIFIED

    @property
    def aspects(self) -> frozenset[Aspect]:
        """The aspects in which a modification differs; empty for additions and deletions."""
        if self.before is None or self.after is None:
            return frozenset()
        old, new = self.before.record, self.after.record
        return frozenset(aspect for aspect, differs in _ASPECTS.items() if differs(old, new))

    @property
    def touches_only_directory_times(self) -> bool:
        """Whether only the times of a directory differ, as its entries were changed."""
        return self.after is not None and self.after.is_directory and self.aspects == {Aspect.TIMES}


_ASPECTS: Final[dict[Aspect, Callable[[Record, Record], bool]]] = {
    Aspect.TYPE: lambda old, new: old.kind != new.kind,
    Aspect.CONTENT: lambda old, new: old.kind == new.kind == "f" and (old.size, old.content) != (new.size, new.content),
    Aspect.TARGET: lambda old, new: old.kind == new.kind == "l" and old.target != new.target,
    Aspect.DEVICE: lambda old, new: old.kind == new.kind and old.kind in "cb" and old.device != new.device,
    Aspect.MODE: lambda old, new: old.kind == new.kind != "l" and old.mode != new.mode,
    Aspect.OWNER: lambda old, new: (old.uid, old.gid) != (new.uid, new.gid),
    Aspect.TIMES: lambda old, new: old.mtime_ns != new.mtime_ns,
    Aspect.XATTRS: lambda old, new: old.xattrs != new.xattrs,
}


def differing(old: Node, new: Node) -> Iterator[NodeChange]:
    """The paths whose nodes are not shared, in the order of `walk`; includes files rewritten without a change."""
    waiting: list[tuple[Node | None, Node | None]] = [(old, new)]
    while waiting:
        before, after = waiting.pop()
        yield NodeChange(before, after)
        if after is None or not after.is_directory:
            continue
        olds, news = before.children if before is not None else _NO_CHILDREN, after.children
        names = news.keys() | olds if olds else news.keys()
        pairs = [(olds.get(name), news.get(name)) for name in sorted(names, reverse=True)]
        waiting += [pair for pair in pairs if pair[0] is not pair[1]]


def compare(old: Node, new: Node) -> Iterator[NodeChange]:
    """The additions, modifications and deletions from one tree to another, of one image or two."""
    return (c for c in differing(old, new) if c.aspects or c.kind is not ChangeKind.MODIFIED)


@dataclass(frozen=True, slots=True)
class LayerChanges:
    """The changes of one layer: `size` is in bytes; the others count paths, those in deleted directories included."""

    number: int
    size: int
    added: int
    modified: int
    deleted: int


def layer_changes(indexes: Sequence[LayerIndex], trees: Sequence[Node]) -> list[LayerChanges]:
    """The changes of each layer, bottom first; `trees` are their merged trees."""
    return [
        LayerChanges(number, index.size, *_counts(below, tree))
        for number, (index, below, tree) in enumerate(zip(indexes, [EMPTY, *trees], trees, strict=False))
    ]


def _counts(old: Node, new: Node) -> tuple[int, int, int]:
    counts = Counter[ChangeKind]()
    for change in compare(old, new):
        counts[ChangeKind.DELETED] += sum(1 for _ in gone(change))
        if change.after is not None and change.path and not change.touches_only_directory_times:
            counts[change.kind] += 1
    return counts[ChangeKind.ADDED], counts[ChangeKind.MODIFIED], counts[ChangeKind.DELETED]


def gone(change: NodeChange) -> Iterator[Node]:
    """The nodes that a change removes: a deleted path with its descendants, and the entries of a replaced directory."""
    if change.before is None or (change.after is not None and change.after.is_directory):
        return
    nodes = walk(change.before)
    if change.after is not None:
        next(nodes)
    yield from nodes
