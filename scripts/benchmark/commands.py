"""How is one program run, timed and stopped: commands, and the workloads that need a client of their own.

Neighbours: workloads.py is the other side of `Client`; trial.py is the caller. Single-threaded.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import machine


class TrialFailed(Exception):
    """A row cannot be measured here; the text is the reason in the report."""


class Clock:
    """A time limit for all the steps of one trial, so that a hung mount costs one cell, not the run."""

    def __init__(self, limit_s: float) -> None:
        self._end = time.monotonic() + limit_s

    def left_s(self) -> float:
        return max(0.0, self._end - time.monotonic())


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


def kill_group(process: subprocess.Popen[Any]) -> None:
    """End a program and what it started; a process stuck in a dead mount ends when its daemon does."""
    if process.returncode is not None:  # reaped: the number may be another's by now
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if machine.wait_for(process.pid, 2):
        process.wait()


def run_command(
    argv: list[str],
    clock: Clock,
    output: Path,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> float:
    """Seconds from the start of a program to its end, its output going to a file.

    Raises TrialFailed if it fails or takes too long. The wait is on a pidfd: Popen.wait with a timeout
    polls, up to 50 ms apart.
    """
    complaint_path = output.with_suffix(".err")
    with output.open("wb") as out, complaint_path.open("wb") as err:
        begin = time.perf_counter()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=cwd,
            env=machine.ENVIRONMENT | (environment or {}),
            start_new_session=True,
        )
        ended = False
        try:
            ended = machine.wait_for(process.pid, clock.left_s())
            seconds = time.perf_counter() - begin
        finally:
            if not ended:
                kill_group(process)
    if not ended:
        raise TrialFailed(f"{argv[0]}: took too long")
    if process.wait() != 0:
        complaint = complaint_path.read_text(errors="replace")
        raise TrialFailed(f"{argv[0]}: exit {process.returncode}: {last_line(complaint)}")
    return seconds


class Client:
    """A process that has started and prepared before its workload is timed (protocol: workloads.py)."""

    def __init__(self, workload: str, arguments: dict[str, object], clock: Clock) -> None:
        self._clock = clock
        self._name = workload
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(Path(__file__).with_name("workloads.py")), workload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=machine.ENVIRONMENT,
            start_new_session=True,
        )
        self._tell(json.dumps(arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kill_group(self._process)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def run(self) -> tuple[float, Any]:
        """(seconds, the workload's answer). The client's own clock: its start and exit do not count."""
        self._tell("go")
        if not machine.wait_for(self._process.pid, self._clock.left_s()):
            raise TrialFailed(f"{self._name}: took too long")
        answer, complaint = self._process.communicate()
        if self._process.returncode != 0:
            raise TrialFailed(f"{self._name}: {last_line(complaint)}")
        seconds, result = json.loads(answer)
        return float(seconds), result

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
