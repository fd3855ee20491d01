"""Once a snapshot or rollback is published, nothing on disk makes it fail, and what is written then is not lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from overlayfs.overlay import freezing
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import MountError, OverlayOptions
from overlayfs.tree import syscalls
from tests.property.bare import EngineTarget

NOT_OURS = ("-1", "10000000000000000", "ffffffffffffffff1", "+000000000000001", "00000000000000AB", "1")


@pytest.fixture
def options(tmp_path: Path) -> OverlayOptions:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/f").write_text("of the lower")
    lower, upper, work = (bytes(tmp_path / name) for name in ("lower", "upper", "work"))
    return OverlayOptions(lowers=(lower,), upper=upper, work=work)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def tree(options: OverlayOptions) -> Iterator[EngineTarget]:
    made = EngineTarget(options)
    yield made
    made.overlay.close()


def _roll_back(tree: EngineTarget) -> None:
    tree.overlay.roll_back()


def _undo(tree: EngineTarget) -> None:
    tree.overlay.roll_back(drop=True)


def _reset(tree: EngineTarget) -> None:
    tree.overlay.reset()


def _snapshot(tree: EngineTarget) -> None:
    tree.overlay.snapshot()


@pytest.mark.parametrize("name", NOT_OURS)
def test_record_under_a_name_that_is_not_ours_counts_for_nothing(tree: EngineTarget, work: Path, name: str) -> None:
    (work / "overlayfs-links").mkdir()
    (work / "overlayfs-links" / name).symlink_to("1")
    tree.remount()
    assert tree.overlay.state.lost_links == {}
    tree.overlay.snapshot()
    tree.write(b"f", 0, b"dropped")
    _roll_back(tree)
    tree.write(b"f", 0, b"OF")
    tree.remount()
    assert tree.read(b"f") == b"OF the lower"


@pytest.mark.parametrize("act", [_snapshot, _roll_back, _undo, _reset])
def test_failure_after_publishing_lets_nothing_be_written_to_a_layer_that_is_no_upper(
    tree: EngineTarget, monkeypatch: pytest.MonkeyPatch, act: Callable[[EngineTarget], None]
) -> None:
    tree.overlay.snapshot()
    tree.write(b"f", 0, b"IF")
    tree.hold(1, b"f", os.O_RDWR)
    with monkeypatch.context() as patch:
        patch.delattr(freezing, "use")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            act(tree)
    for change in (
        lambda: tree.held_write(1, 0, b"lost"),
        lambda: tree.create(b"new", 0, 0o644, b"lost"),
        tree.overlay.snapshot,
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            change()
    tree.overlay.close()
    tree.overlay = Overlay.open(tree.options)
    assert tree.read(b"f") == (b"IF the lower" if act is _snapshot else b"of the lower")


@pytest.mark.parametrize("act", [_snapshot, _roll_back, _undo, _reset])
def test_close_that_fails_is_no_failure_of_what_was_done(
    tree: EngineTarget, monkeypatch: pytest.MonkeyPatch, act: Callable[[EngineTarget], None]
) -> None:
    tree.overlay.snapshot()
    tree.write(b"f", 0, b"IF")
    tree.read(b"f")
    closed: list[int] = []
    real = os.close

    def close(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        real(fd)
        if path.endswith("/upper/f"):
            closed.append(fd)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close_all(descriptors: list[int]) -> int:
        before = len(closed)
        for fd in descriptors:
            with suppress(OSError):
                close(fd)
        return errno.ENOSPC if len(closed) > before else 0

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        patch.setattr(syscalls, "close_all", close_all)
        act(tree)
        tree.write(b"f", 0, b"OF")
    assert closed, "a file of the former upper was open"
    tree.create(b"new", 0, 0o644, b"kept")
    tree.overlay.close()
    tree.overlay = Overlay.open(tree.options)
    assert (tree.read(b"f"), tree.read(b"new")) == (b"OF the lower", b"kept")


def _lose_a_layer(work: Path) -> None:
    (work / "overlayfs-snapshots/1").rename(work / "gone")


def _damage_the_stack(work: Path) -> None:
    (work / "overlayfs-snapshots/stack").write_text("{")


@pytest.mark.parametrize("spoil", [_lose_a_layer, _damage_the_stack])
def test_refused_mount_leaves_the_kernel_s_overlayfs_refused(
    tree: EngineTarget, work: Path, spoil: Callable[[Path], None]
) -> None:
    tree.overlay.snapshot()
    tree.overlay.close()
    kept = {path: path.read_bytes() for path in (work / "overlayfs-snapshots").glob("stack")}
    spoil(work)
    try:
        with pytest.raises(MountError):
            Overlay.open(tree.options)
        assert (work / "work/incompat/overlayfs-snapshots").is_dir()
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
        if (work / "gone").exists():
            (work / "gone").rename(work / "overlayfs-snapshots/1")
        tree.overlay = Overlay.open(tree.options)


def test_guard_goes_with_a_first_snapshot_that_was_not_finished(tree: EngineTarget, work: Path) -> None:
    tree.overlay.close()
    (work / "work/incompat/overlayfs-snapshots").mkdir(parents=True)
    (work / "overlayfs-snapshots/1/upper").mkdir(parents=True)
    tree.overlay = Overlay.open(tree.options)
    assert os.listdir(work / "work") == []
    assert not (work / "overlayfs-snapshots").exists()


ROOM = os.statvfs_result((4096, 4096, 1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 1 << 19, 0, 255))
UNLIMITED = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
NO_FRAGMENTS = os.statvfs_result((4096, 0, 1 << 20, 1 << 10, 1 << 10, 1 << 20, 1 << 19, 1 << 19, 0, 255))


@pytest.mark.parametrize(
    ("told", "expected"),
    [(ROOM, False), (UNLIMITED, False), (NO_FRAGMENTS, True), (OSError(errno.ESTALE, "stale"), True)],
    ids=["room", "unlimited", "no fragments", "error"],
)
def test_how_full_the_disk_is_is_known_without_failing(
    tree: EngineTarget, monkeypatch: pytest.MonkeyPatch, told: os.statvfs_result | OSError, expected: bool
) -> None:
    def fstatvfs(_fd: int) -> os.statvfs_result:
        if isinstance(told, OSError):
            raise told
        return told

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    assert tree.overlay.is_nearly_full is expected


def test_mount_after_a_reset_leaves_no_descriptor_open(tree: EngineTarget) -> None:
    tree.overlay.snapshot()
    tree.overlay.reset()
    tree.overlay.close()
    before = os.listdir("/proc/self/fd")
    tree.overlay = Overlay.open(tree.options)
    tree.overlay.close()
    assert os.listdir("/proc/self/fd") == before
    tree.overlay = Overlay.open(tree.options)
