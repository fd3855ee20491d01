"""What an overlay does for a user who may not read every file of its layers."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.overlay.engine import AttributeChanges, Caller, Overlay
from overlayfs.overlay.options import OverlayOptions

NOBODY = 65534


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory of nobody's that nobody can reach."""
    path = Path(tempfile.mkdtemp(prefix="overlayfs-nobody-"))
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def nobody(base: Path) -> Iterator[Overlay]:
    """An overlay over two files without any permission, opened and used as the user nobody."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        for name in ("lower", "upper", "work"):
            (base / name).mkdir()
        for name, content in (("empty", b""), ("full", b"content")):
            (base / "lower" / name).write_bytes(content)
            (base / "lower" / name).chmod(0)
        lower, upper, work = (bytes(base / name) for name in ("lower", "upper", "work"))
        overlay = Overlay.open(OverlayOptions(lowers=(lower,), upper=upper, work=work))
        yield overlay
        overlay.close()
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_empty_file_that_may_not_be_read_is_copied_up(nobody: Overlay, base: Path) -> None:
    number = nobody.lookup(1, b"empty").ino
    assert nobody.setattr(number, AttributeChanges(mode=0o600), Caller(NOBODY, NOBODY)).mode == 0o100600
    assert (base / "upper" / "empty").stat().st_size == 0


def test_content_that_may_not_be_read_is_never_left_out_of_a_copy(nobody: Overlay, base: Path) -> None:
    number = nobody.lookup(1, b"full").ino
    with pytest.raises(PermissionError):
        nobody.setattr(number, AttributeChanges(mode=0o600), Caller(NOBODY, NOBODY))
    assert not (base / "upper" / "full").exists()


def test_reading_moves_no_access_time_of_own_files_and_directories_below(nobody: Overlay, base: Path) -> None:
    """There is no copy of the mount to see to it; the kernel lets owners ask for it at each open."""
    lower = base / "lower"
    (lower / "d").mkdir()
    (lower / "d" / "file").write_bytes(b"content")
    paths = (lower, lower / "d", lower / "d" / "file")
    for path in paths:
        os.utime(path, ns=(10**18, 10**18 + 1))
    directory = nobody.lookup(1, b"d").ino
    assert [entry.name for entry in nobody.readdir(directory, 0)] == [b".", b"..", b"file"]
    file = nobody.lookup(directory, b"file").ino
    assert nobody.read(file, 0, 100) == b"content"
    assert {path.stat().st_atime_ns for path in paths} == {10**18}
