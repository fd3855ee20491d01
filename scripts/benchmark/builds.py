"""How fast is an image built, beside `buildah bud --layers`? `scripts/bench --builds [--on DIR] [--runs N]`.

One Dockerfile of twelve steps on the tree of the other rows. Both programs have the same base image in a storage of
their own on the same disk, run commands without a network, and take turns; the images must hold the same files. `cold`
uses no cached step, `cached` nothing else, `changed` all before a file of the context that has changed. Needs root and
buildah.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from . import machine
from .__main__ import end_descendants, real_layers, stop, tell, temporary_directory
from .commands import Clock, TrialFailed, run_command
from .layers import copy_layers
from .options import CLONE
from .peers import KERNEL, MountPlan, known_peers

BASE = "localhost/bench:base"
BUILT = "localhost/bench:built"
LIMIT_S = 600.0
SOURCES = 200
RECIPE = f"""\
FROM {BASE}
ENV APP=/app MODE=production
WORKDIR /app
COPY requirements /app/
RUN mkdir lib && for number in $(seq 300); do echo "$number $MODE" > lib/$number; done
RUN cp -a /usr/share/perl5 /app/perl
RUN find /usr/share/bash-completion -type f -exec sed -i '$a # changed' {{}} +
RUN rm -rf /usr/share/zoneinfo /app/perl/Debconf
COPY --chown=33:33 src /app/src
RUN cat src/* > all && sha256sum all > sum
RUN chmod -R g+w /app/lib && ln -s lib /app/link
USER 33
CMD ["cat", "/app/sum"]
"""
"""Twelve steps: small files, copies, changes and deletions of what is below, settings."""
DIGEST = "{ find /app /usr -printf '%y %m %U:%G %l %p\\n'; find /app -type f -exec sha256sum {} +; } | LC_ALL=C sort"


class Builder(ABC):
    """One program with a storage of its own, in which the base image is."""

    name: ClassVar[str]

    def __init__(self, place: Path, scratch: Path) -> None:
        self.place, self._output = place, scratch / f"{self.name}.out"
        place.mkdir()

    def call(self, *words: str | Path) -> float:
        os.sync()  # what one left to be written is not the next one's to wait for
        return run_command([*self.program(), *map(str, words)], Clock(LIMIT_S), self._output)

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @abstractmethod
    def program(self) -> list[str]: ...

    @abstractmethod
    def load(self, archive: Path) -> None: ...

    @abstractmethod
    def build(self, context: Path, *, cached: bool) -> float: ...

    @abstractmethod
    def files(self) -> str:
        """What DIGEST says in the built image."""


class Ours(Builder):
    name = "overlayfs build"

    def program(self) -> list[str]:
        return [str(CLONE / ".venv/bin/overlayfs"), "--store", str(self.place)]

    def load(self, archive: Path) -> None:
        self.call("import", archive, BASE, "--change", f"ENV PATH={machine.ENVIRONMENT['PATH']}")
        self.call("run", "--rm", BASE, "true")  # it is unpacked by the first use

    def build(self, context: Path, *, cached: bool) -> float:
        return self.call("build", *([] if cached else ["--no-cache"]), "-t", BUILT, context)

    def files(self) -> str:
        self.call("run", "--rm", "--user", "0", "--network", "none", BUILT, "sh", "-c", DIGEST)
        return self.output()


class Buildah(Builder):
    name = "buildah bud --layers"

    def program(self) -> list[str]:
        return ["buildah", "--root", str(self.place / "root"), "--runroot", str(self.place / "run")]

    def load(self, archive: Path) -> None:
        self.call("from", "--name", "base", "scratch")
        self.call("add", "base", archive, "/")
        self.call("config", "--env", f"PATH={machine.ENVIRONMENT['PATH']}", "base")
        self.call("commit", "base", BASE)

    def build(self, context: Path, *, cached: bool) -> float:
        words = ("--isolation", "chroot", "--pull-never", *([] if cached else ["--no-cache"]))
        return self.call("bud", "--layers", *words, "-t", BUILT, context)

    def files(self) -> str:
        self.call("from", "--name", "check", "--pull-never", BUILT)
        self.call("run", "--isolation", "chroot", "--user", "0", "check", "sh", "-c", DIGEST)
        found = self.output()
        self.call("rm", "check")
        return found


ROWS = {"cold": 1.0, "cached": 0.5, "changed": 1.0}
"""Each with the most that ours may take, as a fraction of buildah's."""


def write_context(context: Path) -> None:
    (context / "src").mkdir(parents=True)
    (context / "Dockerfile").write_text(RECIPE)
    (context / "requirements").write_text("one\ntwo\n")
    for number in range(SOURCES):
        (context / "src" / f"{number}.txt").write_text(f"{number}\n" * 50)


def change(context: Path, turn: int) -> None:
    (context / "src/0.txt").write_text(f"changed in turn {turn}\n")


def archive_tree(place: Path, layers: list[Path], archive: Path, output: Path) -> None:
    """The tree of the layers, as the kernel shows it, in one tar."""
    plan = MountPlan(tuple(copy_layers(place, layers)), *(place / name for name in ("upper", "index", "root")))
    for path in (plan.upper, plan.work, plan.mountpoint):
        path.mkdir()
    run_command(known_peers("")[KERNEL].mount_argv(plan), Clock(LIMIT_S), output)
    run_command(
        ["tar", "-C", str(plan.mountpoint), "--numeric-owner", "-cf", str(archive), "."], Clock(LIMIT_S), output
    )
    machine.unmount(plan.mountpoint)


def measure(builders: list[Builder], context: Path, runs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by row and program; in each turn every program does the same."""
    seconds: dict[str, dict[str, list[float]]] = {row: {each.name: [] for each in builders} for row in ROWS}
    for turn in range(runs):
        for row in ROWS:
            if row == "changed":
                change(context, turn)
            for builder in builders:
                tell(f"{row}, run {turn + 1} of {runs}: {builder.name}")
                seconds[row][builder.name].append(builder.build(context, cached=row != "cold"))
    if len({builder.files() for builder in builders}) != 1:
        raise TrialFailed("the images differ")
    return seconds


def show(seconds: dict[str, dict[str, list[float]]]) -> None:
    for row, limit in ROWS.items():
        ours, theirs = (statistics.median(figures) for figures in seconds[row].values())
        mark = "!" if ours / theirs > limit else ""
        print(f"build, {row:8} {ours:7.3f} s   buildah {theirs:7.3f} s   {ours / theirs:.2f}{mark} (bar {limit:g})")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench --builds", description=__doc__)
    parser.add_argument("--on", type=Path, default=Path("/var/tmp"), help="a directory on the disk to measure")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", metavar="A:B:C", help="layer directories, top first (default: scripts/make-layers)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args()
    if shutil.which("buildah") is None:
        raise SystemExit("bench: buildah is not installed (scripts/setup test)")
    if os.geteuid() != 0:
        raise SystemExit("bench: needs root")
    machine.become_subreaper()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    with ExitStack() as resources:
        resources.callback(end_descendants)
        resources.callback(tell, "")
        top = resources.enter_context(temporary_directory(options.on))
        scratch = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        tell("preparing the base image")
        (top / "tree").mkdir()
        archive_tree(top / "tree", real_layers(options.layers), top / "base.tar", scratch / "output")
        write_context(top / "context")
        builders: list[Builder] = [Ours(top / "ours", scratch), Buildah(top / "buildah", scratch)]
        for builder in builders:
            builder.load(top / "base.tar")
        seconds = measure(builders, top / "context", options.runs)
    version = subprocess.run(["buildah", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{version}, on {options.on}, medians of {options.runs} turns")
    show(seconds)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"machine": machine.facts(), "buildah": version, "seconds": seconds}, indent=1)
        )


if __name__ == "__main__":
    try:
        main()
    except TrialFailed as error:
        sys.exit(f"bench: {error}")
