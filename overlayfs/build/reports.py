"""How does a build tell what it does? The interface between the steps and whoever shows them, and two simple reports:
lines on standard error, and nothing but the output of commands that fail.

A step begins and ends in the process of its stage; its command writes from a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from ..image.oci.progress import NO_PROGRESS, Progress

_CHUNK: Final = 1 << 16
Output = Callable[[], int]
"""Gives a descriptor for what a command writes, in any process forked since; it is closed by whoever asked for it."""


class ReportedStep(Protocol):
    """One step while it is done."""

    @property
    def progress(self) -> Progress:
        """For what the step downloads."""

    def output(self) -> int:
        """An `Output`."""

    def end(self, *, has_failed: bool) -> None:
        """The step has ended, and every command of it."""


class Report(Protocol):
    """Shows the steps of all stages."""

    def say(self, text: str) -> None:
        """One line for the user."""

    def cached(self, title: str) -> None:
        """The result of a step was in the cache."""

    def begin(self, title: str) -> ReportedStep:
        """A step begins."""


@contextmanager
def reported(report: Report, title: str) -> Iterator[ReportedStep]:
    """A step, which has failed if an exception leaves the context; one that is interrupted does not end."""
    step = report.begin(title)
    try:
        yield step
    except Exception:
        step.end(has_failed=True)
        raise
    step.end(has_failed=False)


class Plain:
    """A line for each step, and everything that commands write, on standard error."""

    progress = NO_PROGRESS

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def cached(self, title: str) -> None:
        self.say(f"{title}  (cached)")

    def begin(self, title: str) -> ReportedStep:
        self.say(title)
        return self

    def output(self) -> int:
        return os.dup(2)

    def end(self, *, has_failed: bool) -> None:
        pass


class Quiet:
    """Nothing, unless a step fails."""

    def say(self, text: str) -> None:
        pass

    def cached(self, title: str) -> None:
        pass

    def begin(self, title: str) -> ReportedStep:
        return _Kept()


class _Kept:
    """A step of which the output is kept until it has ended."""

    progress = NO_PROGRESS

    def __init__(self) -> None:
        self._kept = os.memfd_create("output")

    def output(self) -> int:
        return os.dup(self._kept)

    def end(self, *, has_failed: bool) -> None:
        if has_failed:
            os.lseek(self._kept, 0, os.SEEK_SET)
            while data := os.read(self._kept, _CHUNK):
                sys.stderr.buffer.write(data)
            sys.stderr.flush()
        os.close(self._kept)
