"""The contract, played through our mount: with the fast lane, bare and in the event loop, and with pyfuse3 alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.case import FUSE, PYFUSE3, Case
from tests.contract.choice import plays
from tests.contract.play import play
from tests.contract.targets import FuseTarget, Target
from tests.contract.tree import Format


@pytest.fixture(scope="module")
def fuse() -> Iterator[FuseTarget]:
    target = FuseTarget()
    yield target
    target.close()


@pytest.fixture(scope="module")
def fuse_in_loop() -> Iterator[FuseTarget]:
    target = FuseTarget(bare=False)
    yield target
    target.close()


@pytest.fixture(scope="module")
def fuse_without_lane() -> Iterator[FuseTarget]:
    target = FuseTarget(lane=False)
    yield target
    target.close()


@pytest.mark.parametrize(("case", "form"), plays(FUSE))
def test_mount_keeps_the_contract(case: Case, form: Format, fuse: Target) -> None:
    play(case, fuse, form)


@pytest.mark.parametrize(("case", "form"), plays(FUSE, thinly=True))
def test_mount_in_the_event_loop_keeps_the_contract(case: Case, form: Format, fuse_in_loop: Target) -> None:
    play(case, fuse_in_loop, form)


@pytest.mark.parametrize(("case", "form"), plays(PYFUSE3, thinly=True))
def test_mount_without_lane_keeps_the_contract(case: Case, form: Format, fuse_without_lane: Target) -> None:
    play(case, fuse_without_lane, form)
