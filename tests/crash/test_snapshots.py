"""Snapshots, rollbacks and forks, struck at each of their system calls: the tree is that of before or after."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from overlayfs.overlay import forking, forks
from overlayfs.overlay.engine import Overlay

from .operations import (
    Operation,
    Step,
    chmod,
    fork,
    make_fork,
    mkdir,
    rename,
    reset,
    reset_around,
    roll_back,
    snapshot,
    unlink,
    write,
)
from .sweep import Figures, Scene, Stage, error_points, opened, sampled, sweep_errors, sweep_kills
from .trees import seen_through

ERRORS = 60


def _operation(*steps: Step) -> Operation:
    everywhere = frozenset({b".", b"./dir", b"./moved", b"./again", b"./lowtree"})
    return Operation(steps, everywhere, for_kernel=False)


def drop(name: str) -> Step:
    def step(overlay: Overlay) -> None:
        overlay.drop_snapshot(name)

    return step


OPERATIONS = {
    "snapshot": _operation(write("dir/file", b"new"), snapshot("a"), write("dir/file", b"newer"), mkdir("x")),
    "snapshot of hard links": _operation(chmod("one", 0o600), snapshot("a"), chmod("dir", 0o700)),
    "snapshot of a renamed directory": _operation(rename("lowtree", "moved"), snapshot("a"), rename("moved", "again")),
    "rollback": _operation(snapshot("a"), write("dir/file", b"new"), unlink("big"), roll_back("a"), mkdir("x")),
    "rollback past a snapshot": _operation(
        write("big", b"first"), snapshot("a"), unlink("big"), snapshot("b"), mkdir("x"), roll_back("a"), unlink("big")
    ),
    "rollback that drops": _operation(
        write("big", b"first"), snapshot("a"), unlink("big"), roll_back("a", drop=True), mkdir("x")
    ),
    "rollback that drops hard links and a layer": _operation(
        *(chmod("one", 0o600), snapshot("a"), mkdir("x"), snapshot("b"), unlink("one"), roll_back("a", drop=True)),
        chmod("two", 0o640),
    ),
    "reset": _operation(
        *(write("dir/file", b"new"), chmod("one", 0o600), rename("lowtree", "moved"), unlink("big"), reset),
        *(mkdir("x"), chmod("one", 0o640)),
    ),
    "reset that drops snapshots": _operation(
        *(unlink("one"), write("big", b"first"), snapshot("a"), mkdir("x"), snapshot("b"), unlink("big"), reset),
        *(unlink("big"), reset, chmod("two", 0o640)),
    ),
    "reset around places": _operation(
        *(chmod("dir", 0o700), mkdir("lowtree/made"), reset_around("dir/file", "lowtree/made"), mkdir("lowtree/made/x"))
    ),
    "drop": _operation(
        *(
            snapshot("a"),
            unlink("big"),
            write("dir/file", b"b"),
            mkdir("lowtree/x"),
            unlink("dir/other"),
            snapshot("b"),
        ),
        *(mkdir("big"), unlink("dir/file"), mkdir("dir/other"), snapshot("c"), drop("b"), mkdir("x")),
    ),
}


@pytest.fixture(params=OPERATIONS)
def scene(request: pytest.FixtureRequest, stage: Stage) -> Scene:
    return stage.scene(request.param, OPERATIONS[request.param])


def test_killed_at_any_call_leaves_tree_of_before_or_after(scene: Scene, figures: dict[str, Figures]) -> None:
    found = sweep_kills(scene, None)
    figures.setdefault("kill sweep, snapshots", Figures()).__iadd__(found)
    assert found.outcomes["killed"] >= 20
    assert not found.bad, "\n".join(found.bad)


@pytest.mark.timeout(1800)  # with --long
def test_error_of_any_call_changes_nothing(
    scene: Scene, figures: dict[str, Figures], request: pytest.FixtureRequest
) -> None:
    limit = None if request.config.getoption("--long") else ERRORS
    found = sweep_errors(scene, sampled(error_points(scene.unharmed.calls), limit))
    figures.setdefault("errno sweep, snapshots", Figures()).__iadd__(found)
    assert found.points
    assert not found.bad, "\n".join(found.bad)


def mount_fork(name: str) -> Step:
    def step(overlay: Overlay) -> object:
        with forked(overlay, name) as found:
            return found.getattr(1).mode

    return step


def roll_back_beside_fork(name: str, target: str) -> Step:
    """Go back to `target`; a fork of a later snapshot must not notice."""

    def step(overlay: Overlay) -> None:
        with forked(overlay, name) as found:
            before = seen_through(found)
            overlay.roll_back(target)
            if (remove := overlay.take_waste()) is not None:
                remove()
            assert seen_through(found) == before

    return step


def _remove(made: bytes) -> None:
    work_fd = os.open(os.path.dirname(made), os.O_RDONLY)
    try:
        assert forks.remove(work_fd, os.path.basename(made))
    finally:
        os.close(work_fd)


@contextmanager
def forked(overlay: Overlay, name: str) -> Iterator[Overlay]:
    made = make_fork(overlay, name)
    upper, work = (os.path.join(made, part) for part in (forking.UPPER, forking.WORK))
    with opened(overlay.options._replace(upper=upper, work=work)) as found:
        yield found
    _remove(made)


FORKS = {
    "fork": _operation(write("dir/file", b"new"), snapshot("a"), fork("a")),
    "mount of a fork": _operation(
        write("dir/file", b"new"), unlink("one"), snapshot("a"), mount_fork("a"), write("big", b"x")
    ),
    "rollback beside a fork": _operation(
        snapshot("a"), write("big", b"first"), snapshot("b"), unlink("big"), roll_back_beside_fork("b", "a"), mkdir("x")
    ),
}


@pytest.mark.parametrize("name", FORKS)
def test_killed_while_forking_leaves_tree_of_before_or_after(
    name: str, stage: Stage, figures: dict[str, Figures], request: pytest.FixtureRequest
) -> None:
    limit = None if request.config.getoption("--long") else 40
    found = sweep_kills(stage.scene(name, FORKS[name]), limit)
    figures.setdefault("kill sweep, forks", Figures()).__iadd__(found)
    assert found.outcomes["killed"] >= 20
    assert not found.bad, "\n".join(found.bad)


def test_error_of_any_call_refuses_a_fork(
    stage: Stage, figures: dict[str, Figures], request: pytest.FixtureRequest
) -> None:
    scene = stage.scene("fork", FORKS["fork"])
    limit = None if request.config.getoption("--long") else ERRORS
    found = sweep_errors(scene, sampled(error_points(scene.unharmed.calls), limit))
    figures.setdefault("errno sweep, forks", Figures()).__iadd__(found)
    assert found.points
    assert not found.bad, "\n".join(found.bad)
