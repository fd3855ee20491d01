"""What a listing gives where an entry cannot be described."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.inodes import ROOT
from overlayfs.overlay.listing import Sink
from overlayfs.overlay.options import OverlayOptions
from overlayfs.overlay.values import Attributes
from overlayfs.tree import access
from overlayfs.tree.syscalls import Stat


class Reply(Sink):
    """Has room for anything."""

    def __init__(self) -> None:
        super().__init__(takes=True)
        self.found: list[tuple[bytes, int, int]] = []

    def put(self, name: bytes, offset: int, found: Attributes, can_be_taken: bool) -> bool:
        self.found.append((name, offset, found.ino))
        return True


def test_error_comes_after_the_entries_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "lower").mkdir(exist_ok=True)
        (tmp_path / "lower" / name).write_bytes(b"x")
    overlay = Overlay.open(OverlayOptions(lowers=(bytes(tmp_path / "lower"),)))
    order = [entry.name for entry in overlay.readdir(ROOT, 0)][2:]
    stat_at = access.stat_at

    def failing(dir_fd: int, name: bytes) -> Stat:
        if name == order[1]:
            raise OSError(errno.EIO, "the disk fails")
        return stat_at(dir_fd, name)

    monkeypatch.setattr(access, "stat_at", failing)
    first = Reply()
    overlay.fill(ROOT, 0, first)
    assert [name for name, _, _ in first.found] == [b".", b"..", order[0]]
    _, offset, taken = first.found[-1]
    with pytest.raises(OSError, match="the disk fails"):
        overlay.fill(ROOT, offset, Reply())
    monkeypatch.undo()
    rest = Reply()
    overlay.fill(ROOT, offset, rest)
    assert [name for name, _, _ in rest.found] == order[1:]
    overlay.forget(taken, 1)
    for _, _, ino in rest.found:
        overlay.forget(ino, 1)
    assert overlay.facts()["inodes"] == 1
    overlay.close()
