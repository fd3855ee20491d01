"""Scratch space for the fault tests, and their figures in pytest's summary."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .sweep import Figures, Stage
from .trees import make_lowers

FIGURES = pytest.StashKey[dict[str, Figures]]()


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A directory in memory where layers can be made in a millisecond; on disk if it has no user xattrs."""
    for place in ("/dev/shm", None):
        base = Path(tempfile.mkdtemp(prefix="overlayfs-crash-", dir=place))
        if _has_user_xattrs(base):
            break
        base.rmdir()
    try:
        yield base
    finally:
        shutil.rmtree(base)


@pytest.fixture(autouse=True)
def _modes_as_asked() -> Iterator[None]:
    """As in the daemon: modes are what the engine says."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def _has_user_xattrs(base: Path) -> bool:
    try:
        os.setxattr(base, "user.overlayfs-test", b"")
        os.removexattr(base, "user.overlayfs-test")
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def lowers(memory: Path) -> tuple[Path, ...]:
    return make_lowers(memory)


@pytest.fixture(scope="session")
def stage(memory: Path, lowers: tuple[Path, ...]) -> Stage:
    return Stage(lowers, memory / "stage")


@pytest.fixture
def scratch(memory: Path) -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(dir=memory))
    try:
        yield base
    finally:
        shutil.rmtree(base)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, Figures]:
    """Figures by sweep, printed at the end."""
    return request.config.stash.setdefault(FIGURES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, found in sorted(config.stash.get(FIGURES, {}).items()):
        terminalreporter.write_line(f"{name}: {found}")
