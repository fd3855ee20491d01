"""The files that a volume gets from the image at its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlayfs.container import volumes
from overlayfs.container.root_paths import Inside
from overlayfs.container.volumes import fill
from tests.crash.forgetful import ForgetfulDisk


def test_filled_volume_outlives_a_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, data = tmp_path / "root", tmp_path / "volume/data"
    (root / "db/deep").mkdir(parents=True)
    (root / "db/deep/file").write_text("of the image")
    data.mkdir(parents=True)
    disk = ForgetfulDisk(tmp_path)
    monkeypatch.setattr(volumes, "sync_all", lambda _directory: disk.keep_all())
    with Inside(os.fsencode(root)) as inside:
        fill(data, inside, "/db")
        disk.lose_power()
        fill(data, inside, "/db")
    assert (data / "deep/file").read_text() == "of the image"
