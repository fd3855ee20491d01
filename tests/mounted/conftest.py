"""Directories and mounts for one test, gone after it whatever happened."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.stack import Stack


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory on the disk that every user may pass through."""
    yield from _scratch()


@pytest.fixture(scope="module")
def module_scratch() -> Iterator[Path]:
    """The same, for all the tests of a module."""
    yield from _scratch()


def _scratch() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="overlayfs-mounted-"))
    base.chmod(0o755)
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def new_stack(scratch: Path) -> Iterator[Callable[..., Stack]]:
    """Makes stacks of empty layers (arguments as `Stack.make`), not mounted yet; unmounts them at the end."""
    made: list[Stack] = []

    def make(lowers: int = 1, *, has_upper: bool = True) -> Stack:
        base = scratch / f"stack{len(made)}"
        base.mkdir()
        made.append(Stack.make(base, lowers, has_upper=has_upper))
        return made[-1]

    yield make
    for stack in made:
        stack.unmount()


@pytest.fixture
def stack(new_stack: Callable[..., Stack]) -> Stack:
    """One lower layer and an upper; not mounted yet."""
    return new_stack()


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the full sweep was asked for."""
    return bool(request.config.getoption("--long"))
