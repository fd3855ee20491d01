"""The contract, played on the engine alone, and on the kernel's overlayfs as the oracle."""

from __future__ import annotations

import pytest

from tests.contract.case import ENGINE, KERNEL, Case
from tests.contract.cases import CASES
from tests.contract.choice import plays
from tests.contract.differences import KERNEL_DIFFERENCES
from tests.contract.play import play
from tests.contract.targets import EngineTarget, KernelTarget
from tests.contract.tree import Format

_ON_KERNEL = [case for case in CASES if KERNEL in case.targets]


@pytest.mark.parametrize(("case", "form"), plays(ENGINE))
def test_engine_keeps_the_contract(case: Case, form: Format) -> None:
    play(case, EngineTarget(), form)


@pytest.mark.parametrize("case", _ON_KERNEL, ids=lambda case: case.id)
def test_kernel_agrees_or_differs_as_the_table_says(case: Case) -> None:
    deviation = KERNEL_DIFFERENCES.get(case.id)
    play(case if deviation is None else deviation.applied(case), KernelTarget(), Format.OVERLAY)


def test_every_difference_speaks_of_a_case_that_the_kernel_plays() -> None:
    assert KERNEL_DIFFERENCES.keys() <= {case.id for case in _ON_KERNEL}


def test_case_names_are_unique() -> None:
    names = [case.id for case in CASES]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
