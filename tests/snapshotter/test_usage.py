from __future__ import annotations

import os
from pathlib import Path

from overlayfs.image.store.staging import remove_tree
from overlayfs.snapshotter.usage import usage_of

DEPTH = 2000


def test_hard_links_count_once_and_symlinks_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x" * 100_000)
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    (top / "file").write_bytes(b"x" * 10_000)
    os.link(top / "file", top / "d" / "again")
    (top / "link").symlink_to(tmp_path / "outside")
    names = (".", "d", "file", "link")
    usage = usage_of(top)
    assert usage.inodes == len(names)
    assert usage.size == sum(os.lstat(top / name).st_blocks * 512 for name in names)


def test_holes_take_nothing(tmp_path: Path) -> None:
    before = usage_of(tmp_path).size
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert usage_of(tmp_path).size - before < 1 << 20


def test_deep_tree_is_counted(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        assert usage_of(tmp_path).inodes == DEPTH + 1
    finally:
        remove_tree(tmp_path / "d")  # pytest's own removal is recursive
