"""The file that `overlayfs report` writes is there whole or as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlayfs.cli.inspect.report import write_report
from overlayfs.image.store.store import Store
from tests.crash.forgetful import ForgetfulDisk
from tests.image.making import put, tar


def test_report_outlives_a_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "store") as store:
        put(store, "x", tar({"a": b"a"}))
    page = tmp_path / "pages/x.html"
    page.parent.mkdir()
    page.write_text("the page before")
    disk, sync = ForgetfulDisk(page.parent), os.fsync

    def kept(fd: int) -> None:
        sync(fd)
        disk.keep(fd)

    monkeypatch.setattr(os, "fsync", kept)
    write_report("x", str(page), tmp_path / "store")
    written = page.read_bytes()
    disk.lose_power()
    assert page.read_bytes() == written != b"the page before"
