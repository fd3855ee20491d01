"""What tests of images share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs.image.store.store import Store
from overlayfs.tree.syscalls import mount, unmount


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store, open, in the directory `store` of the test."""
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with these options, in place of the one before; only root can. Returns where it is."""
    place = tmp_path / "small"
    place.mkdir()

    def mounted(options: str) -> Path:
        if os.path.ismount(place):
            unmount(os.fsencode(place), lazy=True)
        mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, options.encode())
        return place

    yield mounted
    if os.path.ismount(place):
        unmount(os.fsencode(place), lazy=True)
