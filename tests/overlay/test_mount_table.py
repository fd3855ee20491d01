"""The mount table is read as the kernel writes it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from overlayfs.tree.mount_table import mount_entries, unescape


def test_mountpoint_with_white_space_that_is_not_escaped(tmp_path: Path) -> None:
    place = tmp_path / "a\x0cb\rc d"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        assert bytes(place) in [entry.mountpoint for entry in mount_entries()]
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (rb"a\040b\134\011", b"a b\\\t"),
        (rb"\134040", rb"\040"),
        (b"a\\9zz\\", b"a\\9zz\\"),  # no escapes: some filesystems write their source as it is
        (rb"\400\04", rb"\400\04"),
    ],
)
def test_escape_is_three_octal_digits(text: bytes, meaning: bytes) -> None:
    assert unescape(text) == meaning
