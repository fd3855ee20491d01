"""One contract, played on every implementation of the overlay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.case import ENGINE, FUSE, KERNEL, PYFUSE3, Case
from tests.contract.cases import CASES
from tests.contract.differences import KERNEL_DIFFERENCES
from tests.contract.play import play
from tests.contract.targets import EngineTarget, FuseTarget, KernelTarget, Target
from tests.contract.tree import Format

_ON_KERNEL = [case for case in CASES if KERNEL in case.targets]
# The default run plays every case on the engine and on the kernel, in the first of its formats, every eighth case in
# another format too, and of the matrices every third cell through the mount; without the lane every 24th case. The
# long run plays everything.
_CELLS_ON_MOUNT, _OTHER_FORMATS, _WITHOUT_LANE = 3, 8, 24


def _plays(target: str) -> list[object]:
    """The cases of a target in the formats they have."""
    plays: list[object] = []
    for at, case in enumerate(case for case in CASES if target in case.targets):
        for nth, form in enumerate(case.formats):
            by_default = (at + nth) % _OTHER_FORMATS == 0 if nth else not _only_in_long_run(target, case, at)
            by_default = by_default and (target != PYFUSE3 or (at + nth) % _WITHOUT_LANE == 0)
            marks = [] if by_default else [pytest.mark.long]
            plays.append(pytest.param(case, form, id=f"{case.id}-{form.value}", marks=marks))
    return plays


def _only_in_long_run(target: str, case: Case, at: int) -> bool:
    return target in (FUSE, PYFUSE3) and case.cell and at % _CELLS_ON_MOUNT != 0


@pytest.fixture(scope="module")
def fuse() -> Iterator[FuseTarget]:
    target = FuseTarget()
    yield target
    target.close()


@pytest.fixture(scope="module")
def fuse_without_lane() -> Iterator[FuseTarget]:
    target = FuseTarget(lane=False)
    yield target
    target.close()


@pytest.mark.parametrize(("case", "form"), _plays(ENGINE))
def test_engine_keeps_the_contract(case: Case, form: Format) -> None:
    play(case, EngineTarget(), form)


@pytest.mark.parametrize(("case", "form"), _plays(FUSE))
def test_mount_keeps_the_contract(case: Case, form: Format, fuse: Target) -> None:
    play(case, fuse, form)


@pytest.mark.parametrize(("case", "form"), _plays(PYFUSE3))
def test_mount_without_lane_keeps_the_contract(case: Case, form: Format, fuse_without_lane: Target) -> None:
    play(case, fuse_without_lane, form)


@pytest.mark.parametrize("case", _ON_KERNEL, ids=lambda case: case.id)
def test_kernel_agrees_or_differs_as_the_table_says(case: Case) -> None:
    deviation = KERNEL_DIFFERENCES.get(case.id)
    play(case if deviation is None else deviation.applied(case), KernelTarget(), Format.OVERLAY)


def test_every_difference_speaks_of_a_case_that_the_kernel_plays() -> None:
    assert KERNEL_DIFFERENCES.keys() <= {case.id for case in _ON_KERNEL}


def test_case_names_are_unique() -> None:
    names = [case.id for case in CASES]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
