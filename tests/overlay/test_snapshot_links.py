"""The names of a hard-linked lower file stay one file over snapshots, rollbacks and remounts, though a snapshot looks
up none of them."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs.overlay.changes import Comparison
from overlayfs.overlay.check import check
from overlayfs.overlay.findings import Problem
from overlayfs.overlay.options import OverlayOptions
from overlayfs.tree import access
from overlayfs.tree.syscalls import Stat
from tests.property.bare import EngineTarget

NAMES = (b"a", b"deep/b", b"c", b"e")


class Tree(EngineTarget):
    def content(self, path: bytes) -> bytes:
        return self.read(path)

    def links(self, path: bytes) -> int:
        return self._find(path).nlink

    def numbers_of(self, *paths: bytes) -> set[int]:
        return {self._find(path).ino for path in paths}


@pytest.fixture(params=[{}, {"metacopy": True}], ids=["default", "metacopy"])
def options(tmp_path: Path, request: pytest.FixtureRequest) -> OverlayOptions:
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for path in (lower / "deep", upper, work):
        path.mkdir(parents=True)
    (lower / "a").write_text("of the lower")
    for name in NAMES[1:]:
        os.link(lower / "a", lower / os.fsdecode(name))
    return OverlayOptions(lowers=(bytes(lower),), upper=bytes(upper), work=bytes(work), **request.param)


@pytest.fixture
def tree(options: OverlayOptions) -> Iterator[Tree]:
    """Whatever was done in it, its indexes are in order."""
    tree = Tree(options)
    yield tree
    tree.close()
    assert options.upper is not None and options.work is not None
    findings = check(options.upper, options.work, repair=False)
    assert {found.problem for found in findings} <= {Problem.LEFTOVER}  # a layer that a rollback dropped


def _each_is(tree: Tree, text: bytes, *names: bytes) -> None:
    names = names or NAMES
    assert {name: tree.content(name) for name in names} == dict.fromkeys(names, text)
    assert len(tree.numbers_of(*names)) == 1
    assert {tree.links(name) for name in names} == {len(names)}


def _stay(tree: Tree) -> None:
    pass


def _remount(tree: Tree) -> None:
    tree.remount()


@pytest.fixture(params=[_stay, _remount])
def then(request: pytest.FixtureRequest) -> Callable[[Tree], None]:
    """What happens between two steps."""
    chosen: Callable[[Tree], None] = request.param
    return chosen


def test_change_by_one_name_is_seen_by_all_after_snapshots(tree: Tree, then: Callable[[Tree], None]) -> None:
    tree.write(b"a", 0, b"1st")
    tree.overlay.snapshot("one")
    then(tree)
    _each_is(tree, b"1stthe lower")
    tree.write(b"deep/b", 0, b"2nd")
    then(tree)
    _each_is(tree, b"2ndthe lower")
    tree.overlay.snapshot("two")
    then(tree)
    tree.write(b"c", 0, b"3rd")
    _each_is(tree, b"3rdthe lower")
    tree.overlay.roll_back("two")
    then(tree)
    _each_is(tree, b"2ndthe lower")
    tree.overlay.roll_back("one")
    then(tree)
    _each_is(tree, b"1stthe lower")


def test_metadata_of_a_frozen_copy_changes_and_its_data_stays(tree: Tree, then: Callable[[Tree], None]) -> None:
    tree.chmod(b"a", 0o600)
    tree.overlay.snapshot()
    tree.chmod(b"deep/b", 0o640)
    then(tree)
    tree.overlay.snapshot()
    then(tree)
    _each_is(tree, b"of the lower")
    tree.chmod(b"c", 0o604)
    then(tree)
    _each_is(tree, b"of the lower")
    tree.write(b"c", 0, b"it")
    _each_is(tree, b"it the lower")


def test_deleted_and_new_names_are_counted(tree: Tree, then: Callable[[Tree], None]) -> None:
    tree.write(b"a", 0, b"it")
    tree.unlink(b"a")
    tree.unlink(b"e")
    tree.overlay.snapshot("one")
    then(tree)
    _each_is(tree, b"it the lower", b"c", b"deep/b")
    tree.unlink(b"deep/b")
    then(tree)
    _each_is(tree, b"it the lower", b"c")
    tree.overlay.roll_back("one")
    then(tree)
    tree.link(b"c", b"d")
    tree.overlay.snapshot("two")
    then(tree)
    _each_is(tree, b"it the lower", b"c", b"d", b"deep/b")
    for name in (b"d", b"deep/b", b"c"):
        tree.unlink(name)
        then(tree)
    assert tree.listdir(b"") == [b"deep"]


def test_snapshot_resolves_no_name(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it costs does not depend on the size of the tree."""
    tree.write(b"a", 0, b"it")
    known = len(tree.overlay.state.inodes)
    stat_at = access.stat_at

    def of_no_file(dir_fd: int, name: bytes) -> Stat:
        return stat_at(dir_fd, name) if name not in (*NAMES, b"deep") else pytest.fail("a walk")

    monkeypatch.setattr(access, "stat_at", of_no_file)
    tree.overlay.snapshot()
    assert len(tree.overlay.state.inodes) == known
    with pytest.raises(pytest.fail.Exception):
        tree.read(b"deep/b")
    monkeypatch.undo()


def test_deleted_file_that_is_open_is_never_written_in_a_snapshot_under_a_name_nobody_looked_up(tree: Tree) -> None:
    tree.create(b"new", 0, 0o644, b"first")
    tree.link(b"new", b"other")
    tree.remount()
    tree.hold(1, b"new", os.O_RDWR)
    tree.unlink(b"new")
    with pytest.raises(OSError, match=os.strerror(errno.ETXTBSY)):
        tree.overlay.snapshot()
    assert tree.read(b"other") == b"first"
    tree.overlay.snapshot()
    tree.held_write(1, 0, b"LATER")
    assert tree.read(b"other") == b"LATER"
    tree.overlay.roll_back()
    assert tree.read(b"other") == b"first"


def test_descriptor_of_a_new_file_that_is_open_stays_over_snapshots(tree: Tree) -> None:
    """As of an ordinary user, who could not open it again."""
    tree.create(b"new", 0, 0o644, b"first")
    tree.hold(1, b"new", os.O_RDWR)
    number, state = tree.numbers_of(b"new").pop(), tree.overlay.state
    tree.read(b"new")
    created = state.descriptors.file(number)
    assert created is not None
    state.created[number] = created
    created.pins += 1
    tree.overlay.snapshot()
    assert state.descriptors.file(number) is created
    tree.held_write(1, 0, b"LATER")
    assert state.created[number] is state.descriptors.file(number)
    assert (created.pins, state.created[number].pins) == (0, 1)
    tree.drop(1)


def _changed(options: OverlayOptions, since: str | None = None, until: str | None = None) -> set[bytes]:
    assert options.upper is not None
    with Comparison.open(options.upper, options.lowers, work=options.work, since=since, until=until) as comparison:
        return {change.path for change in comparison if not change.is_directory}


def test_comparison_knows_all_names_of_what_was_changed(tree: Tree, options: OverlayOptions) -> None:
    tree.write(b"a", 0, b"1st")
    tree.overlay.snapshot("one")
    tree.chmod(b"deep/b", 0o600)
    tree.overlay.snapshot("two")
    assert _changed(options) == _changed(options, until="one") == _changed(options, since="one") == set(NAMES)
    assert _changed(options, since="two") == set()
    with Comparison.open(options.upper or b"", options.lowers, work=options.work) as comparison:
        for change in comparison.as_layer():
            if change.path in NAMES:
                assert change.after is not None
                fd = comparison.open_data(change.after)
                assert os.read(fd, 100) == b"1stthe lower"
                os.close(fd)


def test_read_only_look_shows_all_names_of_a_snapshot_alike(tree: Tree, options: OverlayOptions) -> None:
    tree.write(b"a", 0, b"1st")
    tree.overlay.snapshot()
    look = Tree(options._replace(read_only=True))
    try:
        assert {look.content(name) for name in NAMES} == {b"1stthe lower"}
    finally:
        look.close()


def test_open_file_of_which_all_names_were_deleted_is_not_the_file_that_comes_back(tree: Tree) -> None:
    tree.overlay.snapshot("one")
    tree.hold(0, b"a", os.O_RDWR)
    for name in NAMES:
        tree.unlink(name)
    tree.overlay.roll_back("one")
    _each_is(tree, b"of the lower")
    tree.held_write(0, 0, b"it")
    assert tree.held_read(0) == b"it the lower"
    assert tree.overlay.getattr(tree.held[0]).nlink == 0
    _each_is(tree, b"of the lower")


@pytest.mark.parametrize("is_looked_for", [False, True])
def test_open_file_is_the_file_that_comes_back_where_it_had_names_that_nobody_looked_up(
    tree: Tree, is_looked_for: bool
) -> None:
    tree.overlay.snapshot("one")
    tree.hold(0, b"a", os.O_RDWR)
    tree.unlink(b"a")
    tree.overlay.roll_back("one")
    if is_looked_for:
        _each_is(tree, b"of the lower")
    tree.held_write(0, 0, b"it")
    assert tree.held_read(0) == b"it the lower"
    _each_is(tree, b"it the lower")
