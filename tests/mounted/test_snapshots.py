"""Snapshots and rollbacks of live mounts: what programs see that use the tree all the while."""

from __future__ import annotations

import mmap
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import overlayfs
from overlayfs.cli.mounts.umount import take_down
from overlayfs.fuse.status import read_facts
from overlayfs.overlay.changes import ChangeKind
from overlayfs.overlay.check import check
from tests.mounted.program import mounts_beneath
from tests.mounted.stack import mount_program
from tests.property.paths import unmount

WAYS = ("bare", "in the loop, on an older kernel", "without the lane")

OLDER_KERNEL = """
from overlayfs.fuse import control
control._begin_epoch = lambda _fd: False  # the kernel is told of each name, as before Linux 6.16
open({mark!r}, "w").close()
"""


@pytest.fixture
def lower(scratch: Path) -> Path:
    lower = scratch / "lower"
    (lower / "directory").mkdir(parents=True)
    (lower / "file").write_text("of the lower")
    (lower / "directory/inner").write_text("inner")
    (lower / "one").write_text("linked")
    os.link(lower / "one", lower / "two")
    return lower


class _ByProgram:
    """Stands in for the process of the API's mounts, for one that the mount program made."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def end(self) -> None:
        if os.path.ismount(self._path):
            take_down(str(self._path), lazy=False)


@pytest.fixture(params=WAYS)
def mounted(
    scratch: Path, lower: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[overlayfs.Mount]:
    """The tree, served in each of the ways."""
    is_older = request.param == "in the loop, on an older kernel"
    mark = scratch / "older"
    if is_older:
        (scratch / "python").mkdir()
        (scratch / "python/sitecustomize.py").write_text(OLDER_KERNEL.format(mark=str(mark)))
        monkeypatch.syspath_prepend(scratch / "python")
    upper, work, mount = (scratch / name for name in ("upper", "work", "mount"))
    for path in (upper, work, mount):
        path.mkdir()
    if request.param == "without the lane":
        mount_program("-o", f"lowerdir={lower},upperdir={upper},workdir={work},lane=off", str(mount))
        made = overlayfs.Mount(mount, upper, cast(Any, _ByProgram(mount)))
    else:
        made = overlayfs.mount([lower], mount, upper=upper, work=work)
    with made:
        assert mark.exists() == is_older
        if is_older:  # the rename of a directory needs the loop
            (mount / "directory").rename(mount / "other")
            (mount / "other").rename(mount / "directory")
        yield made
    for left in mounts_beneath(scratch):
        unmount(Path(left.place))


def test_rollback_brings_back_what_was_changed_deleted_and_renamed(mounted: overlayfs.Mount) -> None:
    root = mounted.path
    (root / "file").write_text("first")
    mounted.snapshot("a")
    (root / "file").write_text("second")
    (root / "new").write_text("new")
    (root / "one").unlink()
    (root / "directory").rename(root / "elsewhere")
    mounted.rollback("a")
    assert sorted(os.listdir(root)) == ["directory", "file", "one", "two"]
    assert (root / "file").read_text() == "first"
    assert (root / "directory/inner").read_text() == "inner"
    assert (root / "one").stat().st_nlink == 2


def test_names_that_the_kernel_knew_to_be_absent_are_there_again(mounted: overlayfs.Mount) -> None:
    inner = mounted.path / "directory/inner"
    mounted.snapshot()
    inner.unlink()
    assert not inner.exists()
    mounted.rollback()
    assert inner.read_text() == "inner"


def test_hard_links_go_back_together(mounted: overlayfs.Mount) -> None:
    root = mounted.path
    mounted.snapshot()
    (root / "one").write_text("changed")
    os.link(root / "one", root / "three")
    (root / "two").unlink()
    assert not (root / "two").exists()
    assert (root / "three").stat().st_nlink == 2
    mounted.rollback()
    assert not (root / "three").exists()
    assert [(root / name).read_text() for name in ("two", "one")] == ["linked", "linked"]
    assert (root / "two").stat().st_ino == (root / "one").stat().st_ino
    assert (root / "two").stat().st_nlink == 2


def test_inode_numbers_outlast_snapshot_copy_up_and_rollback(mounted: overlayfs.Mount) -> None:
    file = mounted.path / "file"
    number = file.stat().st_ino
    file.write_text("a")
    mounted.snapshot("a")
    assert file.stat().st_ino == number
    file.write_text("b")
    assert file.stat().st_ino == number
    mounted.rollback("a")
    assert file.stat().st_ino == number


def test_descriptor_belongs_to_the_file_and_not_to_a_version(mounted: overlayfs.Mount) -> None:
    file = mounted.path / "file"
    file.write_text("before")
    with file.open("r+b", buffering=0) as opened:
        mounted.snapshot()
        os.pwrite(opened.fileno(), b"BEHIND", 0)
        assert file.read_text() == "BEHIND"
        mounted.rollback()
        assert os.pread(opened.fileno(), 20, 0) == b"before"
        os.pwrite(opened.fileno(), b"again!", 0)
        assert file.read_text() == "again!"
        mounted.rollback()
    assert file.read_text() == "before"


def test_file_made_since_goes_on_as_an_unlinked_one(mounted: overlayfs.Mount) -> None:
    mounted.snapshot()
    with (mounted.path / "made").open("w+b", buffering=0) as made:
        made.write(b"content")
        mounted.rollback()
        assert not (mounted.path / "made").exists()
        assert os.pread(made.fileno(), 20, 0) == b"content"
        assert os.fstat(made.fileno()).st_nlink == 0
        os.pwrite(made.fileno(), b"CHANGED", 0)
        assert os.pread(made.fileno(), 20, 0) == b"CHANGED"
        (mounted.path / "made").write_text("another")
        assert os.pread(made.fileno(), 20, 0) == b"CHANGED"
    assert (mounted.path / "made").read_text() == "another"


def test_mapping_shows_the_content_of_the_snapshot(mounted: overlayfs.Mount) -> None:
    file = mounted.path / "file"
    file.write_bytes(b"x" * 8192)
    mounted.snapshot()
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 8192) as mapped:
        mapped[:4] = b"1234"
        mapped[5000:5004] = b"5678"
        assert file.read_bytes()[5000:5004] == b"5678"
        mounted.rollback()
        assert mapped[:] == b"x" * 8192
        assert file.read_bytes() == b"x" * 8192


def test_what_a_mapping_has_written_is_in_the_snapshot(mounted: overlayfs.Mount) -> None:
    file = mounted.path / "file"
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 12) as mapped:
        mapped[:2] = b"OF"
        mounted.snapshot()
        mapped[:2] = b"--"
        mounted.rollback()
    assert file.read_text() == "OF the lower"


def test_unlinked_open_file_is_in_no_snapshot_and_stays(mounted: overlayfs.Mount) -> None:
    with (mounted.path / "gone").open("w+b", buffering=0) as gone:
        gone.write(b"kept")
        (mounted.path / "gone").unlink()
        mounted.snapshot()
        os.pwrite(gone.fileno(), b"more", 4)
        mounted.rollback()
        assert os.pread(gone.fileno(), 20, 0) == b"keptmore"


def test_working_directory_in_a_directory_made_since_is_a_removed_one(mounted: overlayfs.Mount) -> None:
    mounted.snapshot()
    (mounted.path / "place").mkdir()
    fd = os.open(mounted.path / "place", os.O_RDONLY)
    try:
        mounted.rollback()
        assert os.listdir(fd) == []
        with pytest.raises(OSError, match=r"No such file|Stale"):
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    finally:
        os.close(fd)


def test_listing_that_is_being_read_goes_on_over_a_snapshot(mounted: overlayfs.Mount) -> None:
    names = {f"n{number}" for number in range(3000)}
    big = mounted.path / "big"
    big.mkdir()
    for name in names:
        (big / name).touch()
    with os.scandir(big) as entries:
        seen = [next(entries).name]
        mounted.snapshot()
        seen += [entry.name for entry in entries]
    assert len(seen) == len(names)
    assert set(seen) == names


def test_snapshots_nest_and_outlive_the_mount(mounted: overlayfs.Mount, scratch: Path, lower: Path) -> None:
    root = mounted.path
    for name in ("a", "b", "c"):
        (root / "file").write_text(name)
        (root / name).mkdir()
        mounted.snapshot(name)
    (root / "file").write_text("d")
    mounted.unmount()
    with overlayfs.mount([lower], scratch / "mount", upper=scratch / "upper", work=scratch / "work") as again:
        assert (root / "file").read_text() == "d"
        again.rollback("b")
        assert (root / "file").read_text() == "b"
        assert sorted(set(os.listdir(root)) & {"a", "b", "c"}) == ["a", "b"]
        with pytest.raises(overlayfs.MountError, match="no snapshot c"):
            again.rollback("c")
        again.rollback("a")
        assert sorted(set(os.listdir(root)) & {"a", "b", "c"}) == ["a"]


def test_fifty_snapshots_deep_everything_is_found(mounted: overlayfs.Mount, scratch: Path, lower: Path) -> None:
    """Each snapshot adds a file, deletes one of ten before, changes one, and moves a directory on."""
    root = mounted.path
    states = {}
    for number in range(50):
        (root / f"added{number}").write_text(f"{number}")
        (root / "file").write_text(f"changed {number}")
        (root / f"added{number - 10}").unlink(missing_ok=True)
        (root / ("directory" if number == 0 else f"moved{number - 1}")).rename(root / f"moved{number}")
        (root / f"moved{number}/inside{number}").touch()
        if number in (0, 20, 30, 48, 49):
            states[number] = _contents(root)
        mounted.snapshot(f"s{number}")
    assert _contents(root) == states[49]
    assert not (root / "added0").exists()
    assert (root / "one").stat().st_nlink == 2
    mounted.unmount()
    with overlayfs.mount([lower], scratch / "mount", upper=scratch / "upper", work=scratch / "work") as again:
        assert _contents(root) == states[49]
        with again.fork(snapshot="s30") as fork:
            assert _contents(fork.path) == states[30]
        for number in (48, 20, 0):
            again.rollback(f"s{number}")
            assert _contents(root) == states[number]


def _contents(root: Path) -> dict[str, str | None]:
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_text() for p in sorted(root.rglob("*"))}


def test_changes_between_snapshots(mounted: overlayfs.Mount) -> None:
    root = mounted.path
    (root / "file").write_text("one")
    mounted.snapshot("a")
    (root / "directory/inner").unlink()
    mounted.snapshot("b")
    (root / "last").touch()

    def told(since: str | None = None, until: str | None = None) -> dict[bytes, ChangeKind]:
        return {change.path: change.kind for change in mounted.changes(since, until)}

    modified, deleted, added = ChangeKind.MODIFIED, ChangeKind.DELETED, ChangeKind.ADDED
    assert told() == {b"file": modified, b"directory/inner": deleted, b"last": added}
    assert told(since="a") == {b"directory/inner": deleted, b"last": added}
    assert told("a", "b") == {b"directory/inner": deleted}
    assert told(since="b") == {b"last": added}


def test_reset_leaves_the_lower_layers_alone(mounted: overlayfs.Mount, scratch: Path, lower: Path) -> None:
    root = mounted.path
    with (
        (root / "file").open("r+b", buffering=0) as kept,
        (root / "made").open("w+b", buffering=0) as made,
        mmap.mmap(kept.fileno(), 0) as mapping,
    ):
        number = (root / "file").stat().st_ino
        kept.write(b"changed")
        mounted.snapshot("a")
        made.write(b"made")
        os.link(root / "one", root / "three")
        (root / "two").write_text("changed")
        (root / "directory").rename(root / "elsewhere")
        mounted.reset()
        assert sorted(os.listdir(root)) == ["directory", "file", "one", "two"]
        assert (root / "file").stat().st_ino == number
        assert os.pread(kept.fileno(), 99, 0) == mapping[:] == b"of the lower"
        assert os.pread(made.fileno(), 99, 0) == b"made"
        assert os.fstat(made.fileno()).st_nlink == 0
        assert [((root / name).read_text(), (root / name).stat().st_nlink) for name in ("one", "two")] == [
            ("linked", 2)
        ] * 2
        assert mounted.changes() == []
        with pytest.raises(overlayfs.MountError, match="no snapshot a"):
            mounted.rollback("a")
        os.pwrite(kept.fileno(), b"OF", 0)
    mounted.snapshot("b")
    with mounted.fork() as fork:
        (root / "directory/inner").write_text("later")
        mounted.reset()
        assert (fork.path / "file").read_text() == "OF the lower"
        (fork.path / "one").unlink()
        fork.reset()
        assert ((fork.path / "file").read_text(), (fork.path / "one").read_text()) == ("OF the lower", "linked")
    assert (root / "file").read_text() == "of the lower"
    (root / "new").touch()
    mounted.unmount()
    with overlayfs.mount([lower], root, upper=scratch / "upper", work=scratch / "work"):
        assert sorted(os.listdir(root)) == ["directory", "file", "new", "one", "two"]
        assert os.listdir(scratch / "upper") == []
    assert check(bytes(scratch / "upper"), bytes(scratch / "work"), repair=False) == []


def test_transaction_is_undone_however_it_ends(mounted: overlayfs.Mount) -> None:
    def fail() -> None:
        with mounted.transaction():
            (mounted.path / "file").unlink()
            with mounted.transaction():
                (mounted.path / "inside").touch()
            assert not (mounted.path / "inside").exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (mounted.path / "file").read_text() == "of the lower"


def test_dropped_layers_are_removed(mounted: overlayfs.Mount, scratch: Path) -> None:
    mounted.snapshot("a")
    (mounted.path / "new").write_text("x")
    mounted.rollback("a")
    mounted.unmount()
    with overlayfs.mount([scratch / "lower"], scratch / "mount", upper=scratch / "upper", work=scratch / "work"):
        assert len(os.listdir(scratch / "work/overlayfs-snapshots")) == 2


def test_rollbacks_keep_few_layers_though_nobody_looks_their_names_up_again(mounted: overlayfs.Mount) -> None:
    """Nor does a file that stays open keep those of later rollbacks."""
    mounted.snapshot("a")
    layers = mounted.path.parent / "work/overlayfs-snapshots"
    with (mounted.path / "held").open("w+b", buffering=0) as held:
        held.write(b"content")
        for turn in range(50):
            (mounted.path / f"directory{turn}").mkdir()
            (mounted.path / f"directory{turn}/file{turn}").touch()
            mounted.rollback("a")
        assert os.pread(held.fileno(), 20, 0) == b"content"
        assert len(_descriptors_of_layers(mounted)) < 30
    for _ in range(2):  # of which each removes what the kernel has forgotten by then
        mounted.rollback("a")
    assert len(os.listdir(layers)) < 30


def _descriptors_of_layers(mounted: overlayfs.Mount) -> list[str]:
    pid = read_facts(bytes(mounted.path))["pid"]
    targets = (os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd"))
    return [target for target in targets if target.endswith("/upper")]


@pytest.mark.parametrize("name", ["", "with/slash", ".hidden", "x" * 65, "ä"])
def test_bad_names_are_refused(mounted: overlayfs.Mount, name: str) -> None:
    if not name:
        assert mounted.snapshot(name) == "1"
        return
    with pytest.raises(overlayfs.MountError, match="is no name for a snapshot"):
        mounted.snapshot(name)


def test_mount_without_snapshots_says_so(mounted: overlayfs.Mount) -> None:
    with pytest.raises(overlayfs.MountError, match="there is no snapshot"):
        mounted.rollback()
    (mounted.path / "new").touch()
    assert [change.path for change in mounted.changes()] == [b"new"]


def test_second_snapshot_of_a_name_is_refused(mounted: overlayfs.Mount) -> None:
    assert mounted.snapshot("a") == "a"
    with pytest.raises(overlayfs.MountError, match="there is a snapshot a already"):
        mounted.snapshot("a")


def test_rollback_is_refused_while_a_program_runs_in_the_tree(mounted: overlayfs.Mount) -> None:
    mounted.snapshot()
    python = "import os,sys; os.chroot(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", python, str(mounted.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        with pytest.raises(overlayfs.MountError, match=f"process {process.pid} .* runs in the tree"):
            mounted.rollback()
        process.stdin.close()
    mounted.rollback()


@pytest.fixture
def holder(mounted: overlayfs.Mount) -> Iterator[int]:
    """A process with something mounted in the tree, in a mount namespace of its own."""
    script = 'mount -t tmpfs none "$1" && echo && read line'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(mounted.path / "directory")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def test_what_is_mounted_in_the_tree_elsewhere_is_not_unmounted(mounted: overlayfs.Mount, holder: int) -> None:
    mounted.snapshot()
    with pytest.raises(overlayfs.MountError, match=f"process {holder} .* has {mounted.path}/directory mounted"):
        mounted.rollback()
    (mounted.path / "directory").chmod(0o711)
    mounted.reset()
    place = mounted.path / "directory"
    subprocess.run(["nsenter", "-m", "-t", str(holder), "mountpoint", place], check=True, capture_output=True)


CHROOTED = """
import os, subprocess, sys
place, root = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
device, above = os.stat(place).st_dev, os.open(os.path.dirname(place), os.O_PATH)
os.chroot(root)
print(flush=True)
sys.stdin.read()
sys.exit(os.stat("deep", dir_fd=above).st_dev != device)
"""


@pytest.mark.parametrize("mounted", ["bare"], indirect=True)
def test_reset_leaves_what_a_program_has_mounted_that_called_chroot(mounted: overlayfs.Mount) -> None:
    """In a mount namespace of its own, of which it is shown only what is beneath its root."""
    place = mounted.path / "made/deep"
    place.mkdir(parents=True)
    command = ["unshare", "--mount", sys.executable, "-c", CHROOTED, str(place), str(place.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        mounted.reset()
        process.stdin.close()
    assert process.returncode == 0


def test_what_is_mounted_in_a_copy_of_the_mount_is_not_unmounted(mounted: overlayfs.Mount, scratch: Path) -> None:
    copy = scratch / "copy"
    copy.mkdir()
    subprocess.run(["mount", "--bind", mounted.path, copy], check=True)
    mounted.snapshot()
    mounted.rollback()
    subprocess.run(["mount", "-t", "tmpfs", "none", copy / "directory"], check=True)
    try:
        (copy / "directory/kept").touch()
        with pytest.raises(overlayfs.MountError, match=f"{copy}/directory is mounted in the tree; unmount it first"):
            mounted.rollback()
        assert (copy / "directory/kept").exists()
    finally:
        subprocess.run(["umount", copy / "directory", copy], check=True)


@pytest.fixture
def inner_mounts(mounted: overlayfs.Mount) -> Iterator[list[Path]]:
    """A filesystem on each kind of place: of the lower layer, changed or not, and made since; each holds `kept`."""
    root = mounted.path
    (root / "made/deep").mkdir(parents=True)
    (root / "made/deep").chmod(0o750)
    (root / "directory/new").touch()
    (root / "directory/inner").write_text("changed")
    (root / "directory").chmod(0o711)
    source = root.parent / "source"
    source.write_text("kept")
    places = [root / path for path in ("directory/inner", "directory/new", "file", "made/deep")]
    try:
        for place in places:
            on = ["-t", "tmpfs", "none"] if place.is_dir() else ["--bind", source]
            subprocess.run(["mount", *on, place], check=True)
        (places[-1] / "kept").touch()
        yield places
    finally:
        for left in reversed(mounts_beneath(root)[1:]):
            unmount(Path(left.place))


@pytest.mark.parametrize("mounted", ["bare"], indirect=True)  # pyfuse3 has no ioctl
def test_reset_around_a_mount_keeps_the_flags_of_its_place(mounted: overlayfs.Mount) -> None:
    place = mounted.path / "guarded"
    place.mkdir()
    subprocess.run(["chattr", "+i", place], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        mounted.reset()
    finally:
        subprocess.run(["umount", place], check=True)
    with pytest.raises(PermissionError):
        (place / "made").touch()
    subprocess.run(["chattr", "-i", place], check=True)


def test_reset_around_mounts_leaves_them_in_the_tree(mounted: overlayfs.Mount, inner_mounts: list[Path]) -> None:
    root = mounted.path
    before = [(path.stat().st_dev, path.stat().st_ino) for path in inner_mounts]
    for _ in range(2):
        (root / "made/gone").touch()
        (root / "one").unlink()
        (root / "two").write_text("changed")
        (root / "new").mkdir()
        assert not (root / "one").exists()
        with (root / "made/gone").open("r+") as opened:
            mounted.reset()
            opened.write("still")
        # before a listing, which has the kernel take names for current
        assert [(path.stat().st_dev, path.stat().st_ino) for path in inner_mounts] == before
        assert sorted(os.listdir(root)) == ["directory", "file", "made", "one", "two"]
        assert (sorted(os.listdir(root / "directory")), os.listdir(root / "made")) == (["inner", "new"], ["deep"])
        assert [(root / name).read_text() for name in ("one", "two")] == ["linked", "linked"]
        assert stat.S_IMODE((root / "directory").stat().st_mode) == 0o755
        assert os.listdir(inner_mounts[-1]) == ["kept"]
        assert len(mounts_beneath(root)) == 5
    for place in inner_mounts:
        unmount(place)
    assert {change.path: change.kind for change in mounted.changes()} == dict.fromkeys(
        (b"directory/new", b"made", b"made/deep"), ChangeKind.ADDED
    )
    assert ((root / "directory/inner").read_text(), (root / "directory/new").read_text()) == ("inner", "")
    assert stat.S_IMODE((root / "made/deep").stat().st_mode) == 0o750
    mounted.reset()
    assert mounted.changes() == []


def test_what_was_deleted_before_a_snapshot_is_there_again_at_once(mounted: overlayfs.Mount) -> None:
    """The kernel knew the names for absent; nothing lists the directories."""
    root = mounted.path
    deleted = [root / name for name in ("file", "directory/inner")]
    for name in ("first", "second"):
        mounted.snapshot(name)
        for path in deleted:
            path.unlink()
        mounted.snapshot()
        assert not any(path.exists() for path in deleted)
        if name == "first":
            mounted.rollback(name)
            assert all(path.exists() for path in deleted)
    place = root / "directory/place"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        mounted.reset()
        assert all(path.exists() for path in deleted)
    finally:
        unmount(place)


def test_reset_of_a_fork_around_mounts(mounted: overlayfs.Mount) -> None:
    (mounted.path / "since").mkdir()
    (mounted.path / "directory/new").write_text("of the original")
    with mounted.fork() as fork:
        places = [fork.path / name for name in ("since", "directory", "made")]
        places[-1].mkdir()
        places[0].chmod(0o700)
        for place in places:
            subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
        try:
            (fork.path / "file").unlink()
            fork.reset()
            assert [os.path.ismount(place) for place in places] == [True] * 3
        finally:
            for place in filter(os.path.ismount, places):
                unmount(place)
        assert sorted(os.listdir(fork.path)) == ["directory", "file", "made", "one", "since", "two"]
        assert stat.S_IMODE((fork.path / "since").stat().st_mode) == 0o755
        assert (fork.path / "directory/new").read_text() == "of the original"


def test_reset_around_a_mount_in_a_moved_directory_is_refused(mounted: overlayfs.Mount) -> None:
    root = mounted.path
    (root / "directory/new").mkdir()
    (root / "directory").rename(root / "moved")
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "moved/new"], check=True)
    try:
        with pytest.raises(overlayfs.MountError, match="that was moved there"):
            mounted.reset()
        assert os.path.ismount(root / "moved/new")
    finally:
        unmount(root / "moved/new")
    mounted.reset()
    assert mounted.changes() == []


def test_nobody_else_may_command(mounted: overlayfs.Mount) -> None:
    mounted.path.chmod(0o777)
    program = (
        "import os, sys; os.setuid(65534);\n"
        "try: os.setxattr(sys.argv[1], 'user.overlayfs.snapshot', b'x')\n"
        "except PermissionError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", program, mounted.path], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    other = ["unshare", "--mount", sys.executable, "-c", program.replace("os.setuid(65534)", "0"), str(mounted.path)]
    assert subprocess.run(other, capture_output=True, text=True, check=True).stdout == "refused\n"


def test_read_only_mount_takes_no_snapshot(lower: Path) -> None:
    with overlayfs.mount([lower]) as m, pytest.raises(overlayfs.MountError, match="read-only"):
        m.snapshot()


def test_sqlite_goes_back_without_being_stopped(mounted: overlayfs.Mount) -> None:
    """Its readers and writers open the database anew for each test, the process goes on."""
    path = mounted.path / "data.db"

    def run(statement: str) -> list[Any]:
        connection = sqlite3.connect(path)
        try:
            with connection:
                return connection.execute(statement).fetchall()
        finally:
            connection.close()

    run("create table t (n integer)")
    run("insert into t with recursive c(n) as (select 1 union all select n + 1 from c where n < 5000) select n from c")
    mounted.snapshot("filled")
    for _ in range(3):
        run("delete from t where n > 10")
        run("insert into t values (-1)")
        assert run("select count(*) from t") == [(11,)]
        mounted.rollback("filled")
        assert run("select count(*), min(n) from t") == [(5000, 1)]
        assert run("pragma integrity_check") == [("ok",)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("clients", "turns"), [(8, 40), pytest.param(16, 1000, marks=pytest.mark.long)])
def test_clients_that_write_all_the_while_leave_files_of_one_generation(
    mounted: overlayfs.Mount, clients: int, turns: int
) -> None:
    """In the live tree and in each snapshot."""
    root, stop = mounted.path, threading.Event()
    files = [root / f"w{number}" for number in range(clients)]
    failures: list[str] = []

    def write(file: Path) -> None:
        generation = 0
        while not stop.is_set():
            generation += 1
            text = f"{generation % 10}".encode() * 6000
            fd = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                if os.pwrite(fd, text, 0) != len(text):
                    failures.append("a short write")
            finally:
                os.close(fd)

    writers = [threading.Thread(target=write, args=(file,)) for file in files]
    for writer in writers:
        writer.start()
    taken = []
    try:
        for turn in range(turns):
            taken.append(mounted.snapshot())
            if turn % 3 == 2:
                del taken[-1]
                mounted.rollback(taken[-1])
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not failures
    for name in ("", *reversed(taken)):
        if name:
            mounted.rollback(name)
        assert [file.name for file in files if file.exists() and len(set(file.read_bytes())) > 1] == [], name


def test_others_are_kept_from_the_upper_alone(mounted: overlayfs.Mount, scratch: Path, lower: Path) -> None:
    """The kernel's overlayfs refuses the workdir; a read-only mount of ours sees all layers."""
    (mounted.path / "before").touch()
    mounted.snapshot()
    (mounted.path / "after").touch()
    looked = scratch / "look"
    looked.mkdir()
    options = f"lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work"
    mount_program("-o", f"ro,{options}", str(looked))
    assert {"before", "after", "file"} <= set(os.listdir(looked))
    unmount(looked)
    mounted.unmount()
    kernel = ["mount", "-t", "overlay", "overlay", "-o", options, str(looked)]
    assert subprocess.run(kernel, capture_output=True, check=False).returncode != 0
