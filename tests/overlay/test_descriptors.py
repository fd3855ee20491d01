"""What the pools of descriptors keep over a rollback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from overlayfs.overlay.descriptors import Descriptors
from overlayfs.overlay.layer import Location

LIMIT = 64  # of which the pool of files has 16
FILES = LIMIT // 4


@pytest.fixture
def pools() -> Iterator[Descriptors]:
    made = Descriptors(LIMIT)
    yield made
    made.close()


def _opened() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def _is_open(fd: int) -> bool:
    with suppress(OSError):
        os.fstat(fd)
        return True
    return False


def test_rollback_keeps_the_directories_of_layers_that_stay(pools: Descriptors) -> None:
    root_fd = os.open("/", os.O_PATH)
    kept = pools.open_directory(Location(0, b"proc"), root_fd, b"proc")
    gone = [pools.open_directory(key, root_fd, b"proc") for key in (Location(5, b"proc"), 7)]
    os.close(root_fd)
    pools.drop({0})
    assert pools.cached_directory(Location(0, b"proc")) == kept and _is_open(kept)
    assert not any(map(_is_open, gone))
    assert pools.cached_directory(7) == -1


def test_dropped_file_is_nobodys_and_closes_with_its_layer(pools: Descriptors) -> None:
    dropped, pinned = pools.add_file(1, _opened(), True), pools.add_file(2, _opened(), True)
    with pinned as fd:
        pools.drop(())
        assert pools.file(1) is None and pools.file(2) is None
        pools.close_dropped()
        assert not _is_open(dropped.fd) and _is_open(fd)
    assert not _is_open(fd)


@pytest.mark.parametrize("rollbacks", [1, 3])
def test_dropped_files_take_no_room_from_others(pools: Descriptors, rollbacks: int) -> None:
    for _ in range(rollbacks):
        for number in range(1, FILES + 1):
            pools.add_file(number, _opened(), True)
        pools.drop(())
        assert len(pools) == FILES
    others = [pools.add_file(number, _opened(), False) for number in range(1, FILES + 1)]
    assert all(_is_open(opened.fd) for opened in others)
    assert len(pools) == FILES
    assert pools.file(1) is others[0]
