"""An ordinary user with a store, as the containers' tests have one."""

from __future__ import annotations

from tests.cli.container.test_run_as_user import home, machine, poor, top

__all__ = ["home", "machine", "poor", "top"]
