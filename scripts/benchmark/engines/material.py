"""What do the engines work on, and what must come out: one real tree as an archive, two recipes, digests.

Neighbours: steps.py gives it to the engines. The kernel's overlayfs and a chroot say what the right results are, so no
engine is its own judge. Runs before any timing.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import machine
from ..commands import Clock, run_command
from ..layers import copy_layers
from ..peers import KERNEL, MountPlan, known_peers

IMAGE = "localhost/bench:base"
ARCHIVE = "tree.tar"
RECIPE = "Containerfile"
LONG_RECIPE = "Containerfile.long"
UNPACKED = "/new"
BUILT = ("/opt", "/usr")
DIGEST = """
{ find "$@" -printf '%y %m %U:%G %l %p\\n'; find "$@" -type f -exec sha256sum {} +; } | LC_ALL=C sort | sha256sum
"""
"""Everything of a tree but its times, in one line; the tree has GNU find, as its directories are named in `$@`."""

STEPS = (
    ("ADD", f"{ARCHIVE} /opt/tree/"),
    ("RUN", "cp -a /opt/tree/usr/share /opt/share"),
    ("RUN", "rm -rf /usr/share/zoneinfo /usr/share/perl5 /opt/tree/usr/lib"),
    ("RUN", "chmod -R g+w /usr/sbin /opt/tree/etc"),
    ("RUN", "find /usr/share/bash-completion /usr/share/debconf -type f -exec sed -i '$a # changed' {} +"),
    ("RUN", "mkdir /opt/many; for number in $(seq 500); do echo $number >/opt/many/$number; done"),
    ("COPY", f"{RECIPE} /opt/recipe"),
    ("RUN", "mv /opt/share /opt/moved; ln -s moved /opt/share"),
)
"""Many new files, deletions, changes and a rename of what is below, as the builds of real images have them."""

MORE_STEPS = (
    ("WORKDIR", "/srv/work"),
    ("COPY", f"{RECIPE} recipe"),
    ("RUN", "sort recipe >sorted"),
    ("RUN", "rm recipe"),
)
"""Four small steps, which leave the trees alone whose digest is taken."""

LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Material:
    """`context` is the directory to build in, with archive and recipe; digests are what DIGEST says of right trees."""

    context: Path
    names: frozenset[str]
    unpacked_digest: str
    built_digest: str

    @property
    def archive(self) -> Path:
        return self.context / ARCHIVE


def recipe(steps: Iterable[tuple[str, str]]) -> str:
    return "\n".join([f"FROM {IMAGE}", *(" ".join(step) for step in steps), ""])


class Workbench:
    """The tree, mounted by the kernel; commands outside and inside it."""

    def __init__(self, root: Path, context: Path, output: Path) -> None:
        self.root = root
        self.context = context
        self._output = output
        self._clock = Clock(LIMIT_S)

    def command(self, *argv: str) -> str:
        """What a program printed. Raises TrialFailed."""
        run_command(list(argv), self._clock, self._output)
        return self._output.read_text(errors="surrogateescape")

    def inside(self, script: str, *arguments: str) -> str:
        return self.command("chroot", str(self.root), "/bin/sh", "-ec", script, "sh", *arguments)

    def unpack(self, target: str) -> None:
        directory = self.root / target.strip("/")
        directory.mkdir(parents=True)
        self.command("tar", "-xf", str(self.context / ARCHIVE), "-C", str(directory))

    def do(self, instruction: str, argument: str) -> None:
        """One step as an engine would do it."""
        if instruction == "RUN":
            self.inside(argument)
            return
        source, target = argument.split()
        if instruction == "ADD":
            self.unpack(target)
        else:
            shutil.copy2(self.context / source, self.root / target.strip("/"))


def archive_names(listing: str) -> frozenset[str]:
    """Names below the root, of `tar -t` of an archive whose names begin with `./`."""
    return frozenset(name.removeprefix("./").rstrip("/") for name in listing.splitlines()) - {""}


def learn(bench: Workbench) -> Material:
    """Archive the tree, then do by hand what the engines will do."""
    archive = str(bench.context / ARCHIVE)
    bench.command("tar", "-C", str(bench.root), "--numeric-owner", "-cf", archive, ".")
    names = archive_names(bench.command("tar", "--quoting-style=literal", "-tf", archive))
    for name, steps in ((RECIPE, STEPS), (LONG_RECIPE, STEPS + MORE_STEPS)):
        recipe_file = bench.context / name
        recipe_file.write_text(recipe(steps))
        recipe_file.chmod(0o644)
    bench.unpack(UNPACKED)
    unpacked = bench.inside(DIGEST, UNPACKED)
    for instruction, argument in STEPS:
        bench.do(instruction, argument)
    return Material(bench.context, names, unpacked, bench.inside(DIGEST, *BUILT))


def make_material(directory: Path, layers: list[Path], output: Path) -> Material:
    """The material, in the new `directory`; only what the engines need of it is left there."""
    work, context = directory / "work", directory / "context"
    for path in (work, context):
        path.mkdir(parents=True)
    lowers = copy_layers(work, layers)
    plan = MountPlan(tuple(lowers), work / "upper", work / "index", work / "root")
    for path in (plan.upper, plan.work, plan.mountpoint):
        path.mkdir()
    run_command(known_peers("")[KERNEL].mount_argv(plan), Clock(LIMIT_S), output)
    try:
        material = learn(Workbench(plan.mountpoint, context, output))
    finally:
        machine.delete_tree(work)
    os.sync()
    return material
