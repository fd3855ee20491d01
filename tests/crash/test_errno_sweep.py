"""Each call of each operation fails once: the process lives, the answer is true, nothing is half done."""

import errno
import os
import traceback
from collections.abc import Sequence
from contextlib import suppress

import pytest

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import FsyncPolicy, MountError, WhiteoutFormat

from .operations import MUTATIONS, OBSERVATIONS, Operation, Step, chmod, mkdir, sync, write
from .supervisor import Ending, Fail, Fault, Gate, supervise
from .sweep import (
    ErrorPoint,
    Figures,
    Scene,
    Stage,
    error_points,
    fingerprint,
    names_below,
    opened,
    options_for,
    sampled,
    sweep_errors,
)
from .syscall_table import SYNCS
from .trees import PAGES, seen_through

OPERATIONS = MUTATIONS | OBSERVATIONS
SAMPLE = 3


def _points(scene: Scene, limit: int | None) -> Sequence[ErrorPoint]:
    """A sample takes a third of its points from the observing calls, the rest from the changing ones."""
    points = error_points(scene.unharmed.calls)
    if limit is None:
        return points
    changing = [point for point in points if scene.unharmed.calls[point.number].mutates]
    observing = [point for point in points if not scene.unharmed.calls[point.number].mutates]
    share = limit // 3 if changing else limit
    return [*sampled(changing, limit - share), *sampled(observing, share)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_failing_call_gives_its_errno_or_a_right_tree(name: str, stage: Stage, figures: dict[str, Figures]) -> None:
    scene = stage.scene(name, OPERATIONS[name])
    found = sweep_errors(scene, _points(scene, SAMPLE))
    figures.setdefault("errno sweep, sample", Figures()).__iadd__(found)
    assert not found.bad, "\n".join(found.bad)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("whiteout", WhiteoutFormat)
def test_no_call_of_an_operation_fails_badly(
    whiteout: WhiteoutFormat, name: str, stage: Stage, figures: dict[str, Figures]
) -> None:
    scene = stage.scene(name, OPERATIONS[name], whiteout)
    found = sweep_errors(scene, _points(scene, None))
    figures.setdefault(f"errno sweep, {whiteout.value}, full", Figures()).__iadd__(found)
    assert not found.bad, "\n".join(found.bad)
    assert found.outcomes["another call"] <= found.points // 20


@pytest.mark.parametrize("name", ["read lower file", "read file hidden by a layer"])
def test_file_whose_xattrs_cannot_be_listed_is_closed(name: str, stage: Stage) -> None:
    scene = stage.scene(name, OPERATIONS[name])
    calls = scene.unharmed.calls
    found = sweep_errors(scene, [point for point in error_points(calls) if calls[point.number].name == "flistxattr"])
    assert found.points
    assert not found.bad, "\n".join(found.bad)


def test_sweep_sees_a_partial_change_and_an_untrue_success(stage: Stage) -> None:
    """Negative control: a step that ignores a failure, and one that fails half done, are both found."""

    def ignore_failure(overlay: Overlay) -> object:
        with suppress(OSError):
            chmod("mine", 0o600)(overlay)
        return None

    def fail_half_done(overlay: Overlay) -> object:
        mkdir("first")(overlay)
        return mkdir("second")(overlay)

    outcomes = {}
    for step in (ignore_failure, fail_half_done):
        operation = Operation((step,), frozenset({b"."}))
        scene = stage.scene(step.__name__, operation)
        outcomes[step.__name__] = sweep_errors(scene, _points(scene, 18)).outcomes
    assert outcomes["ignore_failure"]["ok but wrong"] >= 1
    assert outcomes["fail_half_done"]["partial"] >= 1


def test_failed_fsync_is_not_acknowledged_on_retry(stage: Stage) -> None:
    """The kernel reports lost pages once; a second fsync that says yes would be a lie."""
    operation = Operation((write("dir/file", b"new"), sync("dir/file")), frozenset({b".", b"./dir"}))
    scene = stage.scene("fsync", operation)
    calls = scene.unharmed.calls
    last = max(index for index, call in enumerate(calls) if call.name in ("fsync", "fdatasync"))
    scene.reset()

    def twice(gate: Gate) -> list[int | None]:
        answers: list[int | None] = []
        with opened(scene.options) as overlay:
            gate.arm()
            operation.steps[0](overlay)
            for _ in range(3):
                try:
                    operation.steps[1](overlay)
                    answers.append(0)
                except OSError as error:
                    answers.append(error.errno)
            gate.disarm()
        return answers

    run = supervise(twice, Fault(last, Fail(errno.EIO)))
    assert run.sent == [errno.EIO, errno.EIO, errno.EIO]


def test_copy_whose_fsync_failed_is_made_again(stage: Stage) -> None:
    """After a failed fsync the copy's pages may be gone: the next try copies anew, and syncs that."""
    step = write("big", b"x", len(PAGES))
    scene = stage.scene("copy-up", Operation((step,), frozenset({b"."})))
    syncs = [index for index, call in enumerate(scene.unharmed.calls) if call.name in ("fsync", "fdatasync")]
    assert syncs, "auto: the copy is synced before it is published"

    def try_twice(gate: Gate) -> tuple[int | None, int | None]:
        with opened(scene.options) as overlay:
            gate.arm()
            first = _errno_of(step, overlay)
            second = _errno_of(step, overlay)
            gate.disarm()
        return first, second

    scene.reset()
    run = supervise(try_twice, Fault(syncs[0], Fail(errno.EIO)))
    assert run.sent == (errno.EIO, None)
    names = [call.name for call in run.calls]
    after = names[syncs[0] + 1 :]
    copying = {"copy_file_range", "sendfile", "pwrite64", "write", "ioctl"}
    assert copying & set(after[: after.index(names[syncs[0]])])
    assert not scene.compare(scene.states[1], scene.look(with_kernel=False).ours)


def _errno_of(step: Step, overlay: Overlay) -> int | None:
    try:
        step(overlay)
    except OSError as error:
        return error.errno
    return None


def test_volatile_never_syncs(stage: Stage) -> None:
    operation = MUTATIONS["fsync lower file after write"]
    scene = stage.scene("fsync lower file after write", operation)
    scene.reset()

    def work(gate: Gate) -> None:
        with opened(options_for(scene.layers, fsync=FsyncPolicy.VOLATILE)) as overlay:
            gate.arm()
            for step in operation.steps:
                step(overlay)
            gate.disarm()

    assert not [call for call in supervise(work).calls if call.name in SYNCS]


@pytest.mark.parametrize("limit", [20, pytest.param(None, marks=pytest.mark.long)])
def test_failing_call_while_mounting_refuses_the_mount(
    limit: int | None, stage: Stage, figures: dict[str, Figures]
) -> None:
    """A mount that cannot be made says so and leaves nothing open; the next finds everything as it was."""
    scene = stage.scene("mkdir", OPERATIONS["mkdir"])
    options = options_for(scene.layers)  # the format is probed as well

    def mount(gate: Gate) -> tuple[str, int]:
        before = len(os.listdir("/proc/self/fd"))
        gate.arm()
        try:
            overlay = Overlay.open(options)
        except MountError as refusal:
            gate.disarm()
            return f"refused: {refusal}", len(os.listdir("/proc/self/fd")) - before
        except OSError:
            gate.disarm()
            return f"raised: {traceback.format_exc()}", 0
        gate.disarm()
        tree = seen_through(overlay)
        overlay.close()
        return "right" if not scene.compare(scene.states[0], tree) else "wrong", 0

    scene.reset()
    points = error_points(supervise(mount).calls)
    found = Figures()
    for point in sampled(points, limit):
        scene.reset()
        unmounted = fingerprint([*scene.lowers])
        run = supervise(mount, Fault(point.number, point.action))
        found.add("died" if run.ending is not Ending.RETURNED else "refused" if run.sent != ("right", 0) else "mounted")
        _judge_mounting(scene, run.sent, f"{run.struck} {point.action}", found)
        assert fingerprint([*scene.lowers]) == unmounted
    figures[f"errno sweep, mounting, {'sample' if limit else 'full'}"] = found
    assert not found.bad, "\n".join(found.bad)


def _judge_mounting(scene: Scene, sent: object, where: str, found: Figures) -> None:
    if isinstance(sent, tuple) and sent[0].startswith("raised"):
        found.accuse("no MountError", f"{where}: {sent[0][-300:]}")
    elif not isinstance(sent, tuple) or sent[0] == "wrong":
        found.accuse("wrong tree or death", where)
    elif sent[1]:
        found.accuse("descriptors leaked", f"{where}: {sent}")
    elif "\n" in str(sent[0]):
        found.accuse("refusal is not one line", f"{where}: {sent[0]}")
    elif lines := scene.compare(scene.states[0], scene.look(with_kernel=False).ours):
        found.accuse("wrong tree at the next mount", f"{where}: {lines}")
    elif left := names_below(scene.layers.work) - scene.allowed_work():
        found.accuse("left in workdir", f"{where}: {sorted(left)}")
