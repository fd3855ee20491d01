"""Snapshots and rollbacks, struck at each of their system calls: the tree is that of before or after."""

import pytest

from overlayfs.overlay.engine import Overlay

from .operations import Operation, Step, chmod, mkdir, rename, unlink, write
from .sweep import Figures, Scene, Stage, error_points, sampled, sweep_errors, sweep_kills

ERRORS = 60


def snapshot(name: str) -> Step:
    def step(overlay: Overlay) -> None:
        overlay.snapshot(name)

    return step


def roll_back(name: str) -> Step:
    def step(overlay: Overlay) -> None:
        overlay.roll_back(name)

    return step


def _operation(*steps: Step) -> Operation:
    everywhere = frozenset({b".", b"./dir", b"./moved", b"./again", b"./lowtree"})
    return Operation(steps, everywhere, for_kernel=False)


OPERATIONS = {
    "snapshot": _operation(write("dir/file", b"new"), snapshot("a"), write("dir/file", b"newer"), mkdir("x")),
    "snapshot of hard links": _operation(chmod("one", 0o600), snapshot("a"), chmod("dir", 0o700)),
    "snapshot of a renamed directory": _operation(rename("lowtree", "moved"), snapshot("a"), rename("moved", "again")),
    "rollback": _operation(snapshot("a"), write("dir/file", b"new"), unlink("big"), roll_back("a"), mkdir("x")),
    "rollback past a snapshot": _operation(
        write("big", b"first"), snapshot("a"), unlink("big"), snapshot("b"), mkdir("x"), roll_back("a"), unlink("big")
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


def test_error_of_any_call_changes_nothing(
    scene: Scene, figures: dict[str, Figures], request: pytest.FixtureRequest
) -> None:
    limit = None if request.config.getoption("--long") else ERRORS
    found = sweep_errors(scene, sampled(error_points(scene.unharmed.calls), limit))
    figures.setdefault("errno sweep, snapshots", Figures()).__iadd__(found)
    assert found.points
    assert not found.bad, "\n".join(found.bad)
