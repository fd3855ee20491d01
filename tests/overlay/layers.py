"""Layers as data, built in a temporary directory and opened beneath descriptors."""

from __future__ import annotations

import os
from pathlib import Path

from overlayfs.overlay.layer import UPPER_INDEX, Layer, filesystem_uuid, open_layer
from overlayfs.tree.marks import origin_value
from overlayfs.tree.syscalls import file_handle
from tests.contract.tree import Format, Tree, build, directory


class Layers:
    """The directories of one test: `up`, `work` and the lowers `0`, `1`, …, top first."""

    def __init__(self, top: Path, lowers: list[Tree], upper: Tree | None, form: Format = Format.OVERLAY) -> None:
        self._fds: list[int] = []
        for number, tree in enumerate(lowers):
            build(os.fsencode(top / str(number)), {"": directory(), **tree}, form)
        self.lowers = [os.fsencode(top / str(number)) for number in range(len(lowers))]
        self.upper = os.fsencode(top / "up")
        self.work = os.fsencode(top / "work")
        if upper is not None:
            build(self.upper, {"": directory(), **upper}, form)
            os.makedirs(self.work, exist_ok=True)

    def open(self, *, with_upper: bool) -> list[Layer]:
        """All layers, top first; their descriptors live until `close`."""
        layers = [open_layer(UPPER_INDEX, self.upper)] if with_upper else []
        layers += [open_layer(number, path) for number, path in enumerate(self.lowers)]
        self._fds += [layer.root_fd for layer in layers]
        return layers

    def add_to_index(self, path: str) -> str:
        """Keep the upper's copy of a hard-linked file of the first lower in the index; the entry's name."""
        fd = os.open(self.lowers[0] + b"/" + os.fsencode(path), os.O_RDONLY)
        try:
            name = origin_value(file_handle(fd), filesystem_uuid(fd)).hex()
        finally:
            os.close(fd)
        os.makedirs(self.work + b"/index", exist_ok=True)
        os.link(self.upper + b"/" + os.fsencode(path), self.work + b"/index/" + name.encode())
        return name

    def open_index(self) -> Layer:
        layer = open_layer(UPPER_INDEX - 1, self.work + b"/index")
        self._fds.append(layer.root_fd)
        return layer

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
