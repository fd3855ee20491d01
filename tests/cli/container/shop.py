"""A store with images in which programs run, the program on it, and the processes that it starts."""

from __future__ import annotations

import json
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from overlayfs.container.containers import Containers
from overlayfs.image.store.store import Store
from tests.cli.people import COMMAND
from tests.prepared import PATIENCE_S, Done, Prepared


class Shop:
    """A store with small images, and the program run on it."""

    def __init__(self, store: Path, prepared: Prepared) -> None:
        self.store = store
        self._prepared = prepared

    def call(self, *words: str | Path, typed: str = "") -> Done:
        return self._prepared.call("--store", self.store, *words, typed=typed)

    def run(self, *words: str | Path, status: int = 0) -> str:
        """What a command prints."""
        done = self.call(*words)
        assert (done.status, done.err) == (status, ""), done
        return done.out

    def refuses(self, *words: str | Path, status: int = 1) -> str:
        """The one line that says why not."""
        done = self.call(*words)
        assert (done.status, done.out, done.err.count("\n")) == (status, "", 1), done
        return done.err

    def answer(self, *words: str | Path) -> Any:
        return json.loads(self.run(*words, "--json"))

    def sh(self, script: str, *options: str | Path, status: int = 0) -> str:
        """What a shell script in a passing container prints."""
        return self.run("run", "--rm", *options, "small", "sh", "-c", script, status=status)

    def start(self, *words: str | Path, **more: Any) -> subprocess.Popen[str]:
        """A `run` that goes on."""
        return self.start_command("run", *words, **more)

    def start_command(self, *words: str | Path, **more: Any) -> subprocess.Popen[str]:
        """A command that goes on."""
        command = [*COMMAND, "--store", self.store, *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)

    @property
    def names(self) -> list[str]:
        with Store.open(self.store) as store:
            return sorted(one.name for one in Containers(store).listed())


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def await_that(is_so: Callable[[], bool]) -> None:
    """Look again until it is so; nobody announces the end of a stranger's process."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.02)


def descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(word) for task in tasks for word in task.read_text().split()]
    return found + [inner for child in found for inner in descendants(child)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False
