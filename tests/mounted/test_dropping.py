"""Snapshots that are dropped leave no layer behind, and programs that use the tree do not notice."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import overlayfs
from overlayfs.fuse import commanding
from overlayfs.fuse.status import read_facts
from tests.mounted.program import PATIENCE_S


@pytest.fixture
def lower(scratch: Path) -> Path:
    lower = scratch / "lower"
    (lower / "directory").mkdir(parents=True)
    (lower / "file").write_text("of the lower")
    (lower / "directory/inner").write_text("inner")
    (lower / "one").write_text("linked")
    os.link(lower / "one", lower / "two")
    return lower


@pytest.fixture
def mounted(scratch: Path, lower: Path) -> Iterator[overlayfs.Mount]:
    upper, work, mount = (scratch / name for name in ("upper", "work", "mount"))
    for path in (upper, work, mount):
        path.mkdir()
    with overlayfs.mount([lower], mount, upper=upper, work=work) as made:
        yield made


def _depth(mounted: overlayfs.Mount) -> int:
    return len(read_facts(os.fsencode(mounted.path))["snapshots"])


def _descriptors(mounted: overlayfs.Mount) -> int:
    return len(os.listdir(f"/proc/{mounted.pid}/fd"))


def test_two_hundred_transactions_leave_nothing(mounted: overlayfs.Mount, scratch: Path, lower: Path) -> None:
    root = mounted.path
    (root / "file").write_text("before")
    (root / "one").chmod(0o640)
    counts = []
    for turn in range(200):
        with mounted.transaction():
            (root / "file").write_text(str(turn))
            (root / "two").write_text("changed")
            (root / "directory/inner").unlink()
            if turn % 20 == 0:
                with mounted.transaction():
                    (root / "new").touch()
                assert not (root / "new").exists()
        counts.append(_descriptors(mounted))
    assert _depth(mounted) == 1
    assert max(counts[100:]) <= max(counts[:100]) + 5
    assert {name: (root / name).read_text() for name in ("file", "one", "two", "directory/inner")} == {
        "file": "before",
        "one": "linked",
        "two": "linked",
        "directory/inner": "inner",
    }
    assert ((root / "two").stat().st_mode & 0o777, (root / "two").stat().st_nlink) == (0o640, 2)
    mounted.unmount()
    with overlayfs.mount([lower], root, upper=scratch / "upper", work=scratch / "work"):
        assert (root / "file").read_text() == "before"
        assert os.listdir(scratch / "work/overlayfs-snapshots") == ["stack"]


def test_transaction_leaves_earlier_snapshots(mounted: overlayfs.Mount) -> None:
    (mounted.path / "file").write_text("a")
    mounted.snapshot("a")
    (mounted.path / "file").write_text("b")
    with mounted.transaction():
        (mounted.path / "file").write_text("c")
    assert (mounted.path / "file").read_text() == "b"
    assert _depth(mounted) == 2
    mounted.rollback("a")
    assert (mounted.path / "file").read_text() == "a"


def test_transaction_goes_back_to_its_own_snapshot(mounted: overlayfs.Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although somebody else takes one, or drops all, at the same moment."""
    command = commanding._command

    def and_others(mountpoint: bytes, name: bytes, value: bytes = b"") -> None:
        command(mountpoint, name, value)
        if name == commanding.SNAPSHOT_XATTR:
            (mounted.path / "between").touch()
            command(mountpoint, commanding.SNAPSHOT_XATTR if value else commanding.RESET_XATTR, b"others" * bool(value))

    monkeypatch.setattr(commanding, "_command", and_others)
    with mounted.transaction():
        (mounted.path / "made").touch()
    assert not (mounted.path / "between").exists() and not (mounted.path / "made").exists()
    with pytest.raises(overlayfs.MountError, match="the snapshot was dropped at once"):
        mounted.snapshot()


@pytest.fixture
def small(scratch: Path) -> Iterator[Path]:
    """A disk of 2 MiB with directories for a mount."""
    place = scratch / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], check=True)
    for name in ("upper", "work"):
        (place / name).mkdir()
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(directory: Path) -> None:
    for number in itertools.count():
        (directory / f"part{number}").write_bytes(bytes(1 << 16))


def test_what_filled_the_disk_goes_with_its_transaction(small: Path, lower: Path) -> None:
    with overlayfs.mount([lower], upper=small / "upper", work=small / "work") as m:
        before = sorted(os.listdir(m.path))
        for _ in range(3):
            with pytest.raises(OSError, match="No space left on device"), m.transaction():
                fill(m.path)
            assert sorted(os.listdir(m.path)) == before
            deadline = time.monotonic() + PATIENCE_S
            while os.statvfs(small).f_bavail < os.statvfs(small).f_blocks // 2:  # a thread removes it
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_file_open_over_a_transaction_is_the_live_one(mounted: overlayfs.Mount) -> None:
    with (mounted.path / "directory/inner").open("r+b", buffering=0) as opened:
        with mounted.transaction():
            (mounted.path / "directory").rename(mounted.path / "elsewhere")
        os.pwrite(opened.fileno(), b"INNER", 0)
        assert (mounted.path / "directory/inner").read_text() == "INNER"


def test_unlinked_open_file_keeps_its_content_over_transactions(mounted: overlayfs.Mount) -> None:
    (mounted.path / "file").write_text("of the snapshot")
    snapshot = mounted.snapshot()
    with (mounted.path / "file").open("r+b", buffering=0) as opened:
        (mounted.path / "file").unlink()
        mounted.rollback(snapshot, drop=True)
        (mounted.path / "file").write_text("another")
        assert os.pread(opened.fileno(), 50, 0) == b"of the snapshot"
    assert _depth(mounted) == 2  # its layer had to stay as it is


def test_fork_keeps_the_snapshot_of_a_transaction(mounted: overlayfs.Mount) -> None:
    (mounted.path / "file").write_text("shared")
    with mounted.transaction() as snapshot:
        fork = mounted.fork(snapshot=snapshot)
    with fork:
        (mounted.path / "file").write_text("changed")
        assert (fork.path / "file").read_text() == "shared"
    mounted.rollback(snapshot, drop=True)
    assert (mounted.path / "file").read_text() == "shared"
    assert _depth(mounted) == 1


def test_rotated_snapshots_keep_the_stack_short(mounted: overlayfs.Mount, scratch: Path, lower: Path) -> None:
    """Of the last three snapshots, each is what it was, though the layers of all others were merged."""
    root = mounted.path
    with (root / "file").open("r+b", buffering=0) as opened:
        for turn in range(12):
            (root / "file").write_text(f"{turn}")
            (root / f"made{turn}").mkdir()
            (root / f"made{turn}/inner").touch()
            mounted.snapshot(f"s{turn}")
            if turn >= 3:
                number = (root / "made1/inner").stat().st_ino
                mounted.drop_snapshot(f"s{turn - 3}")
                assert (root / "made1/inner").stat().st_ino == number
                assert _depth(mounted) <= 3 + 3
        assert os.pread(opened.fileno(), 10, 0) == b"11"
    with pytest.raises(overlayfs.MountError, match="no snapshot s8"):
        mounted.rollback("s8")
    mounted.unmount()
    with overlayfs.mount([lower], root, upper=scratch / "upper", work=scratch / "work") as again:
        assert len(list(root.glob("made*/inner"))) == 12
        again.rollback("s9")
        assert (root / "file").read_text() == "9"
        assert {path.name for path in root.glob("made*")} == {f"made{turn}" for turn in range(10)}


def test_listing_under_way_goes_on_over_a_drop(mounted: overlayfs.Mount) -> None:
    (mounted.path / "big").mkdir()
    mounted.snapshot("a")
    for number in range(1000):
        (mounted.path / f"big/n{number}").touch()
    mounted.snapshot("b")
    (mounted.path / "big/last").touch()
    mounted.snapshot("c")
    with os.scandir(mounted.path / "big") as entries:
        seen = [next(entries).name]
        mounted.drop_snapshot("b")
        seen += [entry.name for entry in entries]
    assert sorted(seen) == sorted({"last", *(f"n{number}" for number in range(1000))})


def test_fork_keeps_a_dropped_layer(mounted: overlayfs.Mount) -> None:
    mounted.snapshot("a")
    (mounted.path / "file").write_text("shared")
    mounted.snapshot("b")
    (mounted.path / "file").write_text("later")
    mounted.snapshot("c")
    with mounted.fork(snapshot="b") as fork:
        mounted.drop_snapshot("b")
        assert (fork.path / "file").read_text() == "shared"
        with pytest.raises(overlayfs.MountError, match="no snapshot b"):
            mounted.fork(snapshot="b")
    assert (mounted.path / "file").read_text() == "later"


def test_unknown_snapshot_is_not_dropped(mounted: overlayfs.Mount) -> None:
    mounted.snapshot("a")
    with pytest.raises(overlayfs.MountError, match="there is no snapshot b"):
        mounted.drop_snapshot("b")
