"""The service killed, or failed by the disk, at each system call of a request: what is left is of before or after.

A snapshot of the database always has its directory, a next start deletes everything else, and the request can be made
again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from overlayfs.snapshotter.metadata import Info, SnapshotError
from overlayfs.snapshotter.snapshots import Snapshots
from tests.crash.supervisor import Call, Ending, Fail, Fault, Gate, Kill, supervise

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
    """A request on a fresh copy of the same snapshots; `states` are those of before and after."""

    def __init__(self, top: Path, request: Request) -> None:
        self._filled, self._root, self._request = top / "filled", top / "root", request
        fill(self._filled)
        before = self._look_at_fresh()
        self.calls = self.strike(None)
        self.states = (before, look(self._root))
        assert self.states[0] != self.states[1]

    def _look_at_fresh(self) -> State:
        self._reset()
        return look(self._root)

    def _reset(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.copytree(self._filled, self._root)

    def strike(self, fault: Fault | None) -> Sequence[Call]:
        self._reset()
        run = supervise(self._work, fault)
        self.ending = run.ending
        return run.calls

    def _work(self, gate: Gate) -> None:
        """In the child: make the request. After a failure the same service must answer."""
        snapshots = Snapshots(self._root, PROGRAM)
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
        snapshots = Snapshots(self._root, PROGRAM)
        with contextlib.suppress(SnapshotError):  # it was carried out
            self._request(snapshots)
        snapshots.close()
        found = look(self._root)
        assert found.infos == self.states[1].infos
        assert len(found.files) == len(self.states[1].files)  # an id may be a later one


@pytest.fixture(params=REQUESTS)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(tmp_path, REQUESTS[request.param])


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
