"""Which paths of the lower layers' merged tree did an upper add, modify or delete?

Compares two views, that of all layers and that of the lowers alone, and descends only where the upper has a
part in. So every spelling of a whiteout, opaque directories, redirects and metacopy are expanded by being
looked through: a `Change` speaks of paths in the merged tree and knows nothing of marks. The upper need not
be mounted; if it is, what changes during the walk may be seen or not.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ..tree import marks
from . import history
from .layer import UPPER_INDEX, Layer, Location, open_to_read
from .merge import Kind
from .options import MountError
from .values import Attributes
from .view import Node, Version, View

__all__ = ["Aspect", "Change", "ChangeKind", "Comparison", "Version", "Visit", "next_data", "next_hole", "same_bytes"]

_CHUNK: Final = 1 << 20
_COPY_MARKS: Final = frozenset(
    prefix + mark for prefix in marks.PREFIXES for mark in (marks.ORIGIN, marks.REDIRECT, marks.METACOPY)
)
Visit = Callable[[bytes, int], None]
_CANNOT_SEEK_DATA: Final = (errno.EINVAL, errno.EOPNOTSUPP)


class ChangeKind(Enum):
    """What happened to a path; the value is the letter that people know."""

    ADDED = "A"
    MODIFIED = "M"
    DELETED = "D"


class Aspect(Enum):
    """An aspect in which a modified file differs from the lower file."""

    TYPE = "type"
    CONTENT = "content"
    TARGET = "target"
    DEVICE = "device"
    MODE = "mode"
    OWNER = "owner"
    TIMES = "times"
    XATTRS = "xattrs"


@dataclass(frozen=True, slots=True)
class Change:
    """One path that the upper added, modified or deleted; `path` is relative to the root, whose own path is
    empty.

    A deleted directory is one change: all below it is gone with it. So is a directory replaced by a file.
    `after` is None for a deletion. `before` is None for an addition, and where the lower layers are not
    known. `aspects` says what a modification modified; empty where that is not known. `hides_below` is said by
    `Comparison.as_layer` only: the directory shows nothing that lower layers have in it.
    """

    path: bytes
    kind: ChangeKind
    after: Version | None = None
    before: Version | None = None
    aspects: frozenset[Aspect] = frozenset()
    hides_below: bool = False

    @property
    def stat(self) -> Attributes | None:
        version = self.after or self.before
        return None if version is None else version.stat

    @property
    def is_directory(self) -> bool:
        return self.stat is not None and stat.S_ISDIR(self.stat.mode)

    @property
    def touches_only_directory_times(self) -> bool:
        """A directory whose entries changed, and itself in nothing else: needed to rebuild it, noise to a
        person."""
        return self.is_directory and self.aspects == {Aspect.TIMES}


class Comparison:
    """The changes of one upper; iterate to get them, each directory before what is in it, names in byte
    order.

    With `lowers` None the upper is all that can be asked: files in it are ADDED, or MODIFIED where a mark
    says that they were copied up; whiteouts are DELETED; what an opaque directory hides, a redirected
    directory brings along and a metacopy file contains cannot be told.
    """

    def __init__(self, new: View, old: View | None, scaffold: Collection[bytes] = ()) -> None:
        self._new, self._old = new, old or View(())
        self._scaffold = frozenset(scaffold)
        self._lowers_known = old is not None
        self._resources = ExitStack()

    @classmethod
    def open(
        cls,
        upper: bytes,
        lowers: Sequence[bytes] | None,
        data_lowers: Sequence[bytes] = (),
        work: bytes | None = None,
        scaffold: Collection[bytes] = (),
        prefix: bytes | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> Comparison:
        """Compare directories; `close` gives the descriptors back. OSError where one cannot be opened.

        The upper's marks are those that a mount by this process writes, or have another xattr `prefix`.
        With `work`, hard links of a lower file that another name of it changed are changes too. `scaffold` are paths
        in the merged tree that were made to mount something on: where they are new and empty they are no change.

        With `work`, the changes are those of all layers that snapshots made of the upper; or those that came after the
        snapshot `since`, and before `until`. MountError for a snapshot that is not there.
        """
        added, kept = _writable_side(upper, work, since, until)
        indexes = {} if work is None else history.indexes(upper, work)
        lowers = None if lowers is None else [*kept, *lowers]
        with ExitStack() as stack:
            top = _hold(stack, UPPER_INDEX, added[0], prefix)
            prefix = top.spelling.prefix
            numbers = range(UPPER_INDEX - 1, UPPER_INDEX - len(added), -1)
            between = [_hold(stack, n, path, prefix).as_upper() for n, path in zip(numbers, added[1:], strict=True)]
            below = [_hold(stack, number, path, prefix) for number, path in enumerate(lowers or ())]
            below[: len(kept)] = [layer.as_upper() for layer in below[: len(kept)]]
            data = [_hold(stack, number, path, prefix, True) for number, path in enumerate(data_lowers, len(below))]
            copies = {
                layer.index: _hold(stack, UPPER_INDEX - len(added) - number, indexes[layer.path], prefix)
                for number, layer in enumerate((top, *between, *below))
                if os.path.isdir(indexes.get(layer.path, b""))
            }
            copies_below = {number: index for number, index in copies.items() if number > UPPER_INDEX}
            old = None if lowers is None else View(below, data, copies_below)
            comparison = cls(View((top, *between, *below), data, copies), old, scaffold)
            comparison._resources = stack.pop_all()
        return comparison

    @classmethod
    def open_whole(cls, layers: Sequence[bytes]) -> Comparison:
        """All that layers, top first, show together, compared to nothing."""
        with ExitStack() as stack:
            stacked = [_hold(stack, number, path) for number, path in enumerate(layers)]
            comparison = cls(View(stacked), View(()))
            comparison._resources = stack.pop_all()
        return comparison

    def whole(self) -> Comparison:
        """All that the upper and the lowers show together, compared to nothing; to be closed in place of this one."""
        found = Comparison(self._new, View(()), self._scaffold)
        found._resources = self._resources.pop_all()
        return found

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_data(self, version: Version) -> int:
        """Open the bytes of a regular file for reading; EIO where no layer has them. The caller owns the
        descriptor."""
        if version.data is None:
            raise OSError(errno.EIO, "the data of this metacopy file is in no layer")
        return self._new.open(version.data, os.O_RDONLY | os.O_NOFOLLOW)

    def __iter__(self) -> Iterator[Change]:
        if not self._lowers_known:
            yield from self._told_by_upper(self._new.root())
            return
        new, old = self._new.root(), self._old_root()
        if old is not None:
            yield from self._modified(new, old)
        yield from self._in_directory(new, old)

    def as_layer(self, visit: Visit | None = None) -> Iterator[Change]:
        """The content of a layer that changes the lowers as the upper does; the lowers must be known.

        As iteration, but: a directory that shows nothing of what lower layers have in it `hides_below`, and all that
        it holds is ADDED, whether the lowers have the same or not; the root is ADDED where there is no lower; and a
        file that has or had several names, and did not change, is MODIFIED without aspects: they may be others now.

        `visit` is shown each directory of the upper: its path in the merged tree, and a descriptor to read it by.
        """
        if not self._lowers_known:
            raise ValueError("the lower layers are not known")
        return self._as_layer(self._new.root(), self._old_root(), visit)

    def _as_layer(self, new: Node, old: Node | None, visit: Visit | None) -> Iterator[Change]:
        """A loop with a stack of its own, as a tree may be deeper than functions can call each other."""
        stack: list[Iterator[tuple[Node | None, Node | None]]] = [iter([(new, old)])]
        while stack:
            above, below = next(stack[-1], (None, None))
            if above is None and below is None:
                stack.pop()
            elif above is None:
                assert below is not None
                yield Change(below.path, ChangeKind.DELETED, before=self._old.version(below))
            elif not self._is_untouched(above, below):
                hides = self._hides(above, below)
                yield from self._in_layer(above, below, hides)
                if above.is_directory:
                    self._show(above, visit)
                    stack.append(self._pairs(above, below if below and below.is_directory and not hides else None))

    def _is_untouched(self, new: Node, old: Node | None) -> bool:
        """Whether these are the very same files, and so is all below them."""
        return old is not None and new.places == old.places and not (new.is_directory and self._new.has_index)

    def _hides(self, new: Node, old: Node | None) -> bool:
        """Whether nothing of what a directory had can be seen in it now."""
        if old is None or not (new.is_directory and old.is_directory):
            return False
        return set(new.places).isdisjoint(old.places) and bool(self._old.children(old))

    def _in_layer(self, new: Node, old: Node | None, hides: bool) -> Iterator[Change]:
        after = self._new.version(new)
        if old is None:
            yield Change(new.path, ChangeKind.ADDED, after)
            return
        before = self._old.version(old)
        aspects = frozenset() if new.places[0] == old.places[0] else self._differences(after, before)
        is_linked = not new.is_directory and max(after.stat.nlink, before.stat.nlink) > 1
        if aspects or hides or is_linked:
            yield Change(new.path, ChangeKind.MODIFIED, after, before, aspects, hides)

    def _show(self, directory: Node, visit: Visit | None) -> None:
        if visit is None or directory.places[0].layer > UPPER_INDEX:
            return
        fd = self._new.open(directory.places[0], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            visit(directory.path, fd)
        finally:
            os.close(fd)

    def version_at(self, path: bytes) -> Version | None:
        """The node at a path of the merged tree, None if there is none."""
        node = self._new.find(path)
        return None if node is None else self._new.version(node)

    def _old_root(self) -> Node | None:
        root = self._old.root()
        return root if root.places else None

    def _in_directory(self, new: Node, old: Node | None) -> Iterator[Change]:
        """The changes below a directory; with `old` None everything in it is new."""
        for above, below in self._pairs(new, old):
            yield from self._of_name(above, below)

    def _pairs(self, new: Node, old: Node | None) -> Iterator[tuple[Node | None, Node | None]]:
        """For each name in a directory, the node now and before; names without any part in the upper are left out."""
        now = self._new.children(new)
        before = {} if old is None else self._old.children(old)
        same_places = old is not None and _lower_places(new) == old.places and not self._new.has_index
        for name in sorted(now.keys() | before.keys()):
            above, below = now.get(name), before.get(name)
            if same_places and above is not None and above == below:
                continue  # not even a redirect can make a difference
            now_there = None if above is None else self._new.node(new, name, above)
            if below is None and now_there is not None and self._is_scaffold(now_there):
                continue
            yield now_there, None if below is None or old is None else self._old.node(old, name, below)

    def _is_scaffold(self, node: Node) -> bool:
        """Whether something was made only to be mounted on, and nothing has come into it."""
        if node.path not in self._scaffold:
            return False
        if node.is_directory:
            children = self._new.children(node)
            return all(self._is_scaffold(self._new.node(node, name, child)) for name, child in children.items())
        return self._new.version(node).stat.size == 0

    def _of_name(self, new: Node | None, old: Node | None) -> Iterator[Change]:
        if new is None:
            assert old is not None
            yield Change(old.path, ChangeKind.DELETED, before=self._old.version(old))
            return
        if old is None:
            yield Change(new.path, ChangeKind.ADDED, after=self._new.version(new))
        elif self._is_untouched(new, old):
            return
        else:
            yield from self._modified(new, old)
        if new.is_directory:
            yield from self._in_directory(new, old if old is not None and old.is_directory else None)

    def _modified(self, new: Node, old: Node) -> Iterator[Change]:
        if new.places[0] == old.places[0]:
            return
        after, before = self._new.version(new), self._old.version(old)
        aspects = self._differences(after, before)
        if aspects:
            yield Change(new.path, ChangeKind.MODIFIED, after, before, aspects)

    def _differences(self, after: Version, before: Version) -> frozenset[Aspect]:
        new, old = after.stat, before.stat
        if stat.S_IFMT(new.mode) != stat.S_IFMT(old.mode):
            return frozenset({Aspect.TYPE})
        differs = {
            Aspect.MODE: new.mode != old.mode,
            Aspect.OWNER: (new.uid, new.gid) != (old.uid, old.gid),
            Aspect.TIMES: new.mtime_ns != old.mtime_ns,
            Aspect.XATTRS: after.xattrs != before.xattrs,
            Aspect.TARGET: after.target != before.target,
            Aspect.DEVICE: _is_device(new) and new.rdev != old.rdev,
            Aspect.CONTENT: stat.S_ISREG(new.mode) and not self._same_content(after, before),
        }
        return frozenset(aspect for aspect, yes in differs.items() if yes)

    def _same_content(self, after: Version, before: Version) -> bool:
        if after.data is not None and after.data == before.data:
            return True
        if after.stat.size != before.stat.size:
            return False
        with ExitStack() as stack:
            left = self.open_data(after)
            stack.callback(os.close, left)
            right = self.open_data(before)
            stack.callback(os.close, right)
            return same_bytes(left, right)

    def gone_with(self, change: Change) -> Iterator[Change]:
        """The former entries of a directory that a change deleted or replaced, as separate deletions, deepest first."""
        was, now = change.before, change.after
        if was is None or not stat.S_ISDIR(was.stat.mode) or (now is not None and stat.S_ISDIR(now.stat.mode)):
            return
        directory = self._old.find(change.path)
        if directory is not None:
            yield from self._deletions(directory)

    def _deletions(self, directory: Node) -> Iterator[Change]:
        for name, child in sorted(self._old.children(directory).items()):
            node = self._old.node(directory, name, child)
            if node.is_directory:
                yield from self._deletions(node)
            yield Change(node.path, ChangeKind.DELETED, before=self._old.version(node))

    def _told_by_upper(self, directory: Node) -> Iterator[Change]:
        place = directory.places[0]
        children = self._new.children(directory)
        deleted = {name for name, kind in self._new.names(place).kinds.items() if kind is Kind.WHITEOUT}
        for name in sorted(children.keys() | deleted):
            if name not in children:
                path = directory.path + b"/" + name if directory.path else name
                yield Change(path, ChangeKind.DELETED)
                continue
            node = self._new.node(directory, name, children[name])
            kind = ChangeKind.MODIFIED if self._is_copy(node) else ChangeKind.ADDED
            yield Change(node.path, kind, after=self._new.version(node))
            if node.is_directory:
                yield from self._told_by_upper(node)

    def _is_copy(self, node: Node) -> bool:
        """Whether a mark tells that the file was copied up from a lower layer, under this name or another."""
        return not self._new.mark_names(node.places[0]).isdisjoint(_COPY_MARKS)


def _writable_side(
    upper: bytes, work: bytes | None, since: str | None, until: str | None
) -> tuple[list[bytes], list[bytes]]:
    """The layers whose changes are asked for, and those below them that snapshots made; each top first."""
    layers = [(None, upper)] if work is None else history.uppers(upper, work)
    names = [name for name, _ in layers]
    for asked in (since, until):
        if asked is not None and asked not in names:
            raise MountError(f"there is no snapshot {asked!r}{_those(names)}")
    first = 0 if since is None else names.index(since) + 1
    end = len(names) if until is None else names.index(until) + 1
    if first >= end:
        raise MountError(f"snapshot {since} is not older than snapshot {until}")
    paths = [path for _, path in layers]
    return paths[first:end][::-1], paths[:first][::-1]


def _those(names: Sequence[str | None]) -> str:
    taken = [name for name in names if name is not None]
    return f", but {', '.join(taken)}" if taken else ""


def _hold(stack: ExitStack, index: int, path: bytes, prefix: bytes | None = None, data_only: bool = False) -> Layer:
    layer = open_to_read(index, path, data_only)
    stack.callback(os.close, layer.root_fd)
    return layer if prefix is None else layer.spelled(prefix)


def same_bytes(left: int, right: int) -> bool:
    """Whether two files of equal size hold the same; holes are not read."""
    position, size = 0, os.fstat(left).st_size
    while position < size:
        position = min(next_data(left, position, size), next_data(right, position, size))
        mine, other = os.pread(left, _CHUNK, position), os.pread(right, _CHUNK, position)
        if mine != other:
            return False
        if not mine:
            break
        position += len(mine)
    return True


def next_data(fd: int, position: int, size: int) -> int:
    """Where data begins at or after a position; `size` where only a hole is left of the file."""
    return _sought(fd, position, os.SEEK_DATA, size, position)


def next_hole(fd: int, position: int, size: int) -> int:
    """Where the data that a position lies in ends; `size` where no hole is known after it."""
    return _sought(fd, position, os.SEEK_HOLE, size, size)


def _sought(fd: int, position: int, whence: int, at_end: int, unknown: int) -> int:
    try:
        return os.lseek(fd, position, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return at_end
        if error.errno in _CANNOT_SEEK_DATA:
            return unknown
        raise


def _lower_places(node: Node) -> tuple[Location, ...]:
    return tuple(place for place in node.places if place.layer > UPPER_INDEX)


def _is_device(st: Attributes) -> bool:
    return stat.S_ISCHR(st.mode) or stat.S_ISBLK(st.mode)
