"""Commands of containers are killed before any of their calls: nothing lives on, and the next command works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from overlayfs.container.containers import Containers
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from overlayfs.tree.mount_table import mount_entries
from tests.cli.container.shop import Shop
from tests.container.small import small_image
from tests.prepared import REPOSITORY, Prepared

SAMPLE = (69, 270)
"""Points of some 320: while the tree is mounted, and about the end of the program."""
LATER: tuple[tuple[str, ...], ...] = (
    ("ps", "-a"),
    ("rm", "-f", "-v", "box"),
    ("start", "box"),
    ("run", "--rm", "--name", "other", "small", "pwd"),
)
"""Each of them may be the next command, and finds nothing half done."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A command on the container `box`, and whether all of our processes die at once, as with the machine's memory."""

    words: tuple[str, ...]
    before: tuple[str, ...] = ()
    kills_all: bool = False


def box(*words: str) -> tuple[str, ...]:
    """A command that makes `box`, whose program waits at the gate."""
    return (*words, "--name", "box", "-v", "/data", "-v", "GATE:/gate", "small", "sh", "-c", "read -r x </gate/fifo")


SCENES = {
    "bwrap": Scene(box("run", "--rm", "--runtime", "bwrap")),
    "bwrap, all": Scene(box("run", "--rm", "--runtime", "bwrap"), kills_all=True),
    "runc": Scene(box("run", "--rm", "--runtime", "runc")),
    "runc, all": Scene(box("run", "--rm", "--runtime", "runc"), kills_all=True),
    "logged": Scene(box("run", "--runtime", "bwrap")),
    "logged, all": Scene(box("run", "--runtime", "runc"), kills_all=True),
    "detached": Scene(box("run", "-d", "-p", "127.0.0.1::80")),
    "detached, all": Scene(box("run", "-d", "-p", "127.0.0.1::80"), kills_all=True),
    "start": Scene(("start", "box"), before=box("create")),
    "stop": Scene(("stop", "-t", "0", "box"), before=box("run", "-d")),
    "rm": Scene(("rm", "-f", "-v", "box"), before=box("run", "-d")),
}


class Commands:
    """The process of `commands`, which runs them and kills them."""

    def __init__(self, top: Path) -> None:
        self.gate = top / "gate"
        self.gate.mkdir()
        os.mkfifo(self.gate / "fifo")
        self._streams = [str(top / name) for name in ("in", "out", "err")]
        for stream in self._streams:
            Path(stream).touch()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )

    def run(self, words: Sequence[str], point: int | None, *, kills_all: bool) -> str:
        """Run a command until a process is killed, before which call, or until all have ended, empty."""
        request = {"words": words, "point": point, "kills_all": kills_all, "gate": str(self.gate / "fifo")}
        return str(self._ask({**request, "streams": self._streams})["struck"])

    def settle(self) -> tuple[list[str] | None, list[str], list[str]]:
        """The processes that came from the command and do not end by themselves, all calls, and the cgroups made."""
        answer = self._ask({})
        return answer["left"], answer["calls"], answer["cgroups"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Stage:
    """A store, and one scene after the other on it."""

    def __init__(self, shop: Shop, commands: Commands) -> None:
        self._shop = shop
        self._commands = commands

    def play(self, scene: Scene, point: int | None) -> list[str]:
        """Kill at this call, and look at what is left; the calls until then."""
        if scene.before:
            self._shop.run(*self._filled(scene.before))
        mounts = {entry.mount_id for entry in mount_entries()}
        words = ["--store", str(self._shop.store), *self._filled(scene.words)]
        struck = self._commands.run(words, point, kills_all=scene.kills_all)
        if scene.kills_all and point is not None:
            self._call(struck, *LATER[point % len(LATER)])
        if self._is_in_use():
            self._call(struck, "rm", "-f", "-v", "box")
        processes, calls, cgroups = self._commands.settle()
        assert processes is None, f"killed at {struck}: {processes} are left"
        self._call(struck, *LATER[(point or 0) % len(LATER)])
        self._call(struck, "rm", "-f", "-v", "box")
        left = (
            {entry.mount_id for entry in mount_entries()} - mounts,
            [path for path in cgroups if os.path.exists(path)],
            self._shop.names,
            self._shop.run("volume", "ls", "-q").split(),
        )
        assert not any(left), f"killed at {struck}: {left}"
        self._shop.run("run", "--rm", "--name", "box", "small", "pwd")
        return calls

    def _filled(self, words: Sequence[str]) -> list[str]:
        return [word.replace("GATE", str(self._commands.gate)) for word in words]

    def _is_in_use(self) -> bool:
        with Store.open(self._shop.store) as store:
            return any(one.is_in_use for one in Containers(store).listed())

    def _call(self, struck: str, *words: str) -> None:
        """The container may be gone; nothing else is wrong."""
        done = self._shop.call(*words)
        assert done.status == 0 or done.err == "overlayfs: no container 'box': see overlayfs containers\n", (
            f"killed at {struck}: {words} fail with {done.err}"
        )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    top = tmp_path_factory.mktemp("kills")
    with Store.open(top / "store") as store:
        unpack_image(store, small_image(store))
    commands = Commands(top)
    try:
        with Prepared() as prepared:
            shop = Shop(top / "store", prepared)
            yield Stage(shop, commands)
            for name in shop.names:  # of a scene that failed
                shop.call("rm", "-f", "-v", name)
    finally:
        commands.close()


@pytest.mark.parametrize("name", ["bwrap", "runc", "detached, all"])
def test_killed_command_leaves_nothing_behind(name: str, sweep: Stage) -> None:
    for point in SAMPLE:
        sweep.play(SCENES[name], point)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENES)
def test_command_killed_at_any_call_leaves_nothing_behind(name: str, sweep: Stage) -> None:
    count = len(sweep.play(SCENES[name], None))
    for point in range(count):
        sweep.play(SCENES[name], point)
