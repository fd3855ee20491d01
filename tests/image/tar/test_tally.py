"""What a layer asks for is counted before it is done, and the limits say what they are and how they are raised."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from overlayfs.image.oci.errors import InvalidError, LimitError
from overlayfs.image.oci.limits import DEFAULT_LIMITS, VARIABLE, Limits, limits_of_environment
from overlayfs.image.tar.tally import Room, Tally


class Disk(NamedTuple):
    """As much of statvfs(3) as is looked at."""

    f_blocks: int
    f_bavail: int
    f_frsize: int = 4096


def take(room: Room, total: int) -> None:
    for _ in range(total >> 20):
        room.take(1 << 20, b"bomb")


def test_members_and_bytes_are_limited() -> None:
    tally = Tally(Limits(members=2, full_size=10), "the layer")
    tally.add(b"a", 4)
    with pytest.raises(LimitError, match=f"'b' makes it larger than 10 bytes, the limit .{VARIABLE} raises it"):
        tally.add(b"b", 7)
    with pytest.raises(LimitError, match=f"more than 2 members, the limit .{VARIABLE} raises it"):
        tally.add(b"c", 0)


def test_disk_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much the limit allows; a layer that is small is not looked at."""
    monkeypatch.setattr(os, "fstatvfs", lambda _: Disk(1 << 20, 1 << 10))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        take(Room(DEFAULT_LIMITS, "the layer", fd), 60 << 20)
        with pytest.raises(LimitError, match="'bomb' does not fit on the disk, which has 4194304 bytes left"):
            take(Room(DEFAULT_LIMITS, "the layer", fd), 70 << 20)
        monkeypatch.setattr(os, "fstatvfs", lambda _: Disk(1 << 20, 1 << 19))
        take(Room(DEFAULT_LIMITS, "the layer", fd), 500 << 20)
        monkeypatch.setattr(os, "fstatvfs", lambda _: Disk(1 << 15, 1 << 12))  # an eighth of a small disk is left
        take(Room(DEFAULT_LIMITS, "the layer", fd), 500 << 20)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("10k", 10 << 10), ("128G", 128 << 30), ("2TiB", 2 << 40), ("7MB", 7 << 20)]
)
def test_environment_sets_the_limit(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    assert limits_of_environment().disk_size == size


def test_larger_layers_have_more_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "128G")
    limits = limits_of_environment()
    assert (limits.full_size, limits.members) == (2 << 40, 2_000_000)
    assert limits.of_archive.disk_size == limits.full_size
    monkeypatch.setenv(VARIABLE, "")
    assert limits_of_environment() == DEFAULT_LIMITS


@pytest.mark.parametrize("text", ["0", "-1", "G", "1X", "1.5G", "unlimited", "1 000"])
def test_what_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(InvalidError, match="is no size: write it as 200G"):
        limits_of_environment()
