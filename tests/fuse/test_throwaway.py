"""What was written to an ephemeral mount is thrown away, whatever modes its user gave it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.fuse import throwaway

NOBODY = 65534


@pytest.fixture
def as_nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="overlayfs-nobody-") as name:
        os.chown(name, NOBODY, NOBODY)
        monkeypatch.setattr(tempfile, "tempdir", name)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("mode", [0o555, 0o111, 0o333, 0o000])
def test_directories_that_refuse_their_user_are_removed(mode: int, as_nobody: None) -> None:
    root = throwaway.make(throwaway.UPPER, throwaway.WORK)
    inner: Path = root / throwaway.UPPER / "directory" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    for directory in (inner, inner.parent, root / throwaway.UPPER):
        directory.chmod(mode)
    throwaway.remove(root)
    assert not root.exists()
