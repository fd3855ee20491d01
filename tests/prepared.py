"""The programs without their start: a process that has them loaded, and forks for each call.

Starting Python takes longer than most calls. That the programs start as people and engines start them is tested by
those who run `COMMAND`.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Done:
    """How a call ended."""

    status: int
    out: str
    err: str


class Prepared:
    """The loaded process; a context manager. With `user` it is that user's, and `environ` is added to all calls'."""

    def __init__(self, user: int | None = None, environ: Mapping[str, str] | None = None) -> None:
        search = os.pathsep.join(path or os.curdir for path in sys.path)
        self._environ = {"PYTHONPATH": search, **(environ or {})}
        self._top = Path(tempfile.mkdtemp(prefix="overlayfs-prepared-"))
        self._top.chmod(0o755)
        self._streams = [self._top / name for name in ("in", "out", "err")]
        for stream in self._streams:
            stream.touch()
            stream.chmod(0o666)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.loaded", *([] if user is None else [str(user)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )

    def call(self, *words: str | os.PathLike[str], program: str = "overlayfs", typed: str = "") -> Done:
        """Run `overlayfs` or `overlayfs-mount` with these words, in this process's directory and environment.

        `typed` is what it finds in its standard input.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {
            "program": program,
            "words": [os.fspath(word) for word in words],
            "streams": [str(stream) for stream in self._streams],
            "directory": os.getcwd(),
            "environ": {**os.environ, **self._environ},
            "umask": _umask(),
        }
        self._streams[0].write_text(typed)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status = self._process.stdout.readline()
        assert status, "the prepared process died"
        out, err = (stream.read_text("utf-8", errors="surrogateescape") for stream in self._streams[1:])
        return Done(int(status), out, err)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
        shutil.rmtree(self._top)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def call(*words: str | os.PathLike[str], program: str = "overlayfs", typed: str = "") -> Done:
    """The same by a process that all tests share which see the same mounts."""
    return _shared(os.getpid(), os.readlink("/proc/self/ns/mnt")).call(*words, program=program, typed=typed)


@cache
def _shared(_pid: int, _mounts: str) -> Prepared:
    prepared = Prepared()
    atexit.register(prepared.close)
    return prepared
