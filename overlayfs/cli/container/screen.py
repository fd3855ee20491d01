"""What does the display of a build draw? Steps that have ended scroll up; below them are those that run.

Of a step that has failed the whole output is written at the end, of a huge one the last megabytes. For one thread.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from overlayfs.cli.output import format_size, safe

_NORMAL: Final = "\x1b[?1049l\x1b[0m"
"""Ends another screen and colours that a command may have left."""
_LINES: Final = 6
"""Of the output of a step, at most."""
_LONGEST: Final = 4096
"""Bytes of an unfinished line that are kept."""
_KEPT: Final = 8 << 20
"""Bytes of the output of a step that are kept at least."""
_ESCAPE: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
"""Sequences of terminals (ECMA-48): controls, and commands of xterm."""


@dataclass(slots=True)
class _Work:
    """Something that a step downloads."""

    what: str
    total: int | None
    size: int = 0

    def __str__(self) -> str:
        total = "" if self.total is None else f" / {format_size(self.total)}"
        return f"{self.what}  {format_size(self.size)}{total}"


@dataclass(slots=True)
class _Step:
    """A step that runs or has failed; `kept` has its output, or the end of it."""

    title: str
    begun: float
    kept: bytearray = field(default_factory=bytearray)
    is_cut: bool = False
    lines: deque[bytes] = field(default_factory=lambda: deque(maxlen=_LINES))
    unfinished: bytes = b""
    works: dict[int, _Work] = field(default_factory=dict)

    def write(self, data: bytes) -> None:
        self.kept += data
        if len(self.kept) > 2 * _KEPT:
            del self.kept[:-_KEPT]
            self.is_cut = True
        *ended, rest = (self.unfinished + data).split(b"\n")
        self.lines.extend(ended)
        self.unfinished = rest[-_LONGEST:]

    def tail(self, count: int) -> list[str]:
        """What is to be seen of it, in so many lines."""
        if self.works:
            return [safe(str(work)) for work in self.works.values()][-count:]
        lines = [*self.lines, self.unfinished] if self.unfinished else [*self.lines]
        return [_shown(line) for line in lines[-count:]]


class Screen:
    """The state of a build, and a context in which it is drawn."""

    period_s: Final = 0.1
    """How often it is drawn anew."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._running: dict[str, _Step] = {}
        self._failed: list[_Step] = []
        self._done = 0
        self._begun = self._drawn = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self.view)

    def __enter__(self) -> Self:
        self._live.start()
        self._console.show_cursor(True)  # it would stay hidden if this process were killed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for step in self._running.values():
            self._print("CANCELED", step.title, step.begun)
        self._live.stop()
        for step in self._failed:
            self._dump(step)

    # what happens

    def say(self, text: str) -> None:
        self._console.print(Text(safe(text)))

    def cached(self, title: str) -> None:
        self._done += 1
        self._print("CACHED", title, time.monotonic())

    def begin(self, step: str, title: str) -> None:
        self._running[step] = _Step(title, time.monotonic())

    def write(self, step: str, data: bytes) -> None:
        self._running[step].write(data)

    def end(self, step: str, has_failed: bool) -> None:
        ended = self._running.pop(step)
        self._print("ERROR" if has_failed else "", ended.title, ended.begun)
        self._done += not has_failed
        if has_failed:
            self._failed.append(ended)

    def work(self, step: str, task: int, what: str, total: int | None) -> None:
        self._running[step].works[task] = _Work(what, total)

    def advance(self, step: str, task: int, n: int) -> None:
        self._running[step].works[task].size += n

    def done(self, step: str, task: int) -> None:
        del self._running[step].works[task]

    # what is drawn

    def refresh(self) -> None:
        """Draw what runs, if that is some time ago."""
        now = time.monotonic()
        if now >= self._drawn + self.period_s:
            self._drawn = now
            self._live.refresh()

    def view(self) -> RenderableType:
        """What runs, in at most so many lines as the terminal has."""
        height = max(2, self._console.height - 1)
        running = list(self._running.values())[-(height - 1) :]
        count = min(_LINES, (height - 1) // max(1, len(running)) - 1)
        rows: list[RenderableType] = [_row(f"[+] building ({self._done} done)", self._begun)]
        for step in running:
            rows.append(_row(f" => {safe(step.title)}", step.begun))
            rows += [_row(f" => => # {line}", None, "dim") for line in step.tail(count) if count > 0]
        return Group(*rows)

    def _print(self, state: str, title: str, begun: float) -> None:
        style = {"ERROR": "red", "CANCELED": "yellow"}.get(state, "blue")
        self._console.print(_row(f" => {f'{state} ' if state else ''}{safe(title)}", begun, style))

    def _dump(self, step: _Step) -> None:
        """Write what the step has written, as it is."""
        if step.kept:
            beginning = "\n[the beginning is left out]" if step.is_cut else ""
            print(f"------\n > {safe(step.title)}:{beginning}", file=sys.stderr, flush=True)
            sys.stderr.buffer.write(step.kept)
            ending = (_NORMAL if b"\x1b" in step.kept else "") + ("\n" if step.unfinished else "")
            print(ending, "------", sep="", file=sys.stderr, flush=True)


def _row(text: str, begun: float | None, style: str = "") -> RenderableType:
    """One line, cut at the edge of the terminal, with the seconds that have gone by."""
    row = Table.grid(expand=True)
    row.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    row.add_column(justify="right", no_wrap=True)
    elapsed = "" if begun is None else f" {time.monotonic() - begun:.1f}s"
    row.add_row(Text(text, style), elapsed)
    return row


def _shown(line: bytes) -> str:
    """A line as it would be on a terminal: without escapes, and what follows the last carriage return."""
    last = _ESCAPE.sub(b"", line).rstrip(b"\r").rpartition(b"\r")[2]
    return safe(last.expandtabs().decode("utf-8", "replace"))
