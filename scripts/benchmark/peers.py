"""Who is compared, and how is each mounted: one table of command lines.

Neighbours: trial.py mounts with them. Facts only, no state.
"""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from . import machine

OURS = "ours"
FUSE_OVERLAYFS = "fuse-overlayfs"
KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class MountPlan:
    """Where one mount takes its layers from (top first), and where it goes."""

    lowers: tuple[Path, ...]
    upper: Path
    work: Path
    mountpoint: Path


def overlay_options(plan: MountPlan, extra: tuple[str, ...]) -> str:
    lowers = ":".join(map(str, plan.lowers))
    return ",".join((f"lowerdir={lowers},upperdir={plan.upper},workdir={plan.work}", *extra))


def kernel_command(program: str, plan: MountPlan, extra: tuple[str, ...]) -> list[str]:
    return [program, "-t", "overlay", "overlay", "-o", overlay_options(plan, extra), str(plan.mountpoint)]


def program_command(program: str, plan: MountPlan, extra: tuple[str, ...]) -> list[str]:
    return [program, "-o", overlay_options(plan, extra), str(plan.mountpoint)]


def unionfs_command(program: str, plan: MountPlan, extra: tuple[str, ...]) -> list[str]:
    branches = ":".join([f"{plan.upper}=RW", *(f"{lower}=RO" for lower in plan.lowers)])
    return [program, "-o", ",".join(("cow", *extra)), branches, str(plan.mountpoint)]


@dataclass(frozen=True, slots=True)
class Peer:
    """One filesystem under test. `reads_marks`: it understands overlayfs's whiteouts in lower layers."""

    name: str
    program: str
    command: Callable[[str, MountPlan, tuple[str, ...]], list[str]]
    reads_marks: bool = True
    extra: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The name without mount options."""
        return self.name.partition("+")[0]

    def mount_argv(self, plan: MountPlan) -> list[str]:
        return self.command(self.program, plan, self.extra)

    def missing(self) -> str | None:
        """Why it cannot take part, if it cannot."""
        if shutil.which(self.program, path=machine.ENVIRONMENT["PATH"]) is None:
            return f"{self.program} is not installed"
        return None

    def version(self) -> str:
        """What the program says of itself, its own line first where libfuse puts others before it."""
        argv = [self.program, "--version"]
        environment = machine.ENVIRONMENT
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, errors="replace", check=False)
        lines = (done.stdout + done.stderr).splitlines()
        own = [line for line in lines if Path(self.program).name in line and "version" in line]
        return (own or lines or ["unknown"])[0]


def known_peers(ours: str) -> dict[str, Peer]:
    """Each peer by name, in the order of measurement; `ours` is the path of the mount program under test."""
    peers = (
        Peer(OURS, ours, program_command),
        Peer(FUSE_OVERLAYFS, "fuse-overlayfs", program_command),
        Peer("unionfs-fuse", "unionfs", unionfs_command, reads_marks=False),
        Peer(KERNEL, "mount", kernel_command),
    )
    return {peer.name: peer for peer in peers}


def choose_peers(names: list[str], ours: str) -> list[Peer]:
    """Peers as the user names them: NAME, or NAME+option+option… for the same program with mount options.

    Raises KeyError with the unknown name.
    """
    known = known_peers(ours)
    chosen = []
    for name in names:
        base, *options = name.split("+")
        chosen.append(replace(known[base], name=name, extra=tuple(options)))
    return chosen
