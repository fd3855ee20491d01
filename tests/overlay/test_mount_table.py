"""The mount table is read as the kernel writes it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from overlayfs.tree.mount_table import mount_entries


def test_mountpoint_with_white_space_that_is_not_escaped(tmp_path: Path) -> None:
    place = tmp_path / "a\x0cb\rc d"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        assert bytes(place) in [entry.mountpoint for entry in mount_entries()]
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
