"""What does a stack of layers hold, and what plain directory does it stand for?

A layer is data: a mapping from path to `Node`, parents before children. `merge` says what the stack looks
like from above. It is written from the definition (apply the layers from the bottom up), shares nothing with
the engine, and so can judge it.
"""

import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from hypothesis import strategies as st

NAMES = (b"a", b"b", b"c", b"d")
PAST_NS = 1_000_000_000_123_456_789


class Kind(Enum):
    FILE = auto()
    DIRECTORY = auto()
    SYMLINK = auto()
    FIFO = auto()
    WHITEOUT = auto()


@dataclass(frozen=True, slots=True)
class Node:
    """One entry of a layer; `data` is a file's content or a link's target, `group` names its hard links."""

    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    data: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    mtime_ns: int = PAST_NS
    opaque: bool = False
    group: int | None = None


Layer = Mapping[bytes, Node]
"""Parents stand before their children; b"" is the root."""


def parent_of(path: bytes) -> bytes:
    """The directory that holds `path`; b"" is the root."""
    return path.rpartition(b"/")[0]


def ancestors_of(path: bytes) -> list[bytes]:
    """Every directory above `path` but the root, the outermost first."""
    parts = path.split(b"/")
    return [b"/".join(parts[:depth]) for depth in range(1, len(parts))]


def merge(layers: Sequence[Layer]) -> dict[bytes, Node]:
    """What the stack (top first) shows, as one layer without whiteouts or opaque directories."""
    merged: dict[bytes, Node] = {}
    for index, layer in enumerate(reversed(layers)):
        for path, node in layer.items():
            _put(merged, path, _in_layer(node, index))
    return _without_hidden_links({path: merged[path] for path in sorted(merged)})


def _in_layer(node: Node, index: int) -> Node:
    """Hard link groups are of one layer only: number them apart."""
    return node if node.group is None else replace(node, group=node.group + 1000 * index)


def _put(merged: dict[bytes, Node], path: bytes, node: Node) -> None:
    below = merged.get(path)
    joins = node.kind is Kind.DIRECTORY and not node.opaque and below is not None and below.kind is Kind.DIRECTORY
    if not joins:
        _remove(merged, path)
    if node.kind is not Kind.WHITEOUT:
        merged[path] = replace(node, opaque=False)


def _remove(merged: dict[bytes, Node], path: bytes) -> None:
    inside = path + b"/" if path else b""
    for name in [name for name in merged if name == path or name.startswith(inside)]:
        del merged[name]


def _without_hidden_links(merged: dict[bytes, Node]) -> dict[bytes, Node]:
    """A group of which only one name is left is an ordinary file."""
    names = Counter(node.group for node in merged.values())
    return {path: replace(node, group=None) if names[node.group] == 1 else node for path, node in merged.items()}


def tidy(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The stack without what has no agreed meaning.

    Whiteouts stay only where a lower layer has that name in a directory that the layers share (a whiteout
    elsewhere is litter, and the kernel lists some of it). Hard links stay only when all the names are visible
    (otherwise what st_nlink ought to say is a matter of opinion).
    """
    tidied: list[Layer] = []
    for layer in reversed(layers):
        tidied.insert(0, _without_litter(layer, merge(tidied)))
    return _with_whole_groups(tuple(tidied))


def _without_litter(layer: Layer, below: Mapping[bytes, Node]) -> Layer:
    kept: dict[bytes, Node] = {}
    for path, node in layer.items():
        if node.kind is Kind.WHITEOUT and not (path in below and _shared(layer, below, path)):
            continue
        opaque = node.opaque and path in below and _shared(layer, below, path)
        kept[path] = replace(node, opaque=opaque)
    return kept


def _shared(layer: Layer, below: Mapping[bytes, Node], path: bytes) -> bool:
    """Whether each directory above `path` merges with one below it."""
    return all(
        not layer[above].opaque and above in below and below[above].kind is Kind.DIRECTORY
        for above in ancestors_of(path)
    )


def _with_whole_groups(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    visible = Counter(node.group for node in merge(layers).values() if node.group is not None)
    tidied: list[Layer] = []
    for index, layer in enumerate(reversed(layers)):
        stored = Counter(node.group for node in layer.values() if node.group is not None)
        broken = {group for group, count in stored.items() if visible[group + 1000 * index] != count or count == 1}
        tidied.insert(
            0,
            {path: replace(node, group=None) if node.group in broken else node for path, node in layer.items()},
        )
    return tuple(tidied)


def write(layer: Layer, root: bytes) -> None:
    """Store `layer` in the existing directory `root`, in the kernel's own format."""
    first_of: dict[int, bytes] = {}
    for path, node in layer.items():
        place = os.path.join(root, path) if path else root
        if node.group is not None and node.group in first_of:
            os.link(first_of[node.group], place)
            continue
        _make(node, place)
        if node.group is not None:
            first_of[node.group] = place
    for path, node in reversed(list(layer.items())):
        if node.kind is not Kind.WHITEOUT:
            place = os.path.join(root, path) if path else root
            os.utime(place, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)


def _make(node: Node, place: bytes) -> None:
    match node.kind:
        case Kind.WHITEOUT:
            os.mknod(place, stat.S_IFCHR, os.makedev(0, 0))
            return
        case Kind.DIRECTORY:
            os.makedirs(place, exist_ok=True)
        case Kind.SYMLINK:
            os.symlink(node.data, place)
        case Kind.FIFO:
            os.mkfifo(place)
        case Kind.FILE:
            with open(place, "wb") as file:
                file.write(node.data)
    os.chown(place, node.uid, node.gid, follow_symlinks=False)
    if node.kind is not Kind.SYMLINK:
        os.chmod(place, node.mode)
    for name, value in node.xattrs:
        os.setxattr(place, name, value, follow_symlinks=False)
    if node.opaque:
        os.setxattr(place, "trusted.overlay.opaque", b"y")


# Strategies

OWNERS = st.tuples(st.sampled_from((0, 1000)), st.sampled_from((0, 1000, 2000)))
CONTENTS = st.sampled_from((b"", b"lower", b"L" * 4096, b"long" * 20_000))
TARGETS = st.sampled_from((b"a", b"b", b"a/b", b"nowhere"))
FILE_MODES = st.sampled_from((0o644, 0o600, 0o755, 0o4755, 0o2755, 0o640))
DIRECTORY_MODES = st.sampled_from((0o755, 0o700, 0o1750, 0o2775))
XATTRS = st.lists(
    st.tuples(st.sampled_from(("user.one", "trusted.two")), st.sampled_from((b"", b"1", b"v" * 300))),
    max_size=2,
    unique_by=lambda pair: pair[0],
).map(tuple)
TIMES = st.integers(0, 999_999).map(lambda step: PAST_NS + step * 1_000_001)


@st.composite
def _nodes(draw: st.DrawFn, kinds: tuple[Kind, ...]) -> Node:
    kind = draw(st.sampled_from(kinds))
    uid, gid = draw(OWNERS)
    node = Node(kind, uid=uid, gid=gid, mtime_ns=draw(TIMES))
    match kind:
        case Kind.FILE:
            group = draw(st.sampled_from((None, None, 1, 2)))
            return replace(node, mode=draw(FILE_MODES), data=draw(CONTENTS), xattrs=draw(XATTRS), group=group)
        case Kind.DIRECTORY:
            return replace(node, mode=draw(DIRECTORY_MODES), xattrs=draw(XATTRS), opaque=draw(st.booleans()))
        case Kind.SYMLINK:
            return replace(node, data=draw(TARGETS))
        case _:
            return node


PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(b"/".join)
BOTTOM_KINDS = (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO)
UPPER_KINDS = (
    Kind.FILE,
    Kind.DIRECTORY,
    Kind.DIRECTORY,
    Kind.WHITEOUT,
    Kind.WHITEOUT,
    Kind.SYMLINK,
    Kind.FIFO,
)


@st.composite
def _layers(draw: st.DrawFn, kinds: tuple[Kind, ...]) -> Layer:
    layer: dict[bytes, Node] = {b"": Node(Kind.DIRECTORY)}
    for path, node in draw(st.lists(st.tuples(PATHS, _nodes(kinds)), max_size=8)):
        _insert(layer, path, node)
    return {path: layer[path] for path in sorted(layer)}


def _insert(layer: dict[bytes, Node], path: bytes, node: Node) -> None:
    """Add `node` and the directories above it; an entry that is there already stays."""
    for above in ancestors_of(path):
        if layer.setdefault(above, Node(Kind.DIRECTORY)).kind is not Kind.DIRECTORY:
            return
    if path in layer:
        return
    if node.group is not None:
        same = next((other for other in layer.values() if other.group == node.group), node)
        node = same
    layer[path] = node


def stacks() -> st.SearchStrategy[tuple[Layer, ...]]:
    """One to four lower layers, top first; the bottom one has no whiteouts."""
    upper = st.lists(_layers(UPPER_KINDS), max_size=3)
    return st.tuples(upper, _layers(BOTTOM_KINDS)).map(lambda both: tidy((*both[0], both[1])))
