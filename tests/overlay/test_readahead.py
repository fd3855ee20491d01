"""Directories that are read before they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.inodes import ROOT
from overlayfs.overlay.listing import Sink
from overlayfs.overlay.options import OverlayOptions
from overlayfs.overlay.values import Attributes, Caller

ROOT_CALLER = Caller(0, 0, 0)
LIMIT = 2_048 + 64  # entries that may be ahead, and those of one directory


class Reply(Sink):
    """Takes all entries."""

    def __init__(self) -> None:
        super().__init__(takes=True)
        self.found: dict[bytes, int] = {}

    def put(self, name: bytes, offset: int, found: Attributes, can_be_taken: bool) -> bool:
        if can_be_taken:
            self.found[name] = found.ino
        return True


def listed(overlay: Overlay, ino: int) -> dict[bytes, int]:
    reply = Reply()
    overlay.fill(ino, 0, reply)
    return reply.found


def inodes(overlay: Overlay) -> object:
    return overlay.facts()["inodes"]


def read_all_ahead(overlay: Overlay) -> None:
    while overlay.read_ahead():
        pass


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    """Two directories of three files each."""
    for name in ("one", "two"):
        (tmp_path / "lower" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "lower" / name / f"{name}{number}").write_bytes(b"x")
    return tmp_path / "lower"


@pytest.fixture
def overlay(tmp_path: Path, lower: Path) -> Iterator[Overlay]:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    opened = Overlay.open(
        OverlayOptions(lowers=(bytes(lower),), upper=bytes(tmp_path / "upper"), work=bytes(tmp_path / "work"))
    )
    yield opened
    opened.close()


def test_subdirectories_of_a_listing_are_read(overlay: Overlay, lower: Path) -> None:
    found = listed(overlay, ROOT)
    read_all_ahead(overlay)
    assert inodes(overlay) == 1 + 2 + 6
    for name in ("one", "two"):  # a listing that reads the layer again would not see them any more
        for file in (lower / name).iterdir():
            file.unlink()
        assert sorted(listed(overlay, found[name.encode()])) == [b"%s%d" % (name.encode(), i) for i in range(3)]


def test_nothing_is_read_before_a_listing(overlay: Overlay) -> None:
    overlay.find(ROOT, b"one")
    assert not overlay.read_ahead()


def test_what_nobody_asks_for_is_dropped_with_the_directory(overlay: Overlay) -> None:
    found = listed(overlay, ROOT)
    read_all_ahead(overlay)
    for ino in found.values():
        overlay.forget(ino, 1)
    for _ in range(2_000):  # so many that memory is given back
        overlay.forget(overlay.lookup(ROOT, b"one").ino, 1)
    overlay.give_memory_back()
    assert inodes(overlay) == 1


def test_a_forgotten_directory_is_not_read_on(overlay: Overlay, lower: Path) -> None:
    found = listed(overlay, ROOT)
    assert overlay.read_ahead()
    for ino in found.values():
        overlay.forget(ino, 1)
    read_all_ahead(overlay)
    assert inodes(overlay) in (1, 1 + 1 + 3)  # at most the directory that was begun


def test_few_entries_are_ahead(overlay: Overlay, lower: Path) -> None:
    for number in range(100):
        directory = lower / "one" / f"directory{number}"
        directory.mkdir()
        for name in range(50):
            (directory / f"file{name}").write_bytes(b"x")
    one = listed(overlay, ROOT)[b"one"]
    children = listed(overlay, one)
    read_all_ahead(overlay)
    count = inodes(overlay)
    assert isinstance(count, int)
    assert len(children) < count <= 1 + 2 + len(children) + LIMIT


def test_changes_are_seen(overlay: Overlay) -> None:
    one = listed(overlay, ROOT)[b"one"]
    read_all_ahead(overlay)
    overlay.unlink(one, b"one0")
    overlay.create(one, b"new", 0o644, os.O_WRONLY, ROOT_CALLER)
    assert sorted(listed(overlay, one)) == [b"new", b"one1", b"one2"]


def test_the_upper_is_not_read_ahead(overlay: Overlay, tmp_path: Path) -> None:
    made = overlay.mkdir(ROOT, b"made", 0o755, ROOT_CALLER)
    overlay.create(made.ino, b"file", 0o644, os.O_WRONLY, ROOT_CALLER)
    directory = tmp_path / "upper" / "made"
    os.utime(directory, (1, 2))  # relatime: who lists it moves the access time
    listed(overlay, ROOT)
    read_all_ahead(overlay)
    assert directory.stat().st_atime == 1


def test_an_unreadable_layer_is_the_error_of_who_asks(overlay: Overlay, lower: Path) -> None:
    found = listed(overlay, ROOT)
    for file in (lower / "one").iterdir():
        file.unlink()
    (lower / "one").rmdir()
    read_all_ahead(overlay)
    with pytest.raises(FileNotFoundError):
        listed(overlay, found[b"one"])
    assert len(listed(overlay, found[b"two"])) == 3


def test_layers_that_change_are_not_read_ahead(lower: Path) -> None:
    opened = Overlay.open(OverlayOptions(lowers=(bytes(lower),), timeout_s=0))
    listed(opened, ROOT)
    assert not opened.read_ahead()
    opened.close()
