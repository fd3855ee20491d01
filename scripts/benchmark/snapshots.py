"""How soon is a tree clean again: by snapshot and rollback, and by what people do without them?

Neighbours: rows.py puts these runs into the table. Only overlayfs has snapshots; copying the tree and mounting it anew
are measured on all filesystems. The calls are those of overlayfs's Python API, in this process.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from . import machine
from .commands import TrialFailed
from .daemons import must_have_daemon
from .peers import OURS
from .trial import Trial

CHANGED_FILES = 1_000
CHANGE = "changed by the benchmark\n"
TESTS = 200
TEST_MODULE = """\
import pytest

@pytest.mark.overlay(lowers={lowers!r})
@pytest.mark.parametrize("number", range({tests}))
def test_of_a_tree(overlay, number):
    assert not (overlay.path / "changed").exists()
    (overlay.path / "changed").touch()

@pytest.mark.parametrize("number", range({tests}))
def test_of_nothing(tmp_path, number):
    assert not (tmp_path / "changed").exists()
    (tmp_path / "changed").touch()
"""


def api_of(trial: Trial) -> ModuleType:
    """The calls to a live mount; imported only where there is overlayfs, and before the clock starts."""
    if trial.peer.base != OURS:
        raise TrialFailed("has no snapshots")
    from overlayfs.fuse import commanding

    return commanding


def take_snapshot(trial: Trial) -> None:
    _call(api_of(trial).take_snapshot, trial)


def roll_back(trial: Trial) -> None:
    _call(api_of(trial).roll_back, trial)


def _call(function: Callable[[bytes], object], trial: Trial) -> None:
    from overlayfs.overlay.options import MountError

    try:
        function(os.fsencode(trial.root))
    except MountError as error:
        raise TrialFailed(str(error)) from error


def changed_names(trial: Trial) -> list[str]:
    return list(trial.expected.small_paths[:CHANGED_FILES])


def change(trial: Trial) -> None:
    """Append to 1,000 files of the lower layers."""
    trial.ask("append", paths=[trial.path(name) for name in changed_names(trial)], line=CHANGE)


def prepare_snapshot(trial: Trial) -> None:
    api_of(trial)
    change(trial)


def prepare_rollback(trial: Trial) -> None:
    take_snapshot(trial)
    change(trial)


def copied_up_in(snapshots: int) -> Callable[[Trial], None]:
    """Copy 1,000 files up, as many after each snapshot, so that the tree is the same with any number of them."""

    def prepare(trial: Trial) -> None:
        api_of(trial)
        for number in range(snapshots):
            for name in changed_names(trial)[number::snapshots]:
                os.utime(trial.path(name))
            take_snapshot(trial)

    return prepare


def run_fork(trial: Trial) -> float:
    """Until the fork, which a new process serves, shows its root."""
    api_of(trial)
    from overlayfs.api import Mount

    nobody = SimpleNamespace(end=lambda: None)  # the trial unmounts it
    begin = time.perf_counter()
    with Mount(trial.root, None, cast(Any, nobody)).fork() as fork:
        names = os.listdir(fork.path)
        seconds = time.perf_counter() - begin
    trial.expect("names", tuple(sorted(names)), trial.expected.top)
    return seconds


def is_changed(trial: Trial, name: str) -> bool:
    return Path(trial.path(name)).read_bytes().endswith(CHANGE.encode())


def check_clean(trial: Trial) -> None:
    for name in changed_names(trial):
        trial.expect(name, is_changed(trial, name), False)


def check_changed(trial: Trial) -> None:
    for name in changed_names(trial):
        trial.expect(name, is_changed(trial, name), True)


def timed(command: Callable[[Trial], None]) -> Callable[[Trial], float]:
    """Seconds of the call, as a program waits for it."""

    def run(trial: Trial) -> float:
        api_of(trial)
        begin = time.perf_counter()
        command(trial)
        return time.perf_counter() - begin

    return run


def daemon_time(command: Callable[[Trial], None]) -> Callable[[Trial], float]:
    """Milliseconds of processor time that the daemon takes for it."""

    def run(trial: Trial) -> float:
        must_have_daemon(trial)
        before = machine.processor_nanoseconds(trial.daemons)
        command(trial)
        return (machine.processor_nanoseconds(trial.daemons) - before) / 1e6

    return run


def run_copy(trial: Trial) -> float:
    """A fresh copy of the whole tree, to work in."""
    return trial.command("cp", "-a", str(trial.root), str(trial.directory / "copy"))


def run_remount(trial: Trial) -> float:
    """Unmount, put an empty upper in place, and mount again. The former upper's removal is not timed."""
    begin = time.perf_counter()
    trial.unmount()
    for directory in (trial.plan.upper, trial.plan.work):
        directory.rename(directory.with_name(directory.name + ".former"))
        directory.mkdir()
    trial.mount()
    return time.perf_counter() - begin


def prepare_tests(trial: Trial) -> None:
    api_of(trial)
    text = TEST_MODULE.format(lowers=[str(lower) for lower in trial.plan.lowers], tests=TESTS)
    (trial.directory / "test_cost.py").write_text(text)


def run_tests(trial: Trial) -> float:
    """Milliseconds that a test with a clean tree takes more than one with an empty directory."""
    seconds = [_run_pytest(trial, name) for name in ("test_of_a_tree", "test_of_nothing")]
    return (seconds[0] - seconds[1]) / TESTS * 1e3


def _run_pytest(trial: Trial, name: str) -> float:
    place = trial.directory
    seconds = trial.command(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={place / 'pytest'}"),
        *(f"--rootdir={place}", f"{place / 'test_cost.py'}::{name}"),
        cwd=place,
    )
    trial.expect("tests", f"{TESTS} passed" in trial.output_text(), True)
    return seconds
