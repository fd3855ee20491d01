"""How does a user at a terminal see a build? As with BuildKit: the steps that run, their time and last lines of output.

The display is a process of its own, as steps begin and end in the processes of their stages. Those send it messages of
JSON through one socket; for a command a message brings the read end of the pipe into which the command writes.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from overlayfs.build.children import Child, ChildError
from overlayfs.build.reports import Plain, Quiet, Report, ReportedStep
from overlayfs.image.oci.errors import ImageError
from overlayfs.image.oci.progress import Progress, Task

if TYPE_CHECKING:
    from overlayfs.cli.container.screen import Screen

_LONGEST: Final = 1000
"""Characters of a text that are sent."""
_LARGEST: Final = 1 << 16
"""Bytes of a message: more than JSON makes of one text, and less than a socket takes."""
_CHUNK: Final = 1 << 16


@contextmanager
def shown_steps(kind: str) -> Iterator[Report]:
    """A report as `--progress` says; a display only where standard error is a terminal."""
    if kind == "quiet":
        yield Quiet()
    elif kind == "plain" or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Plain()
    else:
        with _displayed() as report:
            yield report


@contextmanager
def _displayed() -> Iterator[Report]:
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sender:
        with receiver:
            display = Child(lambda: _display(receiver, sender))
        try:
            yield _Sent(sender)
        finally:
            sender.close()  # the display ends when the processes of all stages have ended, too
            try:
                display.wait()
            except ChildError as error:  # the build does not depend on it
                print(f"the display has failed: {error}", file=sys.stderr)


def _display(receiver: socket.socket, sender: socket.socket) -> bytes:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it shows the end of an interrupted build
    sender.close()
    from rich.console import Console

    from overlayfs.cli.container.screen import Screen

    pipes: dict[int, str] = {}
    try:
        with Screen(Console(stderr=True)) as screen:
            _follow(receiver, pipes, screen)
    except Exception as error:  # noqa: BLE001 - the terminal is gone, for one
        _follow(receiver, pipes, _Blank())
        raise ImageError(str(error)) from None
    return b""


class _Blank:
    """A screen that shows nothing: commands must be able to write all the same."""

    period_s = None

    def __getattr__(self, verb: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _follow(receiver: socket.socket, pipes: dict[int, str], screen: Screen | _Blank) -> None:
    """Pass on the messages and the output of commands until nobody is left who sends."""
    while True:
        ready, _, _ = select.select([receiver.fileno(), *pipes], [], [], screen.period_s)
        for pipe in pipes.keys() & ready:
            _read(pipe, pipes, screen)
        if receiver.fileno() in ready:
            data, fds, _, _ = socket.recv_fds(receiver, _LARGEST, 1)
            if not data:
                return
            _take(json.loads(data), fds, pipes, screen)
        screen.refresh()


def _take(message: dict[str, Any], fds: list[int], pipes: dict[int, str], screen: Screen | _Blank) -> None:
    verb = message.pop("verb")
    if verb == "output":
        for pipe in fds:
            os.set_blocking(pipe, False)
            pipes[pipe] = message["step"]
        return
    if verb == "end":
        for pipe in [pipe for pipe, step in pipes.items() if step == message["step"]]:
            while _read(pipe, pipes, screen):
                pass
            if pipes.pop(pipe, None) is not None:  # somebody holds the other end, who does not count
                os.close(pipe)
    getattr(screen, verb)(**message)


def _read(pipe: int, pipes: dict[int, str], screen: Screen | _Blank) -> bool:
    """Read what a command has written; whether there may be more."""
    try:
        data = os.read(pipe, _CHUNK)
    except BlockingIOError:
        return False
    if data:
        screen.write(pipes[pipe], data)
    else:
        del pipes[pipe]
        os.close(pipe)
    return bool(data)


# -- in the processes of the build


class _Sent:
    """A report that is sent to the display; without one nothing is shown."""

    def __init__(self, sender: socket.socket) -> None:
        self._sender, self._numbers = sender, count()

    def say(self, text: str) -> None:
        self.send("say", text=text[:_LONGEST])

    def cached(self, title: str) -> None:
        self.send("cached", title=title[:_LONGEST])

    def begin(self, title: str) -> ReportedStep:
        step = f"{os.getpid()}-{next(self._numbers)}"
        self.send("begin", step=step, title=title[:_LONGEST])
        return _SentStep(self, step)

    def send(self, verb: str, *fds: int, **facts: object) -> bool:
        """Whether there is a display."""
        try:
            socket.send_fds(self._sender, [json.dumps({"verb": verb, **facts}).encode()], list(fds))
        except ConnectionError:
            return False
        return True


class _SentStep:
    """One step, and the Progress of what it downloads."""

    def __init__(self, report: _Sent, step: str) -> None:
        self._report, self._step, self._tasks = report, step, count()

    def output(self) -> int:
        reading, writing = os.pipe()
        with open(reading, "rb"):
            if self._report.send("output", reading, step=self._step):
                return writing
        os.close(writing)
        return os.dup(2)  # there is no display any more

    def end(self, *, has_failed: bool) -> None:
        self._report.send("end", step=self._step, has_failed=has_failed)

    @property
    def progress(self) -> Progress:
        return self

    def begin(self, what: str, total: int | None) -> Task:
        task = _SentTask(self._report, self._step, next(self._tasks))
        task.tell("work", what=what[:_LONGEST], total=total)
        return task


class _SentTask:
    def __init__(self, report: _Sent, step: str, task: int) -> None:
        self._report, self._step, self._task = report, step, task

    def tell(self, verb: str, **facts: object) -> None:
        self._report.send(verb, step=self._step, task=self._task, **facts)

    def advance(self, n: int) -> None:
        self.tell("advance", n=n)

    def done(self, note: str = "") -> None:
        self.tell("done")
