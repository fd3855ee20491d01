"""Reading: which access times move on the disk, and which does the mount show?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import OverlayOptions
from tests.mounted.stack import REPOSITORY, Stack, make_tree
from tests.prepared import call

OLD_NS = 1_000_000_000_000_000_000
Times = dict[str, int]


def _fill(root: Path) -> None:
    """A file, a symlink and a directory of each sort, all with access times that any policy but noatime would move."""
    make_tree(root, ["file", "d/inside", "d/deeper/still"], b"content")
    (root / "link").symlink_to("file")
    (root / "d/link").symlink_to("inside")
    for path in (root, *root.rglob("*")):
        os.utime(path, ns=(OLD_NS, OLD_NS + 1), follow_symlinks=False)


def _access_times(root: Path) -> Times:
    """Without moving any: the names are known, only stat is asked."""
    names = ("", "file", "link", "d", "d/inside", "d/link", "d/deeper", "d/deeper/still")
    return {name: os.lstat(root / name).st_atime_ns for name in names}


def _read_everything(place: Path) -> None:
    """As `ls -lR`, readlink and cat; then through the symlinks."""
    for directory, names, files in os.walk(place):
        for name in (*names, *files):
            path = Path(directory, name)
            os.lstat(path)
            if path.is_symlink():
                os.readlink(path)
            if path.is_file():
                path.read_bytes()


STILL = dict.fromkeys(("", "file", "link", "d", "d/inside", "d/link", "d/deeper", "d/deeper/still"), OLD_NS)
every_way = pytest.mark.parametrize("options", [(), ("lane=off",), ("timeout=0",), ("passthrough=on",)], ids=",".join)


@every_way
def test_reading_moves_no_access_time_in_a_lower_layer(options: tuple[str, ...], stack: Stack) -> None:
    _fill(stack.lowers[0])
    stack.mount(*options)
    _read_everything(stack.place)
    assert _access_times(stack.lowers[0]) == STILL
    root = stack.upper.stat().st_atime_ns  # the mount's root is a merged directory
    assert _access_times(stack.place) == STILL | {"": root}


@pytest.mark.parametrize(
    "options", [("ro",), ("noatime",), ("noatime", "lane=off"), ("noatime", "passthrough=on")], ids=",".join
)
def test_reading_a_mount_that_keeps_access_times_moves_none_in_the_upper(
    options: tuple[str, ...], stack: Stack
) -> None:
    _fill(stack.upper)
    _fill(stack.lowers[0])
    stack.mount(*options)
    _read_everything(stack.place)
    assert _access_times(stack.upper) == STILL
    assert _access_times(stack.lowers[0]) == STILL
    assert _access_times(stack.place) == STILL


@every_way
def test_reading_moves_access_times_in_the_upper_as_on_its_disk(options: tuple[str, ...], stack: Stack) -> None:
    """relatime, as the disk has it; what moved there is what the mount shows."""
    _fill(stack.upper)
    stack.mount(*options)
    before = _access_times(stack.place)
    assert before.pop("") >= OLD_NS  # mounting looks into the root
    assert set(before.values()) == {OLD_NS}
    _read_everything(stack.place)
    on_disk = _access_times(stack.upper)
    assert {name for name, when in on_disk.items() if when == OLD_NS} == set()
    assert _access_times(stack.place) == on_disk


@pytest.mark.parametrize("noatime", [False, True])
def test_attributes_are_asked_for_again_only_where_a_read_may_have_moved_one(noatime: bool, stack: Stack) -> None:
    _fill(stack.upper)
    lower, upper, work = (bytes(path) for path in (stack.lowers[0], stack.upper, stack.work))
    overlay = Overlay.open(OverlayOptions(lowers=(lower,), upper=upper, work=work, noatime=noatime))
    try:
        file = overlay.lookup(1, b"file").ino
        for is_known in (noatime, True):  # relatime moves it once
            assert overlay.getattr(file).size == len(b"content")
            overlay.read(file, 0, 10)
            assert (overlay.state.inodes[file].attributes is not None) == is_known
    finally:
        overlay.close()


def test_copy_up_moves_no_access_time_below(stack: Stack) -> None:
    _fill(stack.lowers[0])
    stack.mount()
    for name in ("file", "link", "d/inside", "d/link"):
        os.chown(stack.place / name, 1, 1, follow_symlinks=False)
    (stack.place / "d").rename(stack.place / "moved")
    assert _access_times(stack.lowers[0]) == STILL


def test_lower_layer_is_held_in_a_read_only_mount(stack: Stack) -> None:
    """Whatever the daemon did wrong, the kernel would refuse to change a lower layer."""
    _fill(stack.lowers[0])
    stack.mount()
    (stack.place / "file").read_bytes()
    root = _descriptor_of(stack.pid, stack.lowers[0])
    with pytest.raises(OSError, match="Read-only"):
        os.utime(f"{root}/file")
    os.utime(f"{_descriptor_of(stack.pid, stack.upper)}/.")


def _descriptor_of(pid: int, directory: Path) -> str:
    wanted = directory.stat()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        found = os.stat(link)
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return str(link)
    raise AssertionError(f"{directory} is not held")


def test_in_a_user_namespace_reading_moves_no_access_time_below(stack: Stack) -> None:
    """The access time policy of a mount may not be changed there, but it may be made read-only."""
    _fill(stack.lowers[0])
    script = f"""
set -e
{sys.executable} -m overlayfs.cli.mount_program -o {stack.options} {stack.place}
ls -lR {stack.place} >/dev/null
cat {stack.place}/file {stack.place}/link {stack.place}/d/link >/dev/null
umount {stack.place}
"""
    subprocess.run(["unshare", "-Urm", "sh", "-c", script], check=True, cwd=REPOSITORY)
    assert _access_times(stack.lowers[0]) == STILL


def test_looking_at_layers_without_a_mount_moves_no_access_time(stack: Stack) -> None:
    _fill(stack.upper)
    _fill(stack.lowers[0])
    (stack.upper / "d/inside").write_bytes(b"CONTENT")  # only data tells these two apart
    os.utime(stack.upper / "d/inside", ns=(OLD_NS, OLD_NS + 1))
    done = call("diff", "--patch", str(stack.upper), "--lower", str(stack.lowers[0]))
    assert (done.status, done.err) == (0, "")
    assert "CONTENT" in done.out
    assert _access_times(stack.upper) == STILL
    assert _access_times(stack.lowers[0]) == STILL
