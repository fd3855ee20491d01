"""What a workdir says of its layers is read back as it was written."""

import json
import os
from pathlib import Path

import pytest

from overlayfs.overlay import history
from overlayfs.overlay.stack import Entry

PATHS = ('/quote"and\\backslash', "/new\nline\x7f", "/é\U0001f600", os.fsdecode(b"/\xff\xc3"))


@pytest.mark.parametrize("path", PATHS)
def test_layers_of_another_mount_are_read_back_whatever_their_path_is(tmp_path: Path, path: str) -> None:
    entries = [Entry(path, "a.b-c_1", 1700000000.25, path), Entry("", "2", 1e9), Entry("1")]
    present = history.new(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    try:
        present.open()
        present.publish(entries, durable=False)
    finally:
        for fd in present.descriptors():
            os.close(fd)
    assert history.entries_of(bytes(tmp_path)) == entries
    told = json.loads((tmp_path / "overlayfs-snapshots/stack").read_text())
    assert told["layers"][1:] == [
        {"directory": "", "snapshot": "2", "taken_at": 1e9},
        {"directory": "1", "snapshot": None, "taken_at": 0.0},
    ]
