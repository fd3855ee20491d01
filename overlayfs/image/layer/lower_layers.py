"""What do the layers beneath a layer have at a path? For layers whose tar depends on them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ...overlay.layer import Layer, open_to_read
from ...overlay.view import Node, View
from ..tar.compression import CHUNK
from ..tar.reader import Entry

_KINDS: Final = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFCHR: "c"}
_KINDS[stat.S_IFBLK] = "b"


class Below:
    """The merged tree of unpacked layers, for one thread; closed by the end of its context."""

    def __init__(self, directories: Sequence[Path]) -> None:
        """`directories`: top first."""
        self._resources = ExitStack()
        with ExitStack() as stack:
            layers = [self._open(stack, index, path) for index, path in enumerate(directories)]
            self._view = View(layers)
            self._resources = stack.pop_all()

    @staticmethod
    def _open(stack: ExitStack, index: int, path: Path) -> Layer:
        layer = open_to_read(index, os.fsencode(path))
        stack.callback(os.close, layer.root_fd)
        return layer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def entry(self, path: bytes) -> Entry | None:
        """The visible entry at the path; None for nothing, or for a type that a tar cannot hold."""
        node = self._find(path)
        return None if node is None else self._entry(path, node)

    def data(self, path: bytes) -> Iterator[memoryview]:
        """The bytes of a file."""
        node = self._find(path)
        place = None if node is None else self._view.data(node)
        if place is None:
            raise FileNotFoundError(path)
        fd = self._view.open(place, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            while data := os.read(fd, CHUNK):
                yield memoryview(data)
        finally:
            os.close(fd)

    def _find(self, path: bytes) -> Node | None:
        return self._view.find(path) if path else self._view.root()

    def _entry(self, path: bytes, node: Node) -> Entry | None:
        version = self._view.version(node)
        st = version.stat
        kind = _KINDS.get(stat.S_IFMT(st.mode))
        if kind is None:
            return None
        return Entry(
            path,
            kind,
            stat.S_IMODE(st.mode),
            st.uid,
            st.gid,
            st.size if kind == "f" else 0,
            st.mtime_ns,
            version.target or b"",
            (os.major(st.rdev), os.minor(st.rdev)),
            dict(version.xattrs),
        )
