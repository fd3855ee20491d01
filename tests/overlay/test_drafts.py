"""What is removed from a workdir goes, whatever it holds."""

import os
from pathlib import Path

from overlayfs.overlay import drafts


def _make(root: Path) -> None:
    for name in ("a/b/c", "a/d/e", "f/g"):
        (root / name).mkdir(parents=True)
        (root / name / "file").touch()


def test_tree_goes_although_its_removal_was_cut_off_before(tmp_path: Path) -> None:
    """What was moved up then has the names that are given now."""
    work_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for name in ("", "#moved-1", "#moved-2", "#moved-4"):
            _make(tmp_path / "leftover" / name)
        drafts.remove(work_fd, b"leftover")
    finally:
        os.close(work_fd)
    assert os.listdir(tmp_path) == []
