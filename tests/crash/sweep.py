"""One operation, struck at one system call: what may the tree be afterwards?

`Scene` runs an operation on fresh uppers: unharmed to learn its states and calls, then once for each fault.
"""

import os
import shutil
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from overlayfs.overlay import forks
from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import FsyncPolicy, OverlayOptions, WhiteoutFormat

from .mounting import kernel_overlay
from .operations import Operation
from .supervisor import Call, Ending, Fail, Fault, Gate, Kill, Run, Short, supervise
from .syscall_table import SHORTENABLE, plausible_errors
from .trees import Layers, Tree, differences, make_upper, seen_at, seen_through, without_times

Item = TypeVar("Item")


@dataclass(slots=True)
class Figures:
    """What a sweep found, for the summary: points by outcome, and a line for each bad one."""

    points: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, outcome: str) -> None:
        self.points += 1
        self.outcomes[outcome] += 1

    def accuse(self, outcome: str, line: str) -> None:
        self.outcomes[outcome] += 1
        self.bad.append(f"{outcome}: {line}")

    def __iadd__(self, other: "Figures") -> "Figures":
        self.points += other.points
        self.outcomes += other.outcomes
        self.bad += other.bad
        return self

    def __str__(self) -> str:
        parts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"{self.points} points: {parts or 'none'}; {len(self.bad)} bad"


class State(NamedTuple):
    """The tree after some steps: in our engine and in the kernel's overlayfs, and what the workdir holds."""

    ours: Tree
    kernel: Tree | None
    work: frozenset[str]


class Report(NamedTuple):
    """What a child tells of its run: values of the steps it took, or where and how it failed.

    `descriptors` is how many more are open after the mount was closed than before it was opened.
    """

    values: tuple[object, ...]
    failed_step: int | None
    error: int | None
    broken: str | None
    live: Tree | None
    work: frozenset[str]
    descriptors: int
    retried: Tree | None
    complaint: str | None


@dataclass(slots=True)
class Scene:
    """An operation on its layers.  `base` is scratch space that is emptied before every run."""

    name: str
    operation: Operation
    lowers: tuple[Path, ...]
    base: Path
    whiteout: WhiteoutFormat
    states: list[State] = field(default_factory=list)
    unharmed: Run = field(default_factory=Run)

    @property
    def layers(self) -> Layers:
        return Layers(self.lowers, self.base / "upper", self.base / "work")

    @property
    def options(self) -> OverlayOptions:
        return options_for(self.layers, self.whiteout, metacopy=self.operation.metacopy)

    def learn(self) -> None:
        """Run without a fault, every prefix of the steps, and keep what is seen and called."""
        for count in range(len(self.operation.steps) + 1):
            self.reset()
            run = supervise(lambda gate, count=count: self._act(gate, count, False))  # type: ignore[misc]
            assert run.ending is Ending.RETURNED
            report = self.report_of(run)
            if report.live is None or report.failed_step is not None:
                raise AssertionError(f"{self.name} fails without a fault: {report}")
            self.unharmed = run
            with_kernel = self.operation.for_kernel and self.whiteout is WhiteoutFormat.OVERLAY
            state = self.look(with_kernel=with_kernel)
            lines = differences(state.ours, report.live)
            assert not lines, f"{self.name}: a remount changes the tree: {lines}"
            self.states.append(state)

    def reset(self) -> None:
        empty(self.base)
        make_upper(self.layers, self.whiteout)

    def look(self, *, with_kernel: bool) -> State:
        """Mount again, as after a crash, and look; then let the kernel look, which may change the upper."""
        overlay = Overlay.open(self.options)
        try:
            ours = seen_through(overlay)
            work = names_below(self.layers.work)
        finally:
            overlay.close()
        kernel = None
        if with_kernel:
            with kernel_overlay(self.lowers, self.layers.upper, self.layers.work, self.base) as mount:
                kernel = seen_at(mount)
        return State(ours, kernel, work)

    def report_of(self, run: Run) -> Report:
        assert isinstance(run.sent, Report)
        return run.sent

    def _act(self, gate: Gate, count: int, retry: bool) -> Report:
        """In the child: take `count` steps, armed; then look; after a failure (`retry`) take the rest."""
        descriptors = len(os.listdir("/proc/self/fd"))
        overlay = Overlay.open(self.options)
        values: list[object] = []
        error: int | None = None
        broken: str | None = None
        gate.arm()
        try:
            for number, step in enumerate(self.operation.steps[:count]):
                values.append(step(overlay))
                gate.completed(number + 1)
        except OSError as failure:
            gate.disarm()
            error = failure.errno
        except Exception:  # noqa: BLE001  a finding
            gate.disarm()
            broken = traceback.format_exc()
        gate.disarm()
        work = names_below(self.layers.work)
        failed = len(values) if error is not None or broken else None
        live = retried = complaint = None
        try:
            live = seen_through(overlay)
            if retry and failed is not None:
                retried = self._retry(overlay, failed)
            overlay.close()
            descriptors = len(os.listdir("/proc/self/fd")) - descriptors
        except Exception:  # noqa: BLE001  a finding
            complaint = traceback.format_exc()
        return Report(tuple(values), failed, error, broken, live, work, descriptors, retried, complaint)

    def _retry(self, overlay: Overlay, failed_step: int) -> Tree:
        for step in self.operation.steps[failed_step:]:
            step(overlay)
        return seen_through(overlay)

    def strike(self, fault: Fault, retry: bool = False) -> Run:
        """Run the whole operation on a fresh upper with one fault."""
        self.reset()
        retry = retry and self.operation.repeatable
        return supervise(lambda gate: self._act(gate, len(self.operation.steps), retry), fault)

    def _loose(self) -> frozenset[bytes]:
        moved = self.operation.moved if self.whiteout is WhiteoutFormat.OCI else frozenset()
        return self.operation.parents | moved

    def compare(self, expected: State, found: Tree) -> list[str]:
        loose = self._loose()
        return differences(without_times(expected.ours, loose), without_times(found, loose))

    def compare_kernel(self, expected: State, found: Tree | None) -> list[str]:
        if expected.kernel is None or found is None:
            return []
        loose = self._loose()
        return differences(without_times(expected.kernel, loose), without_times(found, loose))

    def allowed_work(self) -> frozenset[str]:
        """Names that the workdir may hold after the operation, whatever became of it."""
        return frozenset().union(*(state.work for state in self.states), self.report_of(self.unharmed).work)


class Stage:
    """The layers on which operations are struck.  What they do unharmed is learnt once for all sweeps."""

    def __init__(self, lowers: tuple[Path, ...], base: Path) -> None:
        self._lowers = lowers
        self._base = base
        self._learnt: dict[tuple[str, WhiteoutFormat], Scene] = {}

    def scene(self, name: str, operation: Operation, whiteout: WhiteoutFormat = WhiteoutFormat.OVERLAY) -> Scene:
        """The scene of `operation`, learnt; a name stands for the same operation always."""
        key = (name, whiteout)
        if key not in self._learnt:
            scene = Scene(name, operation, self._lowers, self._base, whiteout)
            scene.learn()
            self._learnt[key] = scene
        return self._learnt[key]


def options_for(
    layers: Layers,
    whiteout: WhiteoutFormat | None = None,
    *,
    metacopy: bool = False,
    fsync: FsyncPolicy = FsyncPolicy.AUTO,
) -> OverlayOptions:
    return OverlayOptions(
        lowers=tuple(os.fsencode(lower) for lower in layers.lowers),
        upper=os.fsencode(layers.upper),
        work=os.fsencode(layers.work),
        whiteout=whiteout,
        metacopy=metacopy,
        fsync=fsync,
    )


def names_below(root: Path) -> frozenset[str]:
    return frozenset(
        os.path.relpath(os.path.join(parent, name), root)
        for parent, directories, files in os.walk(root)
        for name in directories + files
        if name != os.fsdecode(forks.FILE)  # a lock, which may stay
    )


def empty(base: Path) -> None:
    for child in list(base.iterdir()) if base.exists() else []:
        shutil.rmtree(child)
    base.mkdir(exist_ok=True)


def fingerprint(roots: Iterable[Path]) -> list[tuple[str, int, int, int]]:
    """Changes if anything beneath `roots` is written: a change time cannot be set back."""
    return [
        (path, seen.st_ino, seen.st_ctime_ns, seen.st_size)
        for root in roots
        for path in [str(root), *(os.path.join(root, name) for name in sorted(names_below(root)))]
        for seen in [os.lstat(path)]
    ]


def latest(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """All, or the last `limit - 1` and the middle one: what is published is at stake at the end."""
    if limit is None or len(items) <= limit:
        return items
    return [items[len(items) // 2], *items[len(items) - limit + 1 :]]


def sampled(items: Sequence[Item], limit: int | None) -> Iterator[Item]:
    """All, or `limit` of them spread evenly with both ends in."""
    if limit is None or len(items) <= limit:
        yield from items
    else:
        yield from (items[round(place * (len(items) - 1) / max(1, limit - 1))] for place in range(limit))


def sweep_kills(scene: Scene, limit: int | None) -> Figures:
    """Kill before each call that changes something; the tree is that of before or after the step."""
    figures = Figures()
    lowers = fingerprint(scene.lowers)
    points = [index for index, call in enumerate(scene.unharmed.calls) if call.mutates]
    for index in latest(points, limit):
        run = scene.strike(Fault(index, Kill()))
        figures.add("killed" if run.ending is Ending.KILLED else "not reached")
        where = f"{scene.name}, killed at call {index} {_text(run.struck)}"
        _judge_kill(scene, run, where, figures)
    if fingerprint(scene.lowers) != lowers:
        figures.accuse("lower changed", scene.name)
    return figures


def _judge_kill(scene: Scene, run: Run, where: str, figures: Figures) -> None:
    try:
        found = scene.look(with_kernel=scene.states[0].kernel is not None)
    except Exception:  # noqa: BLE001  a finding
        figures.accuse("cannot mount", f"{where}: {traceback.format_exc()}")
        return
    allowed = scene.states[run.completed : run.completed + 2]
    lines = [scene.compare(state, found.ours) for state in allowed]
    if all(lines):
        figures.accuse("neither old nor new", f"{where}: {lines}")
        return
    agreed = allowed[lines.index([])]
    if unlike := scene.compare_kernel(agreed, found.kernel):
        figures.accuse("kernel sees another tree", f"{where}: {unlike}")
    if left := found.work - scene.allowed_work():
        figures.accuse("left in workdir", f"{where}: {sorted(left)}")


class ErrorPoint(NamedTuple):
    number: int
    action: Fail | Short


def error_points(calls: Sequence[Call]) -> list[ErrorPoint]:
    """Every armed call with each error it may plausibly return, and short writes."""
    points = []
    for index, call in enumerate(calls):
        points += [ErrorPoint(index, Fail(error)) for error in plausible_errors(call.name, call.mutates)]
        if call.name in SHORTENABLE:
            points.append(ErrorPoint(index, Short()))
    return points


def sweep_errors(scene: Scene, points: Iterable[ErrorPoint]) -> Figures:
    """Let one call fail; success means the right tree, failure that of before, and the process lives."""
    figures = Figures()
    lowers = fingerprint(scene.lowers)
    for number, point in enumerate(points):
        run = scene.strike(Fault(point.number, point.action), retry=number % 2 == 1)
        where = f"{scene.name}, call {point.number} {_text(run.struck)} {_action_text(point.action)}"
        if run.ending is not Ending.RETURNED:
            figures.add("died")
            figures.accuse("death", where)
            continue
        if run.struck is not None and run.struck.name != scene.unharmed.calls[point.number].name:
            figures.add("another call")  # the calls came in another order: the fault was not meant for this one
            continue
        _judge_error(scene, run, point, where, figures)
    if fingerprint(scene.lowers) != lowers:
        figures.accuse("lower changed", scene.name)
    return figures


def _judge_error(scene: Scene, run: Run, point: ErrorPoint, where: str, figures: Figures) -> None:
    report = scene.report_of(run)
    if report.broken:
        figures.add("broke")
        figures.accuse("unhandled exception", f"{where}:\n{report.broken}")
    elif report.error is None:
        figures.add("succeeded")
        if report.values != scene.report_of(scene.unharmed).values:
            figures.accuse("ok but wrong", f"{where}: returned {report.values!r}"[:500])
    else:
        figures.add("failed")
        if isinstance(point.action, Short) or report.error != point.action.errno:
            figures.accuse("wrong errno", f"{where}: {os.strerror(report.error)}")
    _judge_tree(scene, report, where, figures)
    _judge_remains(scene, report, where, figures)


def _judge_tree(scene: Scene, report: Report, where: str, figures: Figures) -> None:
    reached = len(scene.states) - 1 if report.failed_step is None else report.failed_step
    verdict = "ok but wrong" if report.failed_step is None else "partial"
    if report.live is None or report.complaint:
        figures.accuse("unusable afterwards", f"{where}: {report.complaint}")
        return
    if lines := scene.compare(scene.states[reached], report.live):
        figures.accuse(verdict, f"{where}: in the live mount {lines}")
        return
    if report.retried is not None:
        reached = len(scene.states) - 1
        if lines := scene.compare(scene.states[reached], report.retried):
            figures.accuse("wrong after retry", f"{where}: {lines}")
            return
    try:
        found = scene.look(with_kernel=False)
    except Exception:  # noqa: BLE001  a finding
        figures.accuse("cannot mount", f"{where}: {traceback.format_exc()}")
        return
    if lines := scene.compare(scene.states[reached], found.ours):
        figures.accuse(verdict, f"{where}: after a remount {lines}")
    elif left := found.work - scene.allowed_work():
        figures.accuse("left in workdir", f"{where}: after a remount {sorted(left)}")


def _judge_remains(scene: Scene, report: Report, where: str, figures: Figures) -> None:
    """A failure leaves nothing.  What was replaced and could not be removed is left for the next mount."""
    left = report.work - scene.allowed_work()
    if left and report.error is not None:
        figures.accuse("left in workdir", f"{where}: {sorted(left)}")
    if report.descriptors and not report.complaint:
        figures.accuse("descriptors leaked", f"{where}: {report.descriptors}")


def _text(call: Call | None) -> str:
    return "(not reached)" if call is None else f"{call.name}({call.text})"


def _action_text(action: Fail | Short) -> str:
    return "writes one byte" if isinstance(action, Short) else f"fails with {os.strerror(action.errno)}"


@contextmanager
def opened(options: OverlayOptions) -> Iterator[Overlay]:
    overlay = Overlay.open(options)
    try:
        yield overlay
    finally:
        overlay.close()
