"""How does work go on after a command has returned? In a process that inherits nothing from the command."""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


def wait_until_ended(pid_fd: int, timeout_s: float | None = None) -> bool:
    """Wait until the process of a pidfd has ended (a zombie counts as ended); False after the timeout."""
    poller = select.poll()
    poller.register(pid_fd, select.POLLIN)
    return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


def leave_behind(work: Callable[[], None], after: int | None = None) -> None:
    """Do `work` in a background process; with `after` (a pidfd, which is closed here) once that process has ended."""
    if os.fork():
        if after is not None:
            os.close(after)
        return
    try:
        kept = _detach(after)
        if kept is not None:
            wait_until_ended(kept)
        work()
    finally:
        os._exit(0)


def start_behind(work: Callable[[socket.socket], None]) -> socket.socket:
    """Do `work` in a background process, which has one end of a connection; the other end."""
    import socket  # few commands need it

    ours, its = socket.socketpair()
    if os.fork():
        its.close()
        return ours
    try:
        kept = _detach(its.fileno())
        assert kept is not None
        its.detach()
        work(socket.socket(fileno=kept))
    finally:
        os._exit(0)


def _detach(kept: int | None) -> int | None:
    """Close everything inherited but the descriptor `kept`, which may get another number."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    if kept is not None:
        kept = fcntl.fcntl(kept, fcntl.F_DUPFD_CLOEXEC, 3)
        os.closerange(3, kept)
    os.closerange(3 if kept is None else kept + 1, os.sysconf("SC_OPEN_MAX"))
    return kept
