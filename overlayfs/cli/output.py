"""How are results printed: for a user at a terminal, for a pipe, or for a program?

A terminal gets colour and tables (rich is imported only then); a pipe gets the same columns as plain text; `--json`
prints one document. Names from a layer are hostile: control characters never reach a terminal.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table


class Cell(NamedTuple):
    """Text of one column; `style` is rich's, and only a terminal sees it."""

    text: str
    style: str = ""


def printable(name: bytes) -> str:
    """A name or path that is safe to show: all but printable UTF-8 becomes a backslash escape."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def safe(text: str) -> str:
    """Foreign text in one line, without control characters."""
    return printable(text.encode("utf-8", "backslashreplace"))


def explain(error: OSError) -> str:
    """The error of a system call in one line."""
    reason = error.strerror or str(error)
    if not error.filename:  # only getcwd(2) fails with ENOENT for a file that nobody named
        return "the current directory is gone" if error.errno == errno.ENOENT else reason
    if error.errno == errno.EIO:
        reason += " (see overlayfs check)"
    return f"{printable(os.fsencode(error.filename))}: {reason}"


def plain(path: bytes | None) -> str | None:
    """A path for JSON: undecodable bytes as lone surrogates, as Python's own file functions take them."""
    return None if path is None else os.fsdecode(path)


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def print_json(document: Any) -> None:
    """One JSON document, ASCII only, so that undecodable names survive any pipe."""
    import json  # few commands print one

    print(json.dumps(document, indent=2))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Rows under headings: a table on a terminal, aligned columns otherwise."""
    listed = list(rows)
    if is_terminal():
        from rich.console import Console

        Console(highlight=False).print(rich_table(headings, listed))
    else:
        _print_aligned([[Cell(heading) for heading in headings], *listed])


def rich_table(headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """The table that a terminal gets."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell.text, style=cell.style, overflow="fold") for cell in row))
    return table


def _print_aligned(rows: Sequence[Sequence[Cell]]) -> None:
    widths = [max(len(cell.text) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.text.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


class Lines:
    """Prints lines made of cells, coloured on a terminal; one at a time, so that output streams."""

    def __init__(self) -> None:
        self._console: Any = None
        if is_terminal():
            from rich.console import Console

            self._console = Console(highlight=False, soft_wrap=True)

    def print(self, *cells: Cell) -> None:
        """One line: the cells one after the other, as they are."""
        if self._console is None:
            print("".join(cell.text for cell in cells))
        else:
            from rich.text import Text

            self._console.print(Text.assemble(*((cell.text, cell.style) for cell in cells)))


def format_size(size: int) -> str:
    """A number of bytes for people: `17 B`, `1.2 KiB`, `3.4 GiB`."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(amount) < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """A span of time for people, its two largest units: `12s`, `3m 4s`, `2d 5h`."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
