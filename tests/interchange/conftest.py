"""Mounts of these tests are made in a mount namespace of their own.

Nothing then outlives the run, and nobody who copies the machine's namespace keeps our mounts busy.
"""

from __future__ import annotations

import pytest

from tests.contract import libc


@pytest.fixture(scope="session", autouse=True)
def _private_mounts() -> None:
    libc.leave_mount_namespace()
