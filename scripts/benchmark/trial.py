"""One measurement: a fresh mount of one peer, one row run on it, its result checked, all taken away again.

Neighbours: rows.py says what is run, peers.py how it is mounted, commands.py runs it. Single-threaded; the
mounts and daemons of a trial end with it, whatever happens.
"""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import machine
from .commands import Client, Clock, TrialFailed, run_command
from .layers import Sizes, Stack, Stacks
from .peers import MountPlan, Peer

MOUNT_LIMIT_S = 30.0
TRIAL_LIMIT_S = 300.0
END_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Expected:
    """What the merged tree holds, as the kernel's overlayfs shows it: every peer must show the same."""

    entries: int
    top: tuple[str, ...]
    long_listing: tuple[int, int]
    archive_bytes: int
    contents: tuple[int, str]
    capable: int
    matches: str
    small_paths: tuple[str, ...]
    small_bytes: int
    usr_entries: int


@dataclass(frozen=True, slots=True)
class Bench:
    """What all trials share."""

    place: Path
    scratch: Path
    sizes: Sizes
    stacks: Stacks
    archive: Path
    walker: Path
    on_disk: bool
    expected: Expected | None = None


class Trial:
    """A peer's mount of a stack with an upper of its own, and the means to run things on it."""

    def __init__(self, bench: Bench, peer: Peer, stack: Stack) -> None:
        self.bench = bench
        self.peer = peer
        self.sizes = bench.sizes
        self.clock = Clock(TRIAL_LIMIT_S)
        self.daemons: set[int] = set()
        self.directory = bench.place / "trial"
        self.plan = MountPlan(
            lowers=stack.lowers if peer.reads_marks else stack.plain_lowers,
            upper=self.directory / "upper",
            work=self.directory / "work",
            mountpoint=self.directory / "mnt",
        )
        self.random = random.Random(1)

    @property
    def root(self) -> Path:
        return self.plan.mountpoint

    @property
    def upper(self) -> Path:
        return self.plan.upper

    @property
    def expected(self) -> Expected:
        assert self.bench.expected is not None
        return self.bench.expected

    def __enter__(self) -> Self:
        for directory in (self.plan.upper, self.plan.work, self.plan.mountpoint):
            directory.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()
        machine.delete_tree(self.directory)
        for left in self.bench.scratch.iterdir():
            left.unlink() if left.is_file() else shutil.rmtree(left, ignore_errors=True)

    def mount(self) -> float:
        """Start the peer as its users do; seconds until its program returned, when its daemon serves."""
        return self.mount_by(*self.peer.mount_argv(self.plan))

    def mount_by(self, *argv: str) -> float:
        """Seconds of a program that mounts at `root`."""
        seconds = self.start(*argv)
        if not self.is_mounted():
            raise TrialFailed("mount: success reported, but nothing is mounted")
        return seconds

    def is_mounted(self) -> bool:
        return self.root in machine.mounts_below(self.root)

    def start(self, *argv: str) -> float:
        """Seconds of a program that leaves daemons behind; they end with the trial. Its output is then in `output`."""
        before = machine.descendants()
        try:
            return run_command(list(argv), Clock(MOUNT_LIMIT_S), self.output)
        finally:
            self.daemons |= machine.descendants() - before

    def unmount(self) -> None:
        """Unmount, and see the daemon end; without that, the upper would not be complete."""
        for mountpoint in machine.mounts_below(self.root):
            machine.unmount(mountpoint)
        for pid in self.daemons:
            machine.end_process(pid, END_LIMIT_S)
        self.daemons.clear()
        for mountpoint in machine.mounts_below(self.root):
            machine.unmount(mountpoint)

    def command(self, *argv: str, cwd: Path | None = None) -> float:
        """Seconds that a program took; its output is then in `output`."""
        home = {"HOME": str(self.bench.scratch), "TMPDIR": str(self.bench.scratch)}
        return run_command(list(argv), self.clock, self.output, cwd, home)

    @property
    def output(self) -> Path:
        return self.bench.scratch / "output"

    def output_text(self) -> str:
        return self.output.read_text(errors="surrogateescape")

    def client(self, workload: str, **arguments: object) -> tuple[float, Any]:
        """(seconds, answer) of one of the workloads of workloads.py."""
        with Client(workload, arguments, self.clock) as client:
            return client.run()

    def ask(self, workload: str, **arguments: object) -> Any:
        """The answer alone, for checks."""
        return self.client(workload, **arguments)[1]

    def path(self, relative: str) -> str:
        return str(self.root / relative)

    def expect(self, what: str, found: object, wanted: object) -> None:
        """A wrong answer is no result, however fast it came."""
        if found != wanted:
            raise TrialFailed(f"wrong result: {what}: {found!r:.100} instead of {wanted!r:.100}")
