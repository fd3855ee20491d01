"""Owners in an image of files that an ordinary user keeps."""

from __future__ import annotations

import os
import stat

import pytest

from overlayfs.image.layer.owners import DiskOwners
from overlayfs.image.layer.subordinate_ids import Subordinate
from overlayfs.overlay.changes import Version
from overlayfs.overlay.layer import Location
from overlayfs.overlay.values import Attributes

USER = DiskOwners(1000, 1001, Subordinate(100_000, 65536), Subordinate(200_000, 10))


def version(kind: int, uid: int, gid: int) -> Version:
    data = Location(0, b"x") if kind == stat.S_IFREG else None
    return Version(Attributes.pack(1, kind | 0o644, 1, uid, gid), 1, {}, None, data)


@pytest.mark.parametrize(
    ("on_disk", "in_image"),
    [
        ((1000, 1001), (0, 0)),
        ((100_000, 200_000), (1, 1)),
        ((100_041, 200_009), (42, 10)),
        ((165_536, 200_010), (165_536, 200_010)),
        ((0, 0), (0, 0)),
    ],
)
def test_own_and_subordinate_ids(on_disk: tuple[int, int], in_image: tuple[int, int]) -> None:
    assert USER.of_layer_file(version(stat.S_IFLNK, *on_disk)) == in_image
    assert USER.of_plain_file(version(stat.S_IFREG, *on_disk)) == in_image


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFDIR])
def test_what_has_an_override_is_as_that_says(kind: int) -> None:
    assert USER.of_layer_file(version(kind, 1000, 100_000)) == (1000, 100_000)


def test_user_without_subordinate_ids() -> None:
    alone = DiskOwners(1000, 1000, None, None)
    assert alone.of_layer_file(version(stat.S_IFIFO, 1000, 100_000)) == (0, 100_000)


def test_root_sees_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (DiskOwners.of_this_user() is None) == (os.geteuid() == 0)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    found = DiskOwners.of_this_user()
    assert found is not None and found.uid == 4711
