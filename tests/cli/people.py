"""The program for people, run as people run it; mounts that are always taken down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from overlayfs.cli.mounts.live import holders_elsewhere, mount_at
from overlayfs.tree.syscalls import unmount
from tests.contract.tree import Tree, build
from tests.prepared import PATIENCE_S, call

COMMAND = (sys.executable, "-m", "overlayfs.cli.main")
Word = str | os.PathLike[str]


def run(*arguments: Word, status: int = 0, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `overlayfs`; the exit status must be `status`, and an error one line without a traceback.

    With `environ`, some of which is read when modules are loaded, Python is started for it.
    """
    done = _call(*arguments) if environ is None else _start(*arguments, environ=environ)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    if status in (0, 3):
        assert done.stderr == ""
    assert "Traceback" not in done.stderr
    return done


def _call(*arguments: Word) -> subprocess.CompletedProcess[str]:
    done = call(*arguments)
    return subprocess.CompletedProcess(arguments, done.status, done.out, done.err)


def _start(*arguments: Word, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S,
        check=False,
    )


def answer(*arguments: Word, status: int = 0) -> Any:
    """The JSON document that a command prints."""
    return json.loads(run(*arguments, "--json", status=status).stdout)


class Site:
    """Layers and a mountpoint in a temporary directory; `close` unmounts whatever is mounted on it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.mountpoint = top / "mnt"
        self._device = b""
        self.upper, self.work = top / "upper", top / "work"
        for path in (self.mountpoint, self.upper, self.work):
            path.mkdir()

    def lower(self, name: str, tree: Tree) -> Path:
        build(os.fsencode(self.top / name), {**tree})
        return self.top / name

    def mount(self, *lowers: Path, writable: bool = True) -> None:
        layers = [text for lower in lowers for text in ("--lower", str(lower))]
        upper = ["--upper", str(self.upper), "--work", str(self.work)] if writable else []
        run("mount", *layers, *upper, self.mountpoint)
        entry = mount_at(os.fsencode(self.mountpoint))
        assert entry is not None
        self._device = entry.device

    def unmount(self) -> None:
        """Unmount by the command; another test's mount namespace may have a copy, which is not our failure."""
        try:
            run("umount", self.mountpoint)
        except AssertionError:
            if os.path.ismount(self.mountpoint) or not holders_elsewhere(self._device):
                raise

    def close(self) -> None:
        while os.path.ismount(self.mountpoint) or self._is_dead_mount():
            unmount(os.fsencode(self.mountpoint), lazy=True)

    def _is_dead_mount(self) -> bool:
        try:
            self.mountpoint.stat()
        except OSError:
            return True
        return False
