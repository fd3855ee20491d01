"""Who may use the same upper at the same time, and who takes it over from whom?"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.program import SILENT_SUCCESS, Place, make_place


@pytest.fixture
def place() -> Iterator[Place]:
    base = Path(tempfile.mkdtemp(prefix="overlayfs-in-use-"))
    made = make_place(base)
    (base / "beside").mkdir()
    for directory in ("d", "other"):
        (base / "bottom" / directory).mkdir()
        (base / "bottom" / directory / "below").write_text("in a directory\n")
    (base / "bottom/d/too").write_text("in it too\n")
    yield made
    made.clear()


# -- a read-only mount beside, as containerd makes one to take the changes of a running container


def look(place: Place, *more: str) -> Path:
    """Mount the same upper read-only beside `target`, as containerd's mount.fuse3 does; where it is."""
    beside = place.base / "beside"
    options = ",".join([place.options, *more, "ro", "dev", "suid"])
    assert place.call("overlay", beside, "-o", options) == SILENT_SUCCESS
    return beside


def append(tree: Path) -> None:
    with (tree / "shared").open("a") as opened:
        opened.write("more\n")


def replace_file(tree: Path) -> None:
    (tree / "shared").unlink()
    (tree / "shared").write_text("another file\n")


def replace_directory(tree: Path) -> None:
    shutil.rmtree(tree / "d")
    (tree / "d").mkdir()
    (tree / "d/new").write_text("of the new directory\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "append to a lower file": append,
    "make a file": lambda tree: (tree / "d/made").write_text("made\n"),
    "delete a lower file": lambda tree: (tree / "d/below").unlink(),
    "replace a file": replace_file,
    "replace a directory": replace_directory,
    "rename a lower directory": lambda tree: (tree / "other").rename(tree / "moved"),
    "change a mode": lambda tree: (tree / "below").chmod(0o600),
    "set an xattr": lambda tree: os.setxattr(tree / "below", "user.a", b"b"),
    "make a symlink": lambda tree: (tree / "link").symlink_to("below"),
}


def shown(tree: Path) -> dict[str, object]:
    """All that a program which takes the changes of a tree looks at."""
    found: dict[str, object] = {}
    for path in sorted(tree.rglob("*")):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        found[str(path.relative_to(tree))] = (
            info.st_mode,
            info.st_uid,
            info.st_size,
            info.st_mtime_ns,
            xattrs,
            content,
        )
    return found


@pytest.mark.parametrize("lane", ["lane=on", "lane=off"])
def test_read_only_mount_shows_what_another_mount_writes(place: Place, lane: str) -> None:
    place.mount()
    beside = look(place, lane)
    for change in CHANGES.values():
        assert shown(beside) == shown(place.target)
        change(place.target)
    for _ in range(3):  # a filesystem may give numbers of deleted files to new ones
        replace_directory(place.target)
        replace_file(place.target)
        assert shown(beside) == shown(place.target)


def test_open_file_of_a_read_only_mount_lives_through_changes(place: Place) -> None:
    place.mount()
    beside = look(place)
    with (beside / "below").open() as opened:
        (place.target / "below").unlink()
        assert opened.read() == "only below\n"
        assert not (beside / "below").exists()


def test_upper_may_have_several_read_only_mounts_and_then_a_writer(place: Place) -> None:
    beside = look(place)
    second = place.base / "second"
    second.mkdir()
    assert place.call("-o", f"{place.options},ro", second) == SILENT_SUCCESS
    place.mount()
    (place.target / "new").write_text("new\n")
    assert (beside / "new").read_text() == (second / "new").read_text() == "new\n"


def test_read_only_mount_writes_nothing_even_where_the_kernel_lets_changes_through(place: Place) -> None:
    place.mount()
    beside = look(place)
    before = shown(place.target)
    subprocess.run(["mount", "-i", "-o", "remount,rw", beside], check=True)
    for change in CHANGES.values():
        with pytest.raises(OSError, match="Read-only file system"):
            change(beside)
    assert shown(beside) == shown(place.target) == before
    assert os.listdir(place.base / "upper") == os.listdir(place.base / "work/work") == []
