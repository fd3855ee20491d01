"""One contract, played on every implementation of the overlay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.case import ENGINE, FUSE, KERNEL, Case
from tests.contract.cases import CASES
from tests.contract.differences import KERNEL_DIFFERENCES
from tests.contract.play import play
from tests.contract.targets import EngineTarget, FuseTarget, KernelTarget, Target
from tests.contract.tree import Format

_ON_KERNEL = [case for case in CASES if KERNEL in case.targets]
# Every case runs in the first of its formats; the engine runs every third one in another too, by turns, and the long
# run has them all. The formats are the engine's business: through the mount they add little.
_EVERY = {ENGINE: 3, FUSE: 12}


def _plays(target: str) -> list[object]:
    """The cases of a target in the formats they have."""
    plays: list[object] = []
    for at, case in enumerate(case for case in CASES if target in case.targets):
        for nth, form in enumerate(case.formats):
            extra = nth and (at + nth) % _EVERY[target]
            plays.append(
                pytest.param(case, form, id=f"{case.id}-{form.value}", marks=[pytest.mark.long] if extra else [])
            )
    return plays


@pytest.fixture(scope="module")
def fuse() -> Iterator[Target]:
    target = FuseTarget()
    yield target
    target.close()


@pytest.mark.parametrize(("case", "form"), _plays(ENGINE))
def test_engine_keeps_the_contract(case: Case, form: Format) -> None:
    play(case, EngineTarget(), form)


@pytest.mark.parametrize(("case", "form"), _plays(FUSE))
def test_mount_keeps_the_contract(case: Case, form: Format, fuse: Target) -> None:
    play(case, fuse, form)


@pytest.mark.parametrize("case", _ON_KERNEL, ids=lambda case: case.id)
def test_kernel_agrees_or_differs_as_the_table_says(case: Case) -> None:
    deviation = KERNEL_DIFFERENCES.get(case.id)
    play(case if deviation is None else deviation.applied(case), KernelTarget(), Format.OVERLAY)


def test_every_difference_speaks_of_a_case_that_the_kernel_plays() -> None:
    assert KERNEL_DIFFERENCES.keys() <= {case.id for case in _ON_KERNEL}


def test_case_names_are_unique() -> None:
    names = [case.id for case in CASES]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
