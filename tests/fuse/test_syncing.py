"""An fsync in a thread, and what is remembered of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from overlayfs.fuse.syncing import sync_directory, sync_file
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.inodes import ROOT, Caller
from overlayfs.overlay.options import OverlayOptions

CALLER = Caller(uid=os.geteuid(), gid=os.getegid())


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "lower-file").write_bytes(b"lower")
    lower, upper, work = (os.fsencode(tmp_path / name) for name in ("lower", "upper", "work"))
    opened = Overlay.open(OverlayOptions(lowers=(lower,), upper=upper, work=work))
    yield opened
    opened.close()


def _new_file(overlay: Overlay) -> int:
    return overlay.create(ROOT, b"file", 0o644, os.O_RDWR, CALLER).ino


def test_a_failed_fsync_stays_failed(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports lost pages once; a second fsync that says yes would be a lie."""
    file = _new_file(overlay)
    calls: list[int] = []

    def fail_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail_once)
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            trio.run(sync_file, overlay, file, False)
    assert len(calls) == 1


def test_a_new_name_is_synced_before_data_alone_is(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _new_file(overlay)
    calls: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _fd: calls.append("fsync"))
    monkeypatch.setattr(os, "fdatasync", lambda _fd: calls.append("fdatasync"))
    for _ in range(2):
        trio.run(sync_file, overlay, file, True)
    assert calls == ["fsync", "fdatasync"]


def test_what_cannot_be_dirty_is_not_synced(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    trio.run(sync_file, overlay, overlay.lookup(ROOT, b"lower-file").ino, False)
    assert not calls
    trio.run(sync_directory, overlay, ROOT)
    assert len(calls) == 1
