"""How long does a mount wait for a processor that other programs keep busy?

A daemon that polls by sched_yield(2) beside a busy program gives it the processor for milliseconds after each request,
and unpacking an archive takes twenty times as long. So a daemon that may poll is compared with one that may not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.mounted.program import COMMAND, ENVIRONMENT, Place, make_place, wait_for_mounts

TURNS, FILES = 20, 5  # the daemons are asked in turns, so that all other load of the machine delays both alike
MOST = 6  # times as long: a daemon that stops polling waits 0.8 to 1.3 times as long, one that always polls 30 to 50


@pytest.fixture
def places() -> Iterator[list[Place]]:
    """Two, in memory: requests that wait for a disk would hide the difference."""
    made = [make_place(Path(tempfile.mkdtemp(prefix="overlayfs-busy-", dir="/dev/shm"))) for _ in range(2)]
    for place in made:
        (place.base / "bottom/directory").mkdir()
    yield made
    for place in made:
        place.clear()


@pytest.fixture
def other_processor() -> Iterator[int]:
    """A processor for others: this thread is kept on another one, so that the daemons never wait for it."""
    allowed = os.sched_getaffinity(0)
    ours, other = sorted(allowed)[:2]
    os.sched_setaffinity(0, {ours})
    yield other
    os.sched_setaffinity(0, allowed)


@contextmanager
def _started(*command: str, on: int) -> Iterator[int]:
    """A program on one processor; its process ID.

    It stays in this session: the kernel schedules the programs of one session as a group, see sched(7), autogroup.
    """
    with subprocess.Popen(command, env=ENVIRONMENT) as process:
        try:
            os.sched_setaffinity(process.pid, {on})
            yield process.pid
        finally:
            process.kill()


def _unpack(directory: Path) -> None:
    """A directory of some files, with the system calls of tar(1)."""
    directory.mkdir()
    for number in range(FILES):
        fd = os.open(directory / f"file{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, b"content")
        os.utime(fd, (1, 1))
        os.fchown(fd, 1, 1)
        os.fchmod(fd, 0o644)
        os.close(fd)


def _delay(pid: int) -> int:
    """How long the first thread of a process has waited for a processor, in ns: the second field of schedstat, see the
    kernel's Documentation/scheduler/sched-stats.rst."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="polling hands the only processor to the client")
@pytest.mark.parametrize("loop", ["bare", "trio"])
def test_polling_does_not_delay_a_daemon_beside_a_busy_program(
    loop: str, places: list[Place], other_processor: int
) -> None:
    with ExitStack() as stack:
        daemons = []
        for place, options in zip(places, (f"{places[0].options},poll=0", places[1].options), strict=True):
            command = (*COMMAND, "-f", "-o", options, str(place.target))
            daemons.append(stack.enter_context(_started(*command, on=other_processor)))
            wait_for_mounts(place.is_mounted)
            if loop == "trio":  # which the rename of a lower directory needs
                (place.target / "directory").rename(place.target / "other")
        stack.enter_context(_started(sys.executable, "-S", "-c", "while True: pass", on=other_processor))
        before = [_delay(pid) for pid in daemons]
        for turn in range(TURNS):
            for place in places:
                _unpack(place.target / f"new{turn}")
        sleeping, polling = (_delay(pid) - earlier for pid, earlier in zip(daemons, before, strict=True))
    assert polling < MOST * max(sleeping, 1_000_000)
