"""A step that fails, or an operation that comes between two steps, leaves disk and memory agreeing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from pyfuse3 import RequestContext

from overlayfs.fuse.control import Control
from overlayfs.fuse.copying import CopyUps
from overlayfs.fuse.handlers import Handlers
from overlayfs.fuse.status import Status
from overlayfs.fuse.syncing import Syncs
from overlayfs.fuse.tasks import Tasks
from overlayfs.overlay import drafts, opening
from overlayfs.overlay.copyup import Need
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import FsyncPolicy, MountError, OverlayOptions, RedirectDir, WhiteoutFormat
from overlayfs.overlay.values import AttributeChanges, Caller
from overlayfs.tree import access
from tests.contract.tree import Tree, build, directory, file, hardlink

ROOT = 1
CALLER = Caller(0, 0)


class Place:
    """One lower layer, an upper and a workdir; mounted, and again as often as asked."""

    def __init__(self, top: Path, lower: Tree, upper: Tree | None = None, **options: Any) -> None:
        for name, tree in (("lower", lower), ("upper", upper or {}), ("work", {})):
            build(os.fsencode(top / name), tree)
        lowers, up, work = (bytes(top / name) for name in ("lower", "upper", "work"))
        self.options: dict[str, Any] = {"lowers": (lowers,), "upper": up, "work": work, **options}
        self.overlay = Overlay.open(OverlayOptions(**self.options))

    def remount(self, **options: Any) -> None:
        self.overlay.close()
        self.overlay = Overlay.open(OverlayOptions(**{**self.options, **options}))

    def at(self, path: str) -> int:
        number = ROOT
        for name in path.split("/") if path else ():
            number = self.overlay.lookup(number, os.fsencode(name)).ino
        return number

    def name(self, path: str) -> tuple[int, bytes]:
        parent, _, name = path.rpartition("/")
        return self.at(parent), os.fsencode(name)

    def read(self, path: str) -> bytes:
        return self.overlay.read(self.at(path), 0, 100)

    def write(self, path: str, data: bytes) -> None:
        self.overlay.write(self.at(path), 0, data)

    def chmod(self, path: str, mode: int) -> None:
        self.overlay.setattr(self.at(path), AttributeChanges(mode=mode), CALLER)

    def unlink(self, path: str) -> None:
        self.overlay.unlink(*self.name(path))

    def rename(self, old: str, new: str) -> None:
        self.overlay.rename(*self.name(old), *self.name(new))

    def create(self, path: str) -> None:
        self.overlay.release(self.overlay.create(*self.name(path), 0o644, os.O_RDWR, CALLER).ino)

    def mkdir(self, path: str) -> int:
        return self.overlay.mkdir(*self.name(path), 0o755, CALLER).ino

    def rmdir(self, path: str) -> None:
        self.overlay.rmdir(*self.name(path))

    def names(self, path: str) -> set[bytes]:
        found = {entry.name for entry in self.overlay.readdir(self.at(path), 0)}
        return found - {b".", b".."}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def make(lower: Tree, upper: Tree | None = None, **options: Any) -> Place:
        made.append(Place(tmp_path / str(len(made)), lower, upper, **options))
        return made[-1]

    yield make
    for one in made:
        one.overlay.close()


Make = Callable[..., Place]


def fails_with(number: int, call: Callable[..., object], *arguments: object) -> bool:
    try:
        call(*arguments)
    except OSError as error:
        return error.errno == number
    return False


def _refusing(number: int, real: Callable[..., Any], refuses: Callable[..., bool]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if refuses(*arguments):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    return call


def _no_renames(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(access, "rename", _refusing(errno.ENOSPC, access.rename, lambda *_: True))


# -- a deletion or move that fails


def test_failed_unlink_of_metacopy_leaves_it_writable(place: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = place({"f": file(b"lower-data")}, metacopy=True)
    mount.chmod("f", 0o600)
    with monkeypatch.context() as patch:
        _no_renames(patch)
        assert fails_with(errno.ENOSPC, mount.unlink, "f")
    mount.write("f", b"NEW")
    assert mount.read("f") == b"NEWer-data"
    mount.remount()
    assert mount.read("f") == b"NEWer-data"


def test_failed_rename_over_metacopy_leaves_it_writable(place: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = place({"f": file(b"lower-data")}, {"g": file(b"g")}, metacopy=True)
    mount.chmod("f", 0o600)
    with monkeypatch.context() as patch:
        _no_renames(patch)
        assert fails_with(errno.ENOSPC, mount.rename, "g", "f")
    mount.write("f", b"NEW")
    mount.remount()
    assert mount.read("f") == b"NEWer-data"


def test_failed_rmdir_leaves_directory_alive(place: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = place({"d": directory()}, {"d": directory()})
    with monkeypatch.context() as patch:
        _no_renames(patch)
        assert fails_with(errno.ENOSPC, mount.rmdir, "d")
    mount.mkdir("d/s")
    assert mount.overlay.getattr(mount.at("d")).nlink
    assert not mount.overlay.state.orphans


@pytest.mark.parametrize("operation", ["rename", "rmdir"])
def test_failed_change_keeps_oci_whiteout_beside_directory(
    place: Make, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    upper = {"foo": directory(), ".wh.foo": file(b"")}
    mount = place({"foo/old": file(b"x")}, upper, whiteout=WhiteoutFormat.OCI)
    assert mount.names("foo") == set()
    with monkeypatch.context() as patch:
        _no_renames(patch)
        step = (lambda: mount.rename("foo", "bar")) if operation == "rename" else (lambda: mount.rmdir("foo"))
        assert fails_with(errno.ENOSPC, step)
    mount.remount()
    assert mount.names("foo") == set()


def test_whiteout_that_could_not_be_removed_is_known_of(place: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = place({"w": file(b"x")}, {"src": directory()})
    mount.unlink("w")
    with monkeypatch.context() as patch:
        patch.setattr(access, "unlink", _refusing(errno.EIO, access.unlink, lambda _, name: name == b"src"))
        mount.rename("src", "w")
    mount.mkdir("src")
    assert mount.names("") == {b"src", b"w"}


class _KilledError(BaseException):
    pass


@pytest.mark.parametrize("whiteout", WhiteoutFormat)
def test_kill_at_any_rename_over_remade_directory(
    place: Make, monkeypatch: pytest.MonkeyPatch, whiteout: WhiteoutFormat
) -> None:
    """Each call that changes a name is the last one of a run: the next mount sees before or after."""
    before, after = {b"src": {b"in"}, b"tgt": set[bytes]()}, {b"tgt": {b"in"}}
    seen = []
    for allowed in range(12):
        mount = place({"tgt/old": file(b"x"), "z": file(b"z")}, whiteout=whiteout)
        mount.unlink("tgt/old")
        mount.rmdir("tgt")
        mount.mkdir("tgt")
        mount.mkdir("src")
        mount.mkdir("src/in")
        with monkeypatch.context() as patch:
            left = [allowed]
            for name in ("rename", "unlink", "mknod", "rmdir"):
                patch.setattr(access, name, _killed_after(left, getattr(access, name)))
            with suppress(_KilledError):
                mount.rename("src", "tgt")
        mount.remount()
        seen.append({name: mount.names(os.fsdecode(name)) for name in mount.names("") - {b"z"}})
    assert all(view in (before, after) for view in seen), seen
    assert seen[0] == before and seen[-1] == after


def _killed_after(left: list[int], real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if not left[0]:
            raise _KilledError
        left[0] -= 1
        return real(*arguments, **named)

    return call


# -- what comes between the steps of a copy-up in a thread


def _copied_while(mount: Place, path: str, need: Need, between: Callable[[], object]) -> int:
    number = mount.at(path)
    mount.overlay.open_file(number, os.O_RDWR)
    work = mount.overlay.begin_copy_up(number, need, None)
    assert work is not None
    with work:
        work.transfer()
        between()
        work.publish()
    return number


LINKED: Tree = {"D/f": file(b"old-f"), "D/g": file(b"old-g"), "E/h": hardlink("D/f")}


def test_second_copy_up_publishes_nothing(place: Make) -> None:
    mount = place(LINKED, redirect_dir=RedirectDir.OFF)
    number = _copied_while(mount, "D/f", Need.DATA, lambda: mount.rename("D", "X"))
    mount.overlay.write(number, 0, b"NEW")
    assert mount.overlay.getattr(number).nlink == 2
    mount.remount()
    assert (mount.read("X/f"), mount.read("E/h"), mount.read("X/g")) == (b"NEW-f", b"NEW-f", b"old-g")


def test_second_completion_publishes_nothing(place: Make) -> None:
    mount = place(LINKED, metacopy=True, redirect_dir=RedirectDir.OFF)
    mount.chmod("D/f", 0o600)
    number = _copied_while(mount, "D/f", Need.DATA, lambda: mount.rename("D", "X"))
    mount.overlay.write(number, 0, b"NEW")
    mount.remount()
    assert (mount.read("X/f"), mount.read("E/h")) == (b"NEW-f", b"NEW-f")


@pytest.mark.parametrize("index", [True, False])
def test_name_that_goes_during_copy_up(place: Make, index: bool) -> None:
    mount = place(LINKED, index=index)
    number = _copied_while(mount, "D/f", Need.DATA, lambda: mount.unlink("D/f"))
    mount.overlay.write(number, 0, b"NEW")
    assert mount.overlay.read(number, 0, 9) == b"NEW-f"
    assert mount.read("E/h") == (b"NEW-f" if index else b"old-f")
    mount.remount()
    assert mount.read("E/h") == (b"NEW-f" if index else b"old-f")


@pytest.mark.parametrize("index", [True, False])
def test_name_that_is_met_and_the_other_gone_during_copy_up(place: Make, index: bool) -> None:
    mount = place(LINKED, index=index)

    def met_then_gone() -> None:
        mount.at("E/h")
        mount.unlink("D/f")

    number = _copied_while(mount, "D/f", Need.DATA, met_then_gone)
    mount.overlay.write(number, 0, b"NEW")
    mount.remount()
    assert mount.read("E/h") == b"NEW-f"


# -- fsync=strict


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with monkeypatch.context() as patch:
        patch.setattr(drafts, "sync_directory", _refusing(errno.EIO, drafts.sync_directory, lambda *_: True))
        yield patch


def test_failed_directory_sync_is_told_and_what_was_done_is_known(place: Make, no_sync: pytest.MonkeyPatch) -> None:
    mount = place({"d/f": file(b"x"), "g": file(b"g")}, {"k": file(b"k")}, fsync=FsyncPolicy.STRICT)
    for step in (
        lambda: mount.create("d/n"),
        lambda: mount.chmod("d/f", 0o600),
        lambda: mount.unlink("g"),
        lambda: mount.unlink("k"),
        lambda: mount.mkdir("e"),
        lambda: mount.rename("d/f", "e/f"),
    ):
        assert fails_with(errno.EIO, step)
    no_sync.undo()
    seen = {path: mount.names(path) for path in ("", "d", "e")}
    assert seen == {"": {b"d", b"e"}, "d": {b"n"}, "e": {b"f"}}
    assert fails_with(errno.EEXIST, mount.mkdir, "e")
    mount.chmod("e/f", 0o640)
    mount.unlink("d/n")
    mount.remount()
    assert {path: mount.names(path) for path in ("", "d", "e")} == {"": {b"d", b"e"}, "d": set(), "e": {b"f"}}


def test_strict_syncs_every_changed_directory_once_and_last(place: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = place({"a/b/f": file(b"x")}, fsync=FsyncPolicy.STRICT)
    number = mount.at("a/b/f")
    synced = []
    real = drafts.sync_directory

    def counted(state: Any, fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/upper")[2])
        assert os.path.exists(mount.options["upper"] + b"/a/b/f")
        real(state, fd)

    monkeypatch.setattr(drafts, "sync_directory", counted)
    mount.overlay.setattr(number, AttributeChanges(mode=0o600), CALLER)
    assert sorted(synced) == ["", "/a", "/a/b"]
    assert not mount.overlay.state.unsynced


# -- opening


def test_refused_volatile_mount_keeps_the_mark(place: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = place({"f": file(b"x")}, fsync=FsyncPolicy.VOLATILE)
    mount.write("f", b"y")
    plain = OverlayOptions(**{**mount.options, "fsync": FsyncPolicy.AUTO})
    refused = OverlayOptions(**{**mount.options, "whiteout": WhiteoutFormat.OVERLAY})
    mount.overlay.close()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(opening, "_try_device", _refusing(errno.EPERM, lambda *_: None, lambda *_: True))
            with pytest.raises(MountError, match="whiteout=overlay"):
                Overlay.open(refused)
        with pytest.raises(MountError, match="volatile"):
            Overlay.open(plain)
    finally:
        mount.overlay = Overlay.open(OverlayOptions(**mount.options))


def test_volatile_mount_cleans_the_workdir(place: Make) -> None:
    mount = place({"f": file(b"x")}, fsync=FsyncPolicy.VOLATILE)
    work = os.fsdecode(mount.options["work"])
    os.makedirs(f"{work}/work/#7/deep")
    mount.remount()
    assert os.listdir(f"{work}/work") == ["incompat"]


def test_setgid_workdir_gives_its_group_to_nothing(tmp_path: Path) -> None:
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    build(bytes(lower), {"f": file(b"x"), "d": directory()})
    upper.mkdir()
    work.mkdir()
    os.chown(work, 0, 1234)
    os.chmod(work, 0o2755)
    overlay = Overlay.open(OverlayOptions(lowers=(bytes(lower),), upper=bytes(upper), work=bytes(work)))
    try:
        overlay.create(ROOT, b"new", 0o644, os.O_RDWR, CALLER)
        overlay.mkdir(ROOT, b"newdir", 0o755, CALLER)
        for changed in (b"f", b"d"):
            overlay.setattr(overlay.lookup(ROOT, changed).ino, AttributeChanges(mode=0o700), CALLER)
    finally:
        overlay.close()
    for name in ("new", "newdir", "f", "d"):
        found = os.lstat(upper / name)
        assert found.st_gid == os.getegid(), name
        assert not found.st_mode & stat.S_ISGID, name


# -- what is known and no longer needed


def test_parents_of_all_names_are_let_go(place: Make) -> None:
    mount = place({"z": file(b"z")}, {"A/x": file(b"x"), "B/y": hardlink("A/x")})
    overlay = mount.overlay
    first, second = mount.at("A"), mount.at("B")
    number = overlay.lookup(first, b"x").ino
    assert overlay.lookup(second, b"y").ino == number
    for ino in (first, second, number):
        overlay.forget(ino, 2)
    assert [inode.number for inode in overlay.state.inodes.values()] == [ROOT]


def test_removed_lower_directory_that_is_open_can_be_changed(place: Make) -> None:
    mount = place({"d": directory()})
    number = mount.overlay.opendir(mount.at("d"))
    mount.rmdir("d")
    assert mount.overlay.getattr(number).nlink == 0
    found = mount.overlay.setattr(number, AttributeChanges(mode=0o700), CALLER)
    assert (found.nlink, stat.S_IMODE(found.mode)) == (0, 0o700)
    assert fails_with(errno.ENOENT, mount.overlay.mkdir, number, b"n", 0o755, CALLER)
    mount.overlay.forget(number, 1)
    mount.overlay.releasedir(number)
    assert not mount.overlay.state.orphans


def test_whole_copy_is_done_before_the_rename_in_small_steps(place: Make) -> None:
    files = {f"D/s/{number}": file(b"%d" % number) for number in range(20)}
    mount = place({**files, "D/x": file(b"x"), "D/y": hardlink("D/x")}, redirect_dir=RedirectDir.OFF)
    overlay, number = mount.overlay, mount.at("D")
    for _ in overlay.to_copy_before_rename(number):
        assert len(mount.names("D/s")) == 20, "every step leaves the tree as it is"
    state = overlay.state
    assert not state.directory(number).lowers
    assert set(os.listdir(mount.options["upper"] + b"/D")) == {b"s", b"x", b"y"}
    assert not list(overlay.to_copy_before_rename(number))[1:], "nothing is left but the directory itself"
    mount.rename("D", "E")
    assert mount.read("E/y") == b"x"


def test_whole_copy_survives_deletions_between_its_steps(place: Make) -> None:
    files = {f"D/s/{number}": file(b"%d" % number) for number in range(4)}
    mount = place({**files, "D/t/u": file(b"u")}, redirect_dir=RedirectDir.OFF)
    steps = mount.overlay.to_copy_before_rename(mount.at("D"))
    next(steps)
    for path in ("D/s/0", "D/s/1", "D/s/2", "D/s/3", "D/t/u"):
        mount.unlink(path)
    mount.rmdir("D/s")
    mount.rmdir("D/t")
    for _ in steps:
        pass
    mount.rename("D", "E")
    assert mount.names("E") == set()
    mount.remount()
    assert mount.names("E") == set()


def test_link_met_when_it_is_the_only_one_left_is_the_same_inode(place: Make) -> None:
    mount = place({}, {"x": file(b"one"), "y": hardlink("x")})
    number = mount.at("x")
    mount.overlay.open_file(number, os.O_RDWR)
    mount.unlink("x")
    assert mount.at("y") == number
    mount.overlay.write(number, 0, b"TWO!")
    assert mount.overlay.getattr(mount.at("y")).size == 4
    assert not mount.overlay.state.orphans


def test_others_are_served_between_the_steps_of_a_whole_copy(place: Make) -> None:
    files = {f"D/{number}": file(b"%d" % number) for number in range(50)}
    mount = place(files, redirect_dir=RedirectDir.OFF)
    tasks = Tasks()
    syncs = Syncs(tasks, queues=False)
    copy_ups = CopyUps(mount.overlay, syncs)
    control = Control(mount.overlay, copy_ups, lambda: -1)
    handlers = Handlers(mount.overlay, Status(mount.overlay, ""), control, copy_ups, syncs)
    mount.at("D")
    turns = 0

    async def rename(nursery: trio.Nursery) -> None:
        await handlers.rename(ROOT, b"D", ROOT, b"E", 0, cast(RequestContext, None))
        nursery.cancel_scope.cancel()

    async def main() -> None:
        nonlocal turns
        async with trio.open_nursery() as nursery:
            tasks.run_in(nursery)
            nursery.start_soon(rename, nursery)
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

    trio.run(main)
    assert turns > 50
    assert len(mount.names("E")) == 50


def test_fsync_of_metacopy_syncs_the_upper_file(place: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = place({"f": file(b"data")}, metacopy=True)
    mount.chmod("f", 0o600)
    synced: list[bytes] = []

    def fsync(fd: int) -> None:
        synced.append(os.readlink(b"/proc/self/fd/%d" % fd))

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        mount.overlay.fsync(mount.at("f"), True)
    assert [path.endswith(b"/upper/f") for path in synced] == [True]
    assert not mount.overlay.state.synced_names
    assert len(os.listdir("/proc/self/fd")) == before


def test_fsync_during_completion_says_nothing_of_the_new_name(place: Make) -> None:
    mount = place({"f": file(b"data")}, metacopy=True)
    mount.chmod("f", 0o600)
    number = mount.at("f")
    pinned = mount.overlay.pin_to_sync(number, False)
    assert pinned is not None
    mount.overlay.write(number, 0, b"D")
    opened, data_only = pinned
    assert not data_only
    os.fsync(opened.fd)
    opened.unpin()
    mount.overlay.note_sync(number, opened, None)
    assert number not in mount.overlay.state.synced_names
