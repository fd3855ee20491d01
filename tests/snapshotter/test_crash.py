"""The service killed, or failed by the disk, at each system call of a request: what is left is of before or after.

A snapshot of the database always has its directory, a next start deletes everything else, and the request can be made
again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from overlayfs.snapshotter.metadata import Info, Kind, SnapshotError
from overlayfs.snapshotter.own_mounts import Program
from overlayfs.snapshotter.snapshots import Snapshots
from overlayfs.tree.syscalls import mount, unmount
from tests.crash.supervisor import Call, Ending, Fail, Fault, Gate, Kill, supervise
from tests.snapshotter.service import mounts_below

PROGRAM = "/bin/true"
SAMPLE = 8
Request = Callable[[Snapshots], object]
REQUESTS: dict[str, Request] = {
    "prepare": lambda snapshots: snapshots.prepare("new", "base", {"a": "b"}),
    "view": lambda snapshots: snapshots.view("new", "base", {}),
    "commit": lambda snapshots: snapshots.commit("active", "new", {"a": "b"}),
    "remove": lambda snapshots: snapshots.remove("active"),
    "update": lambda snapshots: snapshots.update("base", {"a": "b"}, ()),
}


class Tmpfs(Program):
    """In place of a mount program: something else is mounted, in this process."""

    def run(self, words: Sequence[str]) -> None:
        mount(b"none", os.fsencode(words[1]), b"tmpfs", 0, b"")


OWN = Tmpfs("tmpfs")
MOUNTED = "active"  # before each request, where the snapshotter mounts by itself


class State(NamedTuple):
    """Every snapshot without its times, and the files of all layers."""

    infos: tuple[tuple[object, ...], ...]
    files: frozenset[str]


def fill(root: Path) -> None:
    snapshots = Snapshots(root, PROGRAM)
    snapshots.prepare("base-active", "", {})
    snapshots.commit("base-active", "base", {})
    snapshots.prepare("active", "base", {})
    for name in ("file", "d/deep/file"):
        path = root / "snapshots/2/fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("data")
    snapshots.close()


def look(root: Path) -> State:
    """Start again, as after a crash, and look."""
    snapshots = Snapshots(root, PROGRAM)
    try:
        infos = sorted(snapshots.list(()), key=lambda info: info.name)
        return State(tuple(_said(snapshots, info) for info in infos), _files(root / "snapshots"))
    finally:
        snapshots.close()


def _said(snapshots: Snapshots, info: Info) -> tuple[object, ...]:
    usage = snapshots.usage(info.name)
    return (info.name, info.parent, info.kind, tuple(info.labels.items()), usage.inodes)


def _files(top: Path) -> frozenset[str]:
    return frozenset(str(path.relative_to(top)) for path in top.rglob("*"))


class Scene:
    """A request on a fresh copy of the same snapshots; `states` are those of before and after.

    With a program of its own the snapshotter mounts, and has one of the snapshots mounted before.
    """

    def __init__(self, top: Path, request: Request, own: Program | None) -> None:
        self._filled, self._root, self._request, self._own = top / "filled", top / "root", request, own
        fill(self._filled)
        before = self._look_at_fresh()
        self.calls = self.strike(None)
        self.states = (before, look(self._root))
        assert self.states[0] != self.states[1]

    def _look_at_fresh(self) -> State:
        self._reset()
        return look(self._root)

    def _reset(self) -> None:
        self.unmount()
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.copytree(self._filled, self._root)
        if self._own:
            snapshots = self._open()
            snapshots.mount(MOUNTED)
            snapshots.close()

    def _open(self) -> Snapshots:
        return Snapshots(self._root, PROGRAM, self._own)

    def unmount(self) -> None:
        for point in mounts_below(self._root):
            unmount(os.fsencode(point))

    def strike(self, fault: Fault | None) -> Sequence[Call]:
        self._reset()
        run = supervise(self._work, fault)
        self.ending = run.ending
        return run.calls

    def _work(self, gate: Gate) -> None:
        """In the child: make the request. After a failure the same service must answer."""
        snapshots = self._open()
        gate.arm()
        try:
            self._request(snapshots)
        except Exception:  # noqa: BLE001  what the service answers with a status
            gate.disarm()
            snapshots.prepare("probe", "", {})
            snapshots.remove("probe")
            snapshots.cleanup()
        gate.disarm()
        snapshots.close()

    def check(self) -> None:
        """What is there is a state, and the request brings the second one about."""
        assert look(self._root) in self.states
        self._expect_no_other_mounts()
        snapshots = self._open()
        with contextlib.suppress(SnapshotError):  # it was carried out
            self._request(snapshots)
        snapshots.close()
        found = look(self._root)
        assert found.infos == self.states[1].infos
        assert len(found.files) == len(self.states[1].files)  # an id may be a later one
        self._expect_no_other_mounts()

    def _expect_no_other_mounts(self) -> None:
        """What was looked at was started again, so nothing is mounted that is no snapshot's."""
        snapshots = self._open()
        shown = {snapshots.mount(info.name).source for info in snapshots.list(()) if info.kind != Kind.COMMITTED}
        snapshots.close()
        assert {str(point) for point in mounts_below(self._root)} <= shown


@pytest.fixture(
    params=[(name, own) for name in REQUESTS for own in (None, OWN)],
    ids=lambda param: f"{param[0]}{' mounted' * bool(param[1])}",
)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    name, own = request.param
    scene = Scene(tmp_path, REQUESTS[name], own)
    yield scene
    scene.unmount()


def _points(scene: Scene, limit: int | None) -> list[int]:
    points = [number for number, call in enumerate(scene.calls) if call.mutates]
    assert points
    step = 1 if limit is None else max(1, len(points) // limit)
    return [*points[::-step]]


def _sweep(scene: Scene, limit: int | None, action: Kill | Fail) -> int:
    points = _points(scene, limit)
    for number in points:
        scene.strike(Fault(number, action))
        assert scene.ending is (Ending.KILLED if isinstance(action, Kill) else Ending.RETURNED)
        scene.check()
    return len(points)


def test_killed_request_is_carried_out_or_not(scene: Scene) -> None:
    assert _sweep(scene, SAMPLE, Kill())


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=os.strerror)
def test_failed_request_is_carried_out_or_not(scene: Scene, error: int) -> None:
    assert _sweep(scene, SAMPLE, Fail(error))


@pytest.mark.long
def test_no_point_of_a_request_is_bad(scene: Scene) -> None:
    for action in (Kill(), Fail(errno.ENOSPC), Fail(errno.EIO)):
        assert _sweep(scene, None, action)
