"""What a directory hands on to what is made in it: the same in the mount as in a plain directory of its filesystem."""

from __future__ import annotations

import os
import stat
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.calls import name_descriptor
from tests.mounted.stack import Stack, run

PROJECT = "4711"
MAKE = {"ext4": ("mkfs.ext4", "-q"), "xfs": ("mkfs.xfs", "-q")}
SIZE = {"ext4": 64 << 20, "xfs": 320 << 20}
OWNERS = [0, 1000]


@pytest.fixture(params=MAKE)
def disk(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Path]:
    """A filesystem: ext4 has more flags, and projects only in a kernel that was built for them."""
    image, place = scratch / "image", scratch / "disk"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(SIZE[request.param])
    run(*MAKE[request.param], image)
    run("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        run("umount", place)


@pytest.fixture
def stack(disk: Path) -> Iterator[Stack]:
    """A stack on it, and beside it the directory `plain`."""
    made = Stack.make(disk)
    (disk / "plain").mkdir()
    yield made
    made.unmount()


def make_one_of_each(directory: Path) -> None:
    """A file of each kind, and what follows from a directory; twice, as one directory is known by then."""
    for number in "12":
        (directory / f"file{number}").write_bytes(b"content")
        (directory / f"directory{number}").mkdir()
        (directory / f"directory{number}" / "inner").mkdir()
        (directory / f"directory{number}" / "inner" / "file").write_bytes(b"")
        (directory / f"symlink{number}").symlink_to("file1")
        os.mkfifo(directory / f"fifo{number}")
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY)
        name_descriptor(fd, directory / f"tmpfile{number}")
        os.close(fd)


def acting_as(uid: int, call: Callable[[Path], None], place: Path) -> None:
    child = os.fork()
    if not child:
        try:
            os.setgid(uid)
            os.setuid(uid)
            call(place)
            os._exit(0)
        except Exception:  # noqa: BLE001 - the parent sees the status
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def inherited(root: Path) -> dict[str, object]:
    """Flags and project of all below `root`, and of what flags cannot be read the kind."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            mode = path.lstat().st_mode
            known = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
            said = run("lsattr", "-pd", path).split()[:2] if known else [stat.S_IFMT(mode)]
            found[str(path.relative_to(root))] = said
    return found


def knows(base: Path, how: tuple[str, ...]) -> bool:
    """Whether a filesystem takes these flags."""
    (base / "probe").mkdir(exist_ok=True)
    return subprocess.run(["chattr", *how, base / "probe"], capture_output=True, check=False).returncode == 0


def prepare(stack: Stack, how: tuple[str, ...]) -> tuple[Path, Path]:
    """The same directory with flags in the upper and in `plain`; its places in the mount and there."""
    for root in (stack.upper, stack.base / "plain"):
        (root / "parent").mkdir()
        (root / "parent").chmod(0o777)
        run("chattr", *how, root / "parent")
    return stack.place / "parent", stack.base / "plain" / "parent"


@pytest.mark.parametrize("uid", OWNERS)
@pytest.mark.parametrize("how", [("+dA",), ("+S",)], ids="".join)
def test_all_that_is_made_gets_what_the_directory_hands_on(stack: Stack, how: tuple[str, ...], uid: int) -> None:
    in_mount, in_plain = prepare(stack, how)
    stack.mount()
    for place in (in_mount, in_plain):
        acting_as(uid, make_one_of_each, place)
    expected = inherited(in_plain)
    assert inherited(stack.upper / "parent") == expected
    assert len({tuple(said) for said in expected.values() if isinstance(said, list)}) > 1
    stack.unmount()
    assert os.listdir(stack.work / "work") == []


@pytest.mark.parametrize("disk", ["xfs"], indirect=True)
@pytest.mark.parametrize("uid", OWNERS)
@pytest.mark.parametrize("how", [("+P", "-p", PROJECT), ("+dAP", "-p", PROJECT)], ids="".join)
def test_all_that_is_made_counts_for_the_project(stack: Stack, how: tuple[str, ...], uid: int) -> None:
    test_all_that_is_made_gets_what_the_directory_hands_on(stack, how, uid)


@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
@pytest.mark.parametrize("flag", ["+D", "+t"])
def test_flags_of_one_filesystem_are_handed_on(stack: Stack, flag: str) -> None:
    in_mount, in_plain = prepare(stack, (flag,))
    stack.mount()
    for place in (in_mount, in_plain):
        acting_as(1000, make_one_of_each, place)
    assert inherited(stack.upper / "parent") == inherited(in_plain)


@pytest.mark.parametrize("uid", OWNERS)
def test_flag_set_in_the_mount_counts_from_then_on(stack: Stack, uid: int) -> None:
    in_mount, in_plain = prepare(stack, ("+A",))
    has_projects = knows(stack.base, ("-p", PROJECT))
    stack.mount()
    for place in (in_mount, in_plain):
        acting_as(uid, lambda place: (place / "before").mkdir(), place)
        run("chattr", "-A", "+d", place)
        if has_projects:
            run("chattr", "-p", PROJECT, "+P", place)
        acting_as(uid, make_one_of_each, place)
    assert inherited(stack.upper / "parent") == inherited(in_plain)


@pytest.mark.parametrize("disk", ["xfs"], indirect=True)
def test_copies_count_for_the_project_and_keep_their_own_flags(stack: Stack) -> None:
    below = stack.lowers[0] / "parent"
    below.mkdir()
    (below / "directory").mkdir()
    for name in ("file", "directory/file", "moved", "gone"):
        (below / name).write_bytes(b"content")
    (below / "link").symlink_to("file")
    (below / "one").write_bytes(b"content")
    os.link(below / "one", below / "two")
    run("chattr", "+S", below / "file")
    in_mount, _ = prepare(stack, ("+dP", "-p", PROJECT))
    stack.mount()
    (in_mount / "file").chmod(0o600)
    (in_mount / "directory" / "file").write_bytes(b"changed")
    (in_mount / "moved").rename(in_mount / "directory" / "moved")
    assert (in_mount / "one").stat().st_nlink == 2
    (in_mount / "two").write_bytes(b"changed")
    (in_mount / "gone").unlink()
    os.chown(in_mount / "link", 7, 7, follow_symlinks=False)
    (in_mount / "gone").mkdir()
    found = inherited(stack.upper / "parent")
    flags = {name: set(said[1]) - set("-e") for name, said in found.items() if isinstance(said, list) and len(said) > 1}
    assert flags == {
        "file": {"S"},
        "directory": {"P"},
        "directory/file": set(),
        "directory/moved": set(),
        "gone": set("dP"),
        "one": set(),
        "two": set(),
    }
    assert {said[0] for said in found.values() if isinstance(said, list) and len(said) > 1} == {PROJECT}


def test_nothing_is_handed_on_by_the_workdir_alone(stack: Stack) -> None:
    in_mount, in_plain = prepare(stack, ("-d",))
    run("chattr", "+dA", stack.work)
    stack.mount()
    for place in (in_mount, in_plain):
        acting_as(1000, make_one_of_each, place)
    assert inherited(stack.upper / "parent") == inherited(in_plain)
