"""`overlayfs diff IMAGE_A IMAGE_B`: the differences of two images, in the same formats as the changes of an upper."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from overlayfs.cli.inspect.diff import Form, show
from overlayfs.cli.inspect.looking import Looked, look_at
from overlayfs.image.inspect.browse import Node, NodeChange, compare, gone, merged_pair
from overlayfs.image.store.store import Store
from overlayfs.overlay.changes import Change, ChangeKind, Version
from overlayfs.overlay.layer import Location
from overlayfs.overlay.values import Attributes


def show_image_changes(old: str, new: str, form: Form, everything: bool, store: Path | None) -> None:
    """What was added, modified and deleted from one image to another."""
    with Store.open(store) as opened, ImageComparison(look_at(old, opened), look_at(new, opened)) as comparison:
        show(comparison, form, everything)


class ImageComparison:
    """The changes between two images, with the interface of overlay/changes.py; a context manager.

    The layers of the second image are numbered after those of the first.
    """

    def __init__(self, old: Looked, new: Looked) -> None:
        self._trees = merged_pair(old.indexes, new.indexes)
        self._layers = len(old.directories)
        self._contents = old.content(), new.content()
        self._resources = ExitStack()
        self._gone: dict[bytes, NodeChange] = {}

    def __enter__(self) -> ImageComparison:
        for content in self._contents:
            self._resources.enter_context(content)
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def __iter__(self) -> Iterator[Change]:
        for change in compare(*self._trees):
            self._gone = {change.path: change}
            before, after = self._version(change.before, 0), self._version(change.after, self._layers)
            yield Change(change.path, change.kind, after, before, change.aspects)

    def _version(self, node: Node | None, first: int) -> Version | None:
        if node is None:
            return None
        record = node.record
        data = Location(first + node.layer, node.path) if record.kind == "f" else None
        target = record.target if record.kind == "l" else None
        return Version(_attributes(node), 0, record.xattrs, target, data)

    def open_data(self, version: Version) -> int:
        """Open the bytes of a file; the caller owns the descriptor."""
        assert version.data is not None
        layer, path = version.data
        old, new = self._contents
        return old.open_at(layer, path) if layer < self._layers else new.open_at(layer - self._layers, path)

    def gone_with(self, change: Change) -> Iterator[Change]:
        """The entries of a directory that the last change deleted or replaced, deepest first."""
        told = self._gone.get(change.path)
        nodes = [node for node in gone(told) if node.path != change.path] if told else []
        for node in reversed(nodes):
            yield Change(node.path, ChangeKind.DELETED, before=self._version(node, 0))


def _attributes(node: Node) -> Attributes:
    record = node.record
    return Attributes.pack(
        ino=0,
        mode=node.mode,
        nlink=1,
        uid=record.uid,
        gid=record.gid,
        rdev=os.makedev(*record.device),
        size=len(record.target) if record.kind == "l" else node.size,
        blocks=0,
        blksize=4096,
        atime_ns=record.mtime_ns,
        mtime_ns=record.mtime_ns,
        ctime_ns=record.mtime_ns,
    )
