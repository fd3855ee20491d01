"""What the whole suite shares: the choice between what every change must pass and the full sweeps."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the full sweeps (marked 'long')")


def pytest_configure() -> None:
    """Give every test process its own mounts, and its programs the signals that a suite in the background ignores."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.geteuid() == 0:
        _leave_the_mounts_of_others()


def _leave_the_mounts_of_others() -> None:
    """Enter a mount namespace.

    A test that enters a new mount namespace copies all mounts it sees, and so keeps those of others alive; and what a
    killed run leaves mounted goes with it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "cannot have mounts of our own")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the full sweeps unless asked for: a skipped test would look like one that cannot run here."""
    if config.getoption("--long"):
        return
    sweeps = [item for item in items if item.get_closest_marker("long")]
    if sweeps:
        config.hook.pytest_deselected(items=sweeps)
        items[:] = [item for item in items if item not in sweeps]
