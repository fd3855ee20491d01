"""Who may use the same upper at the same time, and who takes it over from whom?"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs.overlay.check import check
from overlayfs.overlay.claim import SOCKET
from overlayfs.overlay.options import MountError
from tests.mounted.program import COMMAND, ENVIRONMENT, SILENT_SUCCESS, Place, has_ended, make_place
from tests.prepared import Done


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
    "link a file": lambda tree: (tree / "linked").hardlink_to(tree / "shared"),
    "change a linked file": lambda tree: (tree / "linked").write_text("changed\n"),
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
            info.st_nlink,
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


# -- a mount that still stands


def test_upper_of_a_standing_mount_is_refused_and_the_mount_named(place: Place) -> None:
    place.mount()
    done = place.call("-o", place.options, place.base / "beside")
    reason = f"upperdir: {place.base}/upper is in use by the mount at {place.target}"
    assert done == Done(1, "", f"overlayfs-mount: {reason}\n")
    assert (place.target / "shared").read_text() == "of the top\n"


def test_bind_mount_of_a_part_is_a_standing_mount(place: Place) -> None:
    place.mount()
    beside = place.base / "beside"
    subprocess.run(["mount", "--bind", place.target / "d", beside], check=True)
    subprocess.run(["umount", place.target], check=True)
    done = place.call("-o", place.options, place.target)
    assert (done.status, done.err.count(f"in use by the mount at {beside}\n")) == (1, 1)
    assert sorted(os.listdir(beside)) == ["below", "too"]


def test_mount_that_stands_in_the_namespace_it_was_made_in_is_refused(place: Place) -> None:
    """As that of a running container."""
    command = [*COMMAND, "-o", place.options, str(place.target)]
    with namespace_of_its_own(*command, then="cat shared") as other:
        done = place.call("-o", place.options, place.target)
        pattern = rf"in use by the mount at {place.target} in the mount namespace of process \d+\n"
        assert done.status == 1
        assert re.search(pattern, done.err)
        assert other.ask() == "of the top"


# -- a mount that stands nowhere any more


def hold_and_unmount(place: Place, *more: str) -> int:
    """Mount, open a file to append to, and unmount lazily: its descriptor."""
    place.mount(*more)
    opened = os.open(place.target / "made", os.O_RDWR | os.O_CREAT)
    os.write(opened, b"before\n")
    subprocess.run(["umount", "-l", place.target], check=True)
    return opened


@pytest.mark.parametrize("options", ["lane=on", "lane=off", "lane=on,writeback=1", "lane=off,writeback=1"])
def test_upper_of_a_lazily_unmounted_tree_is_taken_over(place: Place, options: str) -> None:
    opened = hold_and_unmount(place, options)
    try:
        os.write(opened, b"after\n")
        (former,) = place.pidfds
        place.mount()
        assert has_ended(former)
        with pytest.raises(OSError, match="endpoint is not connected"):
            os.fsync(opened)
    finally:
        with contextlib.suppress(OSError):  # a failed flush
            os.close(opened)
    assert (place.target / "made").read_text() == "before\nafter\n"
    (place.target / "made").write_text("of the new mount\n")


@pytest.mark.parametrize("name", ["made", "below"])
def test_what_was_written_through_a_mapping_is_there_after_a_takeover(place: Place, name: str) -> None:
    (place.base / "bottom/below").write_bytes(bytes(3 * mmap.PAGESIZE))
    place.mount()
    (place.target / "made").write_bytes(bytes(3 * mmap.PAGESIZE))
    with (place.target / name).open("rb+") as opened:
        mapping = mmap.mmap(opened.fileno(), 0)
    subprocess.run(["umount", "-l", place.target], check=True)
    for page in range(3):
        mapping[page * mmap.PAGESIZE] = ord("x")
    place.mount()
    content = (place.target / name).read_bytes()
    assert [content[page * mmap.PAGESIZE] for page in range(3)] == [ord("x")] * 3


def test_upper_of_a_mount_in_a_copied_namespace_is_taken_over(place: Place) -> None:
    former = place.mount()
    (place.target / "made").write_text("made\n")
    with namespace_of_its_own("true", then=f"cat {place.target}/made 2>&1") as copy:
        assert copy.ask() == "made"
        subprocess.run(["umount", place.target], check=True)
        place.mount()
        assert has_ended(former)
        assert "not connected" in copy.ask()
    assert (place.target / "made").read_text() == "made\n"


def test_file_that_the_kernel_writes_to_by_itself_keeps_the_upper(place: Place) -> None:
    opened = hold_and_unmount(place, "passthrough=on")
    try:
        done = place.call("-o", place.options, place.target)
        assert (done.status, done.err.count("passthrough=on")) == (1, 1)
        os.write(opened, b"after\n")
    finally:
        os.close(opened)
    assert has_ended(place.pidfds[0])
    place.mount()
    assert (place.target / "made").read_text() == "before\nafter\n"


def test_check_leaves_a_lazily_unmounted_tree_alone(place: Place) -> None:
    opened = hold_and_unmount(place)
    try:
        with pytest.raises(MountError, match="a former mount"):
            check(os.fsencode(place.base / "upper"), os.fsencode(place.base / "work"), repair=True)
        os.write(opened, b"after\n")
    finally:
        os.close(opened)


def test_takeover_is_said_in_the_log_of_the_one_that_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    log = place.base / "log"
    monkeypatch.setenv("OVERLAYFS_LOG", str(log))
    opened = hold_and_unmount(place)
    place.mount()
    os.close(opened)
    assert "WARNING overlayfs.fuse.handover: another mount takes the upper over" in log.read_text()


def test_socket_is_for_the_owner_alone_and_goes_with_the_mount(place: Place) -> None:
    daemon = place.mount()
    found = (place.base / "work" / os.fsdecode(SOCKET)).lstat()
    assert stat.filemode(found.st_mode) == "srw-------"
    subprocess.run(["umount", place.target], check=True)
    assert has_ended(daemon)
    assert os.listdir(place.base / "work") == ["work"]


def test_socket_of_a_killed_daemon_is_in_nobody_s_way(place: Place) -> None:
    daemon = place.mount()
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    assert has_ended(daemon)
    subprocess.run(["umount", place.target], check=True)
    assert (place.base / "work" / os.fsdecode(SOCKET)).is_socket()
    assert check(os.fsencode(place.base / "upper"), os.fsencode(place.base / "work"), repair=False) == []
    place.mount()
    assert (place.target / "shared").read_text() == "of the top\n"


class Elsewhere:
    """A shell in a mount namespace of its own, which does one thing whenever it is asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self) -> str:
        """What it printed: one line."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def namespace_of_its_own(*command: str, then: str) -> Iterator[Elsewhere]:
    """A copy of this mount namespace in which `command` is run, and `then` whenever somebody asks."""
    # the shell stands outside of the mount, so that it does not keep it busy
    script = f'"$@" || exit; cd /; echo ready; while read -r _; do (cd {{place}} && {then}); done'
    script = script.replace("{place}", shlex.quote(command[-1]) if len(command) > 1 else "/")
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Elsewhere(process)
        assert process.stdin is not None
        process.stdin.close()
