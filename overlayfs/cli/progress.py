"""How does a user at a terminal see progress? By bars on standard error, which are removed when the work has ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from overlayfs.image.oci.progress import NO_PROGRESS, Progress, Task

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


@contextmanager
def shown_progress(quiet: bool = False) -> Iterator[Progress]:
    """A Progress that shows bars if standard error is a terminal, and nothing otherwise."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield NO_PROGRESS
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Shown(bars)


class _Shown:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def begin(self, what: str, total: int | None) -> Task:
        from overlayfs.cli.output import safe

        return _Bar(self._bars, self._bars.add_task(safe(what), total=total))


class _Bar:
    """One bar; rich allows updates from any thread."""

    def __init__(self, bars: Bars, number: TaskID) -> None:
        self._bars, self._number = bars, number

    def advance(self, n: int) -> None:
        self._bars.advance(self._number, n)

    def done(self, note: str = "") -> None:
        self._bars.remove_task(self._number)
