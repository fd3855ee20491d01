"""A place to build in; and an ordinary user with a store, as the containers' tests have one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.build.test_build import Site
from tests.cli.container.test_run_as_user import home, machine, poor, top
from tests.prepared import Prepared

__all__ = ["home", "machine", "poor", "prepared", "site", "top"]


@pytest.fixture(scope="module")
def prepared() -> Iterator[Prepared]:
    with Prepared() as process:
        yield process


@pytest.fixture
def site(tmp_path: Path, prepared: Prepared) -> Site:
    return Site(tmp_path, prepared)
