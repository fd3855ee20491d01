"""How is an engine started on one peer, asked, and taken away again, storage and processes included?

Neighbours: podman.py and dockerd.py are the two engines, steps.py says what they are asked. Single-threaded. An engine
is a context: what it started has ended after it, by process ID, and what it mounted is unmounted.
"""

import os
import resource
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from .. import machine
from ..commands import Clock, TrialFailed, run_command
from ..peers import Peer

STEP_LIMIT_S = 900.0
SETTLE_LIMIT_S = 120.0
END_LIMIT_S = 2.0
END_ROUNDS = 3
LOOK_S = 0.02
FILES = 65536


def limits() -> dict[str, int]:
    """Limits for processes in containers, at most our own hard ones: an engine's defaults may be above what it can set.

    podman lowers its own limit of processes to pid_max, so a container's cannot be above that either.
    """
    processes = int(Path("/proc/sys/kernel/pid_max").read_text())
    return {"nofile": at_most(resource.RLIMIT_NOFILE, FILES), "nproc": at_most(resource.RLIMIT_NPROC, processes)}


def at_most(kind: int, wanted: int) -> int:
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def version(program: str) -> str:
    done = subprocess.run([program, "--version"], env=machine.ENVIRONMENT, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]


class Engine(ABC):
    """One engine with its storage in `directory`, and sockets, whose paths must be short, in `scratch`; both new."""

    name: ClassVar[str]
    client: str
    programs: ClassVar[tuple[str, ...]]

    def __init__(self, peer: Peer, directory: Path, scratch: Path) -> None:
        self.peer = peer
        self.directory = directory
        self.scratch = scratch
        self.environment = {"HOME": str(scratch), "TMPDIR": str(directory / "tmp")}
        self._before: set[int] = set()
        self._resident: set[int] = set()

    @classmethod
    def missing(cls) -> str | None:
        """Why the engine cannot take part, if it cannot."""
        path = machine.ENVIRONMENT["PATH"]
        absent = [program for program in cls.programs if shutil.which(program, path=path) is None]
        return f"not installed: {', '.join(absent)} (scripts/setup engines)" if absent else None

    @classmethod
    def versions(cls) -> dict[str, str]:
        """What each program says of itself."""
        return {program: version(program) for program in cls.programs}

    @abstractmethod
    def set_up(self) -> None:
        """Configure, and start what is needed. Raises TrialFailed."""

    def __enter__(self) -> Self:
        self._before = machine.descendants()
        try:
            for path in (self.directory, self.directory / "tmp", self.scratch):
                path.mkdir(parents=True)
            self.set_up()
        except BaseException:
            self.take_away()
            raise
        self._resident = machine.descendants() - self._before
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.take_away()

    def started(self) -> set[int]:
        """Living processes that came since the engine was entered, however detached."""
        return machine.descendants() - self._before

    def shut_down(self) -> Iterable[int]:
        """Processes to be ended first, in this order."""
        return ()

    def take_away(self) -> None:
        for pid in self.shut_down():
            machine.end_process(pid, END_LIMIT_S)
        for directory in (self.directory, self.scratch):
            for mountpoint in machine.mounts_below(directory):
                machine.unmount(mountpoint)
        for _ in range(END_ROUNDS):  # a process that ends may leave children, which are found in the next round
            for pid in self.started():
                machine.end_process(pid, END_LIMIT_S)
        for directory in (self.directory, self.scratch):
            machine.delete_tree(directory)

    def settle(self) -> None:
        """Await what an engine does after its answer: a container's clean-up must not be in the next figure."""
        end = time.monotonic() + SETTLE_LIMIT_S
        while left := self.started() - self._resident:
            if time.monotonic() > end:
                raise TrialFailed(f"does not end after its step: {', '.join(sorted(map(machine.command_line, left)))}")
            time.sleep(LOOK_S)

    def call(self, *argv: str) -> float:
        """Seconds of one command of the engine's client; its output is then in `output`."""
        os.sync()
        clock = Clock(STEP_LIMIT_S)
        seconds = run_command([self.client, *argv], clock, self.output, None, self.environment)
        self.settle()
        return seconds

    @property
    def output(self) -> Path:
        return self.scratch / "output"

    def output_text(self) -> str:
        return self.output.read_text(errors="surrogateescape")

    def expect(self, what: str, found: object, wanted: object) -> None:
        """A wrong answer is no result, however fast it came."""
        if found != wanted:
            raise TrialFailed(f"wrong result: {what}: {found!r:.100} instead of {wanted!r:.100}")
