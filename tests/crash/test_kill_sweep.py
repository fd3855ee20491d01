"""The process killed before each system call that changes something: the tree is that of before or after."""

import os
from dataclasses import replace

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import WhiteoutFormat

from .operations import MUTATIONS, Operation, mkdir, set_xattr
from .supervisor import Ending, Fault, Gate, Kill, supervise
from .sweep import Figures, Stage, names_below, opened, options_for, sweep_kills
from .trees import differences, seen_through

SAMPLE = 3
LONG_POINTS = 400


@pytest.mark.parametrize("name", MUTATIONS)
def test_killed_operation_leaves_tree_of_before_or_after(name: str, stage: Stage, figures: dict[str, Figures]) -> None:
    scene = stage.scene(name, MUTATIONS[name])
    found = sweep_kills(scene, SAMPLE)
    figures.setdefault("kill sweep, sample", Figures()).__iadd__(found)
    assert found.points
    assert not found.bad, "\n".join(found.bad)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("whiteout", WhiteoutFormat)
def test_no_point_of_any_operation_is_bad(whiteout: WhiteoutFormat, stage: Stage, figures: dict[str, Figures]) -> None:
    found = Figures()
    for name in MUTATIONS:
        found += sweep_kills(stage.scene(name, MUTATIONS[name], whiteout), None)
    figures[f"kill sweep, {whiteout.value}, full"] = found
    assert not found.bad, "\n".join(found.bad)
    assert found.points >= LONG_POINTS
    assert found.outcomes["not reached"] == 0


def test_killed_mount_can_be_mounted_again(stage: Stage, figures: dict[str, Figures]) -> None:
    """The mount that cleans up after a crash is killed at each of its own calls."""
    scene = stage.scene("mkdir over whiteout", MUTATIONS["mkdir over whiteout"])
    crash = [index for index, call in enumerate(scene.unharmed.calls) if call.mutates][-2]

    def mount(gate: Gate) -> None:
        gate.arm()
        Overlay.open(scene.options).close()

    scene.strike(Fault(crash, Kill()))
    clean = supervise(mount)
    found = Figures()
    for index in [index for index, call in enumerate(clean.calls) if call.mutates]:
        crashed = scene.strike(Fault(crash, Kill()))
        run = supervise(mount, Fault(index, Kill()))
        found.add("killed" if run.ending is Ending.KILLED else "not reached")
        state = scene.look(with_kernel=False)
        allowed = scene.states[crashed.completed : crashed.completed + 2]
        if not any(not scene.compare(one, state.ours) and state.work <= one.work for one in allowed):
            found.accuse("bad", f"killed at {run.struck}: {sorted(state.work)}")
    figures["kill sweep, mounting"] = found
    assert not found.bad, "\n".join(found.bad)


def test_sweep_finds_the_bad_point_of_two_calls_passed_off_as_one(stage: Stage) -> None:
    """Negative control: what is not atomic is found, at the very call between its halves."""

    def careless(overlay: Overlay) -> object:
        mkdir("gone")(overlay)
        return set_xattr("gone", b"user.mark", b"value")(overlay)

    scene = stage.scene("careless", Operation((careless,), frozenset({b"."})))
    found = sweep_kills(scene, None)
    assert found.outcomes["neither old nor new"] >= 1, found.bad
    assert "setxattr" in found.bad[-1]


def test_sweep_finds_leftovers(stage: Stage) -> None:
    """Negative control: what a mount does not clean is reported."""
    scene = stage.scene("mkdir", MUTATIONS["mkdir"])
    report = scene.report_of(scene.unharmed)._replace(work=frozenset())
    scene = replace(
        scene,
        states=[state._replace(work=frozenset()) for state in scene.states],
        unharmed=replace(scene.unharmed, sent=report),
    )
    assert any("left in workdir" in line for line in sweep_kills(scene, 1).bad)


def test_rubbish_in_workdir_is_removed_by_the_mount(stage: Stage) -> None:
    scene = stage.scene("mkdir", MUTATIONS["mkdir"])
    scene.reset()
    with opened(scene.options):
        clean = names_below(scene.layers.work)
    rubbish = scene.layers.work / "work"
    rubbish.mkdir(exist_ok=True)
    (rubbish / "#1f").mkdir()
    (rubbish / "#1f" / "inside").write_bytes(b"x")
    (rubbish / "#20").write_bytes(b"y")
    os.mknod(rubbish / "#21", 0o020000, 0)
    with opened(scene.options) as overlay:
        assert names_below(scene.layers.work) == clean
        assert not differences(scene.states[0].ours, seen_through(overlay))


def test_killed_owner_leaves_no_lock(stage: Stage) -> None:
    """The lock of upper and workdir goes with the process; nothing has to be cleared by hand."""
    scene = stage.scene("mkdir", MUTATIONS["mkdir"])
    assert scene.strike(Fault(0, Kill())).ending is Ending.KILLED
    with opened(options_for(scene.layers, scene.whiteout)) as overlay:
        assert overlay.getattr(1).ino == 1
