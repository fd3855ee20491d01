"""What is known of files in memory is where they are on disk, after layers were dropped and merged."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.history import History
from overlayfs.overlay.options import OverlayOptions
from overlayfs.overlay.room import Room
from tests.property.bare import EngineTarget


@pytest.fixture
def options(tmp_path: Path) -> OverlayOptions:
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for path in (lower, upper, work):
        path.mkdir()
    for number in range(9):
        (lower / f"low{number}").write_text(str(number))
    return OverlayOptions(lowers=(bytes(lower),), upper=bytes(upper), work=bytes(work))


@pytest.fixture
def tree(options: OverlayOptions) -> Iterator[EngineTarget]:
    tree = EngineTarget(options)
    yield tree
    tree.close()


def _write(tree: EngineTarget, path: bytes, content: bytes) -> None:
    tree.create(path, 0, 0o644, content)


def test_file_that_the_kernel_knows_shows_its_own_content_after_a_rollback(tree: EngineTarget) -> None:
    overlay = tree.overlay
    _write(tree, b"file", b"old")
    overlay.snapshot("a")
    overlay.unlink(1, b"file")
    _write(tree, b"file", b"new")
    overlay.snapshot("b")
    found = overlay.lookup(1, b"file")
    overlay.open_file(found.ino, os.O_RDONLY)
    overlay.roll_back("a")
    assert overlay.read(found.ino, 0, 9) == b"new"
    assert tree.read(b"file") == b"old"


def test_files_known_over_many_rollbacks_are_those_of_their_names(tree: EngineTarget) -> None:
    overlay = tree.overlay
    for number in range(6):
        overlay.snapshot(f"s{number}")
    known = [overlay.lookup(1, b"low%d" % number).ino for number in range(9)]
    overlay.roll_back("s1")
    for name in ("t1", "t2", "t3"):
        overlay.snapshot(name)
    overlay.drop_snapshot("t1")
    overlay.roll_back("s1")
    assert [overlay.read(ino, 0, 9) for ino in known] == [b"%d" % number for number in range(9)]


def test_file_with_a_longer_path_than_path_max_stays_in_reach_of_a_drop(tree: EngineTarget) -> None:
    overlay = tree.overlay
    overlay.snapshot("s0")
    parent = 1
    for _ in range(20):
        parent = overlay.mkdir(parent, b"n" * 240, 0o755, tree.caller).ino
    deep = overlay.create(parent, b"file", 0o644, os.O_RDWR, tree.caller).ino
    overlay.write(deep, 0, b"deep")
    _write(tree, b"v", b"1")
    overlay.snapshot("s1")
    overlay.unlink(1, b"v")
    _write(tree, b"v", b"2")
    overlay.snapshot("s2")
    overlay.snapshot("s3")
    overlay.drop_snapshot("s1")
    assert overlay.read(deep, 0, 9) == b"deep"
    overlay.roll_back("s2")
    assert tree.read(b"v") == b"2"
    assert overlay.read(deep, 0, 9) == b"deep"


def test_merge_that_fails_at_its_end_hides_nothing(tree: EngineTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = tree.overlay
    overlay.snapshot("s0")
    tree.mkdir(b"dir", 0o755)
    _write(tree, b"dir/file", b"content")
    overlay.snapshot("s1")
    _write(tree, b"other", b"x")
    overlay.snapshot("s2")
    _write(tree, b"third", b"x")
    directory = overlay.lookup(1, b"dir").ino
    published: list[object] = []
    publish = History.publish

    def full_at_the_end(self: History, *told: Any, **options: Any) -> None:
        published.append(told)
        if len(published) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        publish(self, *told, **options)

    monkeypatch.setattr(History, "publish", full_at_the_end)
    overlay.drop_snapshot("s1")
    assert len(published) == 3  # the last with the room that was kept
    assert overlay.read(overlay.lookup(directory, b"file").ino, 0, 9) == b"content"
    _write(tree, b"dir/new", b"new")
    assert tree.read(b"dir/new") == b"new"


def test_links_of_which_some_are_deleted_are_not_moved(tree: EngineTarget, options: OverlayOptions) -> None:
    overlay = tree.overlay
    overlay.snapshot("s0")
    _write(tree, b"a", b"x")
    for name in (b"b", b"c"):
        overlay.link(overlay.lookup(1, b"a").ino, 1, name)
    overlay.snapshot("s1")
    overlay.unlink(1, b"b")
    overlay.snapshot("s2")
    overlay.drop_snapshot("s1")
    assert overlay.lookup(1, b"a").nlink == 2
    overlay.close()
    tree.overlay = Overlay.open(options)
    assert tree.overlay.lookup(1, b"a").nlink == 2


@pytest.mark.parametrize("name", ["", "no name", ".hidden"])
def test_what_is_no_name_is_refused_and_nothing_is_dropped(tree: EngineTarget, name: str) -> None:
    tree.overlay.snapshot("a")
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        tree.overlay.drop_snapshot(name)
    assert [one["snapshot"] for one in tree.overlay.facts()["snapshots"]] == ["a", None]  # type: ignore[attr-defined]


def _prepare_to_merge(tree: EngineTarget) -> Iterator[Callable[[], None]]:
    """Have three snapshots of which the second is dropped, and what it takes to merge its layer."""
    overlay = tree.overlay
    overlay.snapshot("s0")
    tree.mkdir(b"dir", 0o755)
    _write(tree, b"dir/file", b"content")
    _write(tree, b"dir/other", b"other")
    overlay.snapshot("s1")
    _write(tree, b"dir/third", b"third")
    overlay.snapshot("s2")
    assert overlay.drop_name("s1") == "s1"
    return overlay.merges()


def _layers(tree: EngineTarget) -> list[object]:
    return [one["snapshot"] for one in tree.overlay.facts()["snapshots"]]  # type: ignore[attr-defined]


def test_tree_is_used_while_a_merge_is_prepared(tree: EngineTarget) -> None:
    merges = _prepare_to_merge(tree)
    prepare = next(merges)
    tree.hold(0, b"dir/file", os.O_RDWR)
    tree.held_write(0, 0, b"C")
    prepare()
    tree.unlink(b"dir/other")
    tree.rename(b"dir", b"moved", 0)
    numbers = tree.numbers()
    assert list(merges) == []
    assert _layers(tree) == ["s0", "s2", None]
    assert tree.numbers() == numbers
    assert tree.listdir(b"moved") == [b"file", b"third"]
    assert tree.held_read(0) == tree.read(b"moved/file") == b"Content"
    tree.overlay.roll_back("s2")
    assert {name: tree.read(b"dir/" + name) for name in tree.listdir(b"dir")} == {
        b"file": b"content",
        b"other": b"other",
        b"third": b"third",
    }


def test_layer_stays_for_an_open_file_that_lost_its_name_while_the_merge_was_prepared(tree: EngineTarget) -> None:
    merges = _prepare_to_merge(tree)
    next(merges)()
    tree.hold(0, b"dir/file", os.O_RDONLY)
    tree.unlink(b"dir/file")
    assert list(merges) == []
    assert _layers(tree) == ["s0", None, "s2", None]
    assert tree.held_read(0) == b"content"


@pytest.mark.parametrize("is_prepared", [False, True])
def test_nothing_is_merged_once_the_mount_has_ended(tree: EngineTarget, is_prepared: bool) -> None:
    merges = _prepare_to_merge(tree)
    prepare = next(merges)
    if is_prepared:
        prepare()
    tree.overlay.give_up_upper()
    prepare()
    assert list(merges) == []
    assert _layers(tree) == ["s0", None, "s2", None]


def test_another_command_does_not_wait_for_a_merge_that_is_prepared(tree: EngineTarget) -> None:
    merges = _prepare_to_merge(tree)
    prepare = next(merges)
    tree.overlay.give_way()
    prepare()
    assert list(merges) == []
    assert _layers(tree) == ["s0", None, "s2", None]
    tree.overlay.snapshot("s3")
    tree.overlay.drop_snapshot("s3")  # which merges what was left
    assert _layers(tree) == ["s0", "s2", None, None]


def test_end_of_a_mount_cuts_off_what_is_prepared(tree: EngineTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    merges = _prepare_to_merge(tree)
    prepare = next(merges)
    history = tree.overlay.state.history
    assert isinstance(history, History)
    seen = []

    def pause(_: float) -> None:
        seen.append(history.has_stopped)
        history.has_stopped = True  # as `stop` says at once, which then waits

    monkeypatch.setattr(time, "sleep", pause)
    prepare()
    assert seen == [False]
    assert list(merges) == []


def test_room_is_none_without_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = set(os.listdir("/proc/self/fd"))
    fd = os.open(tmp_path, os.O_RDONLY)
    room = Room(fd)
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", fail)
        room.keep()
    assert not room.give_up()
    room.keep()
    assert room.give_up()
    os.close(fd)
    assert set(os.listdir("/proc/self/fd")) == before
