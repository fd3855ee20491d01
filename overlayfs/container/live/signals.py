"""How is the program of a live container found, sent signals, and ended?

`bundle/pid` names the program of runc; that of bubblewrap has no name, and the `run` that started it passes signals on.
A pid is only believed while the container is in use, and for the first process of a pid namespace.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ...image.oci.errors import ImageError, InUseError, InvalidError
from ..containers import Container, Containers
from ..supervise import FORWARDED, PID
from .freezer import resume

_AFTER_KILL_S: Final = 10.0
_LONGEST_POLL_S: Final = 1e6
"""poll(2) takes an int of milliseconds."""


def program_of(container: Container, bundle: Path) -> int | None:
    """The pid of the program; None if the container does not run, not under runc, or in another pid namespace."""
    if container.process is None or not container.is_in_use or not container.process.is_of_our_namespace:
        return None
    try:
        pid = int((bundle / PID).read_text())
        return pid if _is_first_of_namespace(pid) else None
    except (OSError, ValueError):
        return None


def _is_first_of_namespace(pid: int) -> bool:
    """proc(5), NSpid of /proc/pid/status: the pid in each namespace, the innermost last."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            numbers = line.split()[1:]
            return len(numbers) > 1 and numbers[-1] == "1"
    return False


def send(container: Container, bundle: Path, number: int) -> None:
    """Send the program a signal. Raises InvalidError if it does not run, or cannot be sent this signal.

    A paused program goes on, as docker has it: otherwise neither SIGTERM nor, with cgroups of version 1, SIGKILL would
    end it.
    """
    if not container.is_active or container.process is None:
        raise InvalidError(f"the container {container.name} is not running")
    if container.mountpoint and number == signal.SIGKILL:
        raise InvalidError(
            f"{container.name} is mounted, and a killed daemon leaves a dead mount: see overlayfs umount"
        )
    program = program_of(container, bundle)
    if program is None and number not in (*FORWARDED, signal.SIGKILL):
        raise InvalidError(f"{container.name} runs under bwrap, which passes no {signal.Signals(number).name} on")
    with suppress(ProcessLookupError):
        pid_fd = container.process.pidfd() if program is None else os.pidfd_open(program)
        try:
            if program is None or program_of(container, bundle) == program:
                signal.pidfd_send_signal(pid_fd, number)
                resume(program or container.process.pid)
        finally:
            os.close(pid_fd)


def once_free(containers: Containers, container: Container, use: Callable[[], Container]) -> Container:
    """What `use` returns, which makes this process the container's user; it is called again after each `cp` that was
    faster. Raises the errors of `use`."""
    while True:
        try:
            return use()
        except InUseError:
            now = containers.again(container)
            if now.is_active:
                raise
        ends = Ends(containers, [now])
        ends.wait(now, None)
        ends.close()


class Ends:
    """Waits for containers to be free again: their processes of ours, which clean up, have ended. A command that starts
    a run hands it over to the process that serves it."""

    def __init__(self, containers: Containers, awaited: Sequence[Container]) -> None:
        """Of `containers` only records are read: their store may be closed. Raises InvalidError for a container that a
        process of another pid namespace uses."""
        self._containers = containers
        self._open: dict[str, int] = {}
        for container in awaited:
            self._hold(container)

    def _hold(self, container: Container) -> None:
        if container.process is None:
            return
        try:
            self._open[container.id] = container.process.pidfd()
        except ProcessLookupError:  # perhaps since the record was read
            self._follow(container)

    def wait(self, container: Container, until: float | None) -> bool:
        """Whether the container is free at the time `until` (of the monotonic clock; None waits for ever)."""
        while (fd := self._open.get(container.id)) is not None:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            left_s = float("inf") if until is None else max(0.0, until - time.monotonic())
            if poller.poll(min(left_s, _LONGEST_POLL_S) * 1000):
                os.close(self._open.pop(container.id))
                self._follow(container)
            elif left_s <= _LONGEST_POLL_S:
                return False
        return True

    def _follow(self, container: Container) -> None:
        """Wait for the next process of the same run, if there is one; a `cp` that comes after the run is none."""
        with suppress(ImageError):
            now = self._containers.again(container)
            is_same_run = (now.started, now.ended) == (container.started, container.ended)
            if is_same_run and now.process != container.process:
                self._hold(now)

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def after_kill() -> float:
    """Until when to wait for a killed program."""
    return time.monotonic() + _AFTER_KILL_S
