"""The program for people without its start: a process that has it loaded, and forks for each call.

Starting Python takes longer than most commands. The process has one thread, so that a fork may have namespaces of its
own, and may be another user's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cli.people import PATIENCE_S

_SERVER = """
import json, os, sys
# all that is imported late: where the interpreter lies, perhaps only root may look
import concurrent.futures.thread, encodings.ascii, encodings.idna, msgspec.json, platformdirs, pwd, pyfuse3, rich.box
import rich.console, rich.table, subprocess, trio, unicodedata, zstandard
import overlayfs.cli.containers, overlayfs.cli.diff, overlayfs.cli.image_mounting, overlayfs.cli.running
import overlayfs.fuse.handlers, overlayfs.fuse.serving, overlayfs.overlay.engine
from overlayfs.cli.main import main
from overlayfs.tree.syscalls import let_be_inspected
if len(sys.argv) > 1:
    user = int(sys.argv[1])
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    let_be_inspected()  # as a program is that a user starts
def call(words, out):
    for name in (0, 1, 2):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if name else os.O_RDONLY
        os.dup2(os.open(f"{out}{name}" if name else os.devnull, flags), name)
    sys.argv[1:] = words
    status = 1
    try:
        status = main()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
for line in sys.stdin:
    child = os.fork()
    if not child:
        call(**json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Done:
    """How a call ended."""

    status: int
    out: str
    err: str


class Prepared:
    """The loaded process; a context manager. `output` is a name that files may start with, for what calls print."""

    def __init__(self, output: Path, user: int | None = None, environ: dict[str, str] | None = None) -> None:
        self._output = output
        search = os.pathsep.join(path or os.curdir for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *([] if user is None else [str(user)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=output.parent,
            env={**os.environ, "PYTHONPATH": search, **(environ or {})},
        )

    def call(self, *words: str | Path) -> Done:
        """Run `overlayfs` with these words."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"words": [str(word) for word in words], "out": str(self._output)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status = self._process.stdout.readline()
        assert status, "the prepared process died"
        out, err = (Path(f"{self._output}{number}").read_text(errors="surrogateescape") for number in (1, 2))
        return Done(int(status), out, err)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
