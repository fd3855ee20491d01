"""How is a detached program supervised? By conmon(8), which starts runc, writes the log and keeps the exit status.

conmon reports the pid of the created program, or runc's message, as one line of JSON in the pipe that _OCI_SYNCPIPE
names. The program waits for `runc start`, so that the caller may attach to it before its first output.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from ...image.oci.errors import ImageError, NotFoundError
from ..runtime import Launch
from ..supervise import PID, RUNC_STATE, specification_of, start_with_us, stop_runc

ATTACH: Final = "attach"
CONTROL: Final = "ctl"
_EXITS: Final = "exits"


def find_conmon() -> str:
    """Raises NotFoundError."""
    found = shutil.which("conmon", path=os.environ.get("PATH", os.defpath) + ":/usr/libexec/podman:/usr/lib/podman")
    if found is None:
        raise NotFoundError("conmon is not installed, and detached containers need it: install the package conmon")
    return found


class Programs(Struct, frozen=True):
    """The paths of the programs that run a detached container."""

    conmon: str
    runc: str


def supervise(
    programs: Programs, plan: Launch, bundle: Path, log: Path, created: Callable[[], None], started: Callable[[], None]
) -> int | None:
    """Run the program under conmon until it ends; its exit status, None if conmon was killed.

    `created` is called once the program exists and waits to be started. Raises ImageError if runc refuses.
    """
    (bundle / "config.json").write_bytes(specification_of(plan))
    (bundle / _EXITS).mkdir(exist_ok=True)
    process, report = _start(_words(programs, plan, bundle, log))
    try:
        if report.get("data", -1) <= 0:
            raise ImageError(f"runc could not make the container: {_one_line(report.get('message', ''))}")
        created()
        _start_program(programs.runc, plan.name, bundle)
        started()
        process.wait()
        return _exit_status(bundle / _EXITS / plan.name)
    finally:
        stop_runc(programs.runc, bundle, plan.name)  # its cgroup too
        process.wait()


def _words(programs: Programs, plan: Launch, bundle: Path, log: Path) -> list[str]:
    words = [programs.conmon, "--api-version", "1", "--sync", "--full-attach", "--log-level", "error"]
    words += ["--cid", plan.name, "--cuuid", plan.name, "--name", plan.name]
    words += ["--log-path", f"k8s-file:{log}" if plan.settings.has_log else "none:"]
    words += ["--runtime", programs.runc, "--runtime-arg", "--root", "--runtime-arg", str(bundle / RUNC_STATE)]
    words += ["--bundle", str(bundle), "--container-pidfile", str(bundle / PID), "--exit-dir", str(bundle / _EXITS)]
    if plan.settings.keeps_stdin:
        words.append("--stdin")
    # a terminal stays open for the next who attaches; in a pipe the end of the input is passed on
    return [*words, "--terminal", "--leave-stdin-open"] if plan.settings.has_terminal else words


def _start(words: list[str]) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """conmon, and its report on the created program."""
    report_fd, told_fd = os.pipe()
    environment = {"PATH": os.environ.get("PATH", os.defpath), "_OCI_SYNCPIPE": str(told_fd)}
    try:
        process = start_with_us(
            words,
            pass_fds=[told_fd],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.close(told_fd)
    with os.fdopen(report_fd, "rb") as report:
        line = report.readline()
    try:
        found = json.loads(line)
        return process, found if isinstance(found, dict) else {}
    except ValueError:
        return process, {}


def _start_program(runc: str, name: str, bundle: Path) -> None:
    words = [runc, "--root", str(bundle / RUNC_STATE), "start", name]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"runc could not start the program: {_one_line(done.stderr)}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:500] or "it does not say why"


def _exit_status(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
