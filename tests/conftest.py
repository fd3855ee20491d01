"""What the whole suite shares: the choice between what every change must pass and the full sweeps."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the full sweeps (marked 'long')")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the full sweeps unless asked for: a skipped test would look like one that cannot run here."""
    if config.getoption("--long"):
        return
    sweeps = [item for item in items if item.get_closest_marker("long")]
    if sweeps:
        config.hook.pytest_deselected(items=sweeps)
        items[:] = [item for item in items if item not in sweeps]
