"""Whatever is done, ours behaves as a plain directory does, and so does the kernel's overlayfs."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from overlayfs.overlay.options import OverlayOptions

from .bare import EngineTarget
from .machine import ThreeWays
from .paths import MountedTarget
from .steps import Target


class EngineMachine(ThreeWays):
    """Ours is the engine without a mount."""

    def open_ours(self, place: Path, lowers: Sequence[Path], upper: Path, work: Path) -> Target:
        options = OverlayOptions(lowers=tuple(bytes(lower) for lower in lowers), upper=bytes(upper), work=bytes(work))
        return EngineTarget(options)


class MountMachine(ThreeWays):
    """Ours is the mount program's mount."""

    def open_ours(self, place: Path, lowers: Sequence[Path], upper: Path, work: Path) -> Target:
        return MountedTarget(place, lowers, upper, work)


class MountWithoutLaneMachine(ThreeWays):
    """Ours is the mount program's mount, served by pyfuse3 alone."""

    def open_ours(self, place: Path, lowers: Sequence[Path], upper: Path, work: Path) -> Target:
        return MountedTarget(place, lowers, upper, work, "lane=off")


def _settings(examples: int, steps: int, *, derandomize: bool) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=derandomize,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def test_engine_agrees_with_plain_directory_and_kernel() -> None:
    run_state_machine_as_test(EngineMachine, settings=_settings(12, 40, derandomize=True))


def test_mount_agrees_with_plain_directory_and_kernel() -> None:
    run_state_machine_as_test(MountMachine, settings=_settings(6, 40, derandomize=True))


def test_mount_without_lane_agrees_with_plain_directory_and_kernel() -> None:
    run_state_machine_as_test(MountWithoutLaneMachine, settings=_settings(2, 40, derandomize=True))


@pytest.mark.long
def test_engine_agrees_over_20_000_steps() -> None:
    run_state_machine_as_test(EngineMachine, settings=_settings(400, 50, derandomize=False))


@pytest.mark.long
def test_mount_agrees_over_20_000_steps() -> None:
    run_state_machine_as_test(MountMachine, settings=_settings(400, 50, derandomize=False))


@pytest.mark.long
def test_mount_without_lane_agrees_over_10_000_steps() -> None:
    run_state_machine_as_test(MountWithoutLaneMachine, settings=_settings(200, 50, derandomize=False))
