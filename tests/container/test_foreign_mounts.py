"""Which mounts of the host a container's namespace keeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlayfs.container.foreign_mounts import Needed, foreign_mounts
from overlayfs.tree.mount_table import MountEntry

NEEDED = Needed(
    paths=frozenset([b"/var/lib/overlayfs", b"/opt/venv"]),
    trees=frozenset([b"/proc", b"/usr", b"/data/volume"]),
)


def mounted(*places: str, follows: bool = False) -> list[MountEntry]:
    return [
        MountEntry(number, b"0:%d" % number, os.fsencode(place), b"tmpfs", b"none", frozenset(), follows=follows)
        for number, place in enumerate(places)
    ]


def detached(*places: str, follows: bool = False) -> list[str]:
    return [os.fsdecode(entry.mountpoint) for entry in foreign_mounts(mounted(*places, follows=follows), NEEDED)]


@pytest.mark.parametrize(
    "place",
    [
        "/",
        "/var",
        "/var/lib/overlayfs",
        "/opt/venv",
        "/proc",
        "/proc/sys/fs/binfmt_misc",
        "/usr/lib/modules",
        "/data",
        "/data/volume",
        "/data/volume/inner",
    ],
)
def test_what_is_needed_stays(place: str) -> None:
    assert detached(place) == []


@pytest.mark.parametrize(
    "place",
    ["/mnt/other", "/var/lib/overlayfs/containers/box/root", "/opt/venv2", "/opt/venv/lib", "/data/volume2", "/procs"],
)
def test_what_is_not_needed_is_detached(place: str) -> None:
    assert detached("/", place) == [place]


def test_what_follows_the_host_stays() -> None:
    assert detached("/mnt/other", follows=True) == []


def test_what_is_mounted_on_another_goes_first() -> None:
    assert detached("/", "/mnt", "/mnt/a", "/mnt/a", "/data", "/mnt/b") == ["/mnt/b", "/mnt/a", "/mnt/a", "/mnt"]


def test_all_that_a_path_leads_through_is_needed(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    (tmp_path / "third/end").mkdir()
    (tmp_path / "first/link").symlink_to("../second/link")
    (tmp_path / "second/link").symlink_to(tmp_path / "third")
    (tmp_path / "loop").symlink_to("loop")
    needed = Needed.of([tmp_path / "first/link/end", tmp_path / "loop"], [])
    for name in ("first", "second", "third", "third/end"):
        assert needed.covers(os.fsencode(tmp_path / name))
    assert not needed.covers(os.fsencode(tmp_path / "fourth"))
