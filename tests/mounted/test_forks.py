"""Forks of live mounts: each goes its own way, whatever becomes of the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import overlayfs
from overlayfs.overlay.changes import ChangeKind
from tests.mounted.program import ENVIRONMENT, PATIENCE_S, mounts_beneath
from tests.property.paths import unmount


@pytest.fixture(autouse=True)
def temporary(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What is thrown away is made here; nothing may be left."""
    place = scratch / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    yield place
    deadline = time.monotonic() + PATIENCE_S
    while os.listdir(place) and time.monotonic() < deadline:
        time.sleep(0.02)  # a process that stayed behind removes it
    left = os.listdir(place)
    for mounted in mounts_beneath(scratch):
        unmount(Path(mounted.place))
    assert left == []


@pytest.fixture
def lower(scratch: Path) -> Path:
    lower = scratch / "lower"
    (lower / "directory").mkdir(parents=True)
    (lower / "file").write_text("of the lower")
    (lower / "directory/inner").write_text("inner")
    (lower / "one").write_text("linked")
    os.link(lower / "one", lower / "two")
    os.link(lower / "one", lower / "three")
    return lower


@pytest.fixture
def mounted(lower: Path) -> Iterator[overlayfs.Mount]:
    with overlayfs.mount([lower], ephemeral=True) as m:
        yield m


def kept_mount(scratch: Path, lower: Path) -> overlayfs.Mount:
    for name in ("upper", "work"):
        (scratch / name).mkdir(exist_ok=True)
    return overlayfs.mount([lower], upper=scratch / "upper", work=scratch / "work")


def layers_of(scratch: Path) -> set[str]:
    return {name for name in os.listdir(scratch / "work/overlayfs-snapshots") if name != "stack"}


def test_fork_has_the_state_of_the_snapshot_in_every_respect(mounted: overlayfs.Mount) -> None:
    root = mounted.path
    (root / "two").unlink()
    (root / "one").chmod(0o600)
    (root / "directory").rename(root / "moved")
    root.chmod(0o750)
    mounted.snapshot("a")
    (root / "three").unlink()
    with mounted.fork(snapshot="a") as fork:
        assert sorted(os.listdir(fork.path)) == ["file", "moved", "one", "three"]
        assert (fork.path / "moved/inner").read_text() == "inner"
        assert fork.path.stat().st_mode & 0o7777 == 0o750
        found = (fork.path / "one").stat()
        assert (found.st_nlink, found.st_mode & 0o777) == (2, 0o600)
        (fork.path / "three").write_text("changed")
        assert (fork.path / "one").read_text() == "changed"
        assert (root / "one").read_text() == "linked"
        (fork.path / "moved").rename(fork.path / "again")
        assert (fork.path / "again/inner").read_text() == "inner"


def test_fork_of_the_present_state_takes_a_snapshot(mounted: overlayfs.Mount) -> None:
    (mounted.path / "file").write_text("now")
    with mounted.fork() as fork:
        (mounted.path / "file").write_text("later")
        assert (fork.path / "file").read_text() == "now"
        assert {change.path: change.kind for change in fork.changes()} == {b"file": ChangeKind.MODIFIED}
        assert fork.changes(since="1") == []
        (fork.path / "file").write_text("otherwise")
        assert [change.path for change in fork.changes(since="1")] == [b"file"]
        fork.rollback()
        assert (fork.path / "file").read_text() == "now"
    assert (mounted.path / "file").read_text() == "later"


def test_fork_outlives_rollback_and_end_of_the_original(mounted: overlayfs.Mount) -> None:
    file = mounted.path / "file"
    mounted.snapshot("a")
    file.write_text("b")
    mounted.snapshot("b")
    with mounted.fork(snapshot="b") as fork:
        mounted.rollback("a")
        assert mounted.upper is not None
        file.write_text("another")
        mounted.snapshot("b")
        mounted.unmount()
        assert (fork.path / "file").read_text() == "b"
        (fork.path / "file").write_text("of the fork")
        (fork.path / "directory/inner").unlink()
        fork.rollback("b")
        assert (fork.path / "file").read_text() == "b"
        fork.rollback("a")
        assert (fork.path / "file").read_text() == "of the lower"
        assert mounted.upper.exists()


def test_fork_of_a_fork_outlives_both(mounted: overlayfs.Mount) -> None:
    first = mounted.fork()
    (first.path / "file").write_text("first")
    second = first.fork()
    (second.path / "new").write_text("second")
    third = second.fork()
    first.rollback("1")
    for ended in (mounted, first, second):
        ended.unmount()
    assert (third.path / "file").read_text() == "first"
    assert (third.path / "new").read_text() == "second"
    third.unmount()


def test_dropped_layer_stays_while_a_fork_uses_it(scratch: Path, lower: Path) -> None:
    with kept_mount(scratch, lower) as m:
        m.snapshot("a")
        (m.path / "file").write_text("b")
        m.snapshot("b")
        fork = m.fork(snapshot="b")
        m.rollback("a")
    with kept_mount(scratch, lower) as m:  # nor does the next mount take it for a leftover, or use its number again
        for name in ("c", "d"):
            (m.path / "file").write_text(name)
            m.snapshot(name)
        assert (fork.path / "file").read_text() == "b"
        assert "1" in layers_of(scratch)
        fork.unmount()
        m.rollback("d")
    with kept_mount(scratch, lower):
        assert not {"1"} & layers_of(scratch)
        assert not [name for name in layers_of(scratch) if name.startswith("fork-")]


def test_killed_fork_is_removed_with_the_next_mount(scratch: Path, lower: Path) -> None:
    program = f"""
        import os, signal, overlayfs
        m = overlayfs.mount([{str(lower)!r}], upper={str(scratch / "upper")!r}, work={str(scratch / "work")!r})
        fork = m.fork()
        os.kill(fork.pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    for name in ("upper", "work"):
        (scratch / name).mkdir()
    environment = {**ENVIRONMENT, "TMPDIR": str(scratch / "killed")}
    (scratch / "killed").mkdir()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [name for name in layers_of(scratch) if name.startswith("fork-")]
    with kept_mount(scratch, lower) as m:
        assert not [name for name in layers_of(scratch) if name.startswith("fork-")]
        assert m.fork(snapshot="1").changes() == []


def test_unknown_snapshot_and_read_only_mount_are_refused(mounted: overlayfs.Mount, lower: Path) -> None:
    with pytest.raises(overlayfs.MountError, match=r"there is no snapshot a$"):
        mounted.fork(snapshot="a")
    mounted.snapshot("b")
    with pytest.raises(overlayfs.MountError, match=r"there is no snapshot a, but b$"):
        mounted.fork(snapshot="a")
    with overlayfs.mount([lower]) as m, pytest.raises(overlayfs.MountError, match="read-only mount"):
        m.fork()


def test_fork_that_cannot_be_mounted_leaves_nothing(mounted: overlayfs.Mount) -> None:
    mounted.snapshot("a")
    with pytest.raises(overlayfs.MountError, match="does not exist"):
        mounted.fork("/nowhere/at/all", snapshot="a")
    assert mounted.upper is not None
    assert not list((mounted.upper.parent / "work/overlayfs-snapshots").glob("fork-*"))


def refusals_until_full(m: overlayfs.Mount) -> Iterator[str]:
    """What is said of forks while the disk gets fuller by one file after the other."""
    for number in range(30):
        try:
            (m.path / str(number)).touch()
        except OSError:
            return
        try:
            m.fork(snapshot="a").unmount()
        except overlayfs.MountError as error:
            yield str(error)


def test_full_disk_refuses_a_fork_in_one_line(scratch: Path, lower: Path) -> None:
    small = scratch / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=24", "tmpfs", small], check=True)
    try:
        (small / "upper").mkdir()
        (small / "work").mkdir()
        with overlayfs.mount([lower], upper=small / "upper", work=small / "work") as m:
            (m.path / "file").write_text("kept")
            m.snapshot("a")
            told = list(refusals_until_full(m))
            assert told
            assert all(
                line.endswith(("the disk is full; nothing has changed", "No space left on device")) for line in told
            )
            assert (m.path / "file").read_text() == "kept"
            for name in "01234":  # so that there is room for the layer that a rollback goes on in
                (m.path / name).unlink()
            m.rollback("a")
            assert sorted(os.listdir(m.path)) == ["directory", "file", "one", "three", "two"]
    finally:
        subprocess.run(["umount", "-l", small], check=True)
