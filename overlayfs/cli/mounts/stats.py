"""`overlayfs stats`: the requests of a mount, who answered them, and what its daemon holds in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

from overlayfs.cli.mounts.listing import status_of
from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.output import (
    Cell,
    Lines,
    format_size,
    is_terminal,
    print_json,
    print_table,
    printable,
    rich_table,
)

_KEYS = ("lane", "requests", "caches", "descriptors", "rss_bytes")


@dataclass(frozen=True, slots=True)
class Stats:
    """The counters of one mount: for each kind of request how many the lane answered and how many it forwarded."""

    has_lane: bool
    requests: dict[str, tuple[int, int]]
    inodes: int
    directories: int
    listings: int
    descriptors: int
    rss_bytes: int

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError if the document has no counters."""
        return cls(
            has_lane=bool(document["lane"]),
            requests={name: (int(n["lane"]), int(n["forwarded"])) for name, n in document["requests"].items()},
            inodes=int(document["caches"]["inodes"]),
            directories=int(document["caches"]["directories"]),
            listings=int(document["caches"]["listings"]),
            descriptors=int(document["descriptors"]),
            rss_bytes=int(document["rss_bytes"]),
        )

    @property
    def total(self) -> int:
        return sum(map(sum, self.requests.values()))


def show_stats(mountpoint: str, as_json: bool, every_s: float | None) -> None:
    """Show the counters once, or repeatedly until interrupted."""
    if as_json:
        document, _ = _read(mountpoint)
        print_json({key: document[key] for key in _KEYS})
    elif every_s is None:
        _print(_read(mountpoint)[1])
    else:
        with suppress(KeyboardInterrupt):
            _watch(mountpoint, every_s)


def _read(mountpoint: str) -> tuple[dict[str, Any], Stats]:
    entry, status = status_of(mountpoint)
    try:
        return status.document, Stats.parse(status.document)
    except (AttributeError, KeyError, TypeError, ValueError):
        where = printable(entry.mountpoint)
        raise CommandError(
            f"{where}: its daemon is overlayfs {status.version}, which does not count requests"
        ) from None


def _print(stats: Stats, rates: dict[str, float] | None = None) -> None:
    print_table(_headings(rates), _rows(stats, rates))
    for line in _summary(stats):
        Lines().print(line)


def _headings(rates: dict[str, float] | None) -> tuple[str, ...]:
    return ("REQUEST", "LANE", "FORWARDED", *(() if rates is None else ("PER SECOND",)))


def _rows(stats: Stats, rates: dict[str, float] | None) -> list[list[Cell]]:
    """The most frequent requests first."""
    return [
        [
            Cell(name, "bold"),
            Cell(str(lane), "green" if lane else "dim"),
            Cell(str(forwarded), "yellow" if forwarded else "dim"),
            *([Cell(f"{rates[name]:.0f}")] if rates is not None else []),
        ]
        for name, (lane, forwarded) in sorted(stats.requests.items(), key=lambda item: (-sum(item[1]), item[0]))
    ]


def _summary(stats: Stats) -> list[Cell]:
    by_lane = sum(lane for lane, _ in stats.requests.values())
    share = f"{100 * by_lane / stats.total:.1f} %" if stats.total else "none"
    asked = f"{stats.total} requests, {share} answered by the fast lane" if stats.has_lane else "the fast lane is off"
    held = (
        f"{stats.inodes} inodes, {stats.directories} directories, {stats.listings} listings,"
        f" {stats.descriptors} descriptors, {format_size(stats.rss_bytes)} of memory"
    )
    return [Cell(asked), Cell(held, "dim")]


def _watch(mountpoint: str, every_s: float) -> None:
    with ExitStack() as stack:
        show = _open_screen(stack) if is_terminal() else _print_more
        _, before = _read(mountpoint)
        seen_at = time.monotonic()
        show(before, dict.fromkeys(before.requests, 0.0))
        while True:
            time.sleep(every_s)
            _, stats = _read(mountpoint)
            now = time.monotonic()
            show(stats, _rates(before, stats, now - seen_at))
            before, seen_at = stats, now


def _rates(before: Stats, after: Stats, seconds: float) -> dict[str, float]:
    return {
        name: (sum(counts) - sum(before.requests.get(name, (0, 0)))) / seconds
        for name, counts in after.requests.items()
    }


def _print_more(stats: Stats, rates: dict[str, float]) -> None:
    _print(stats, rates)
    print(flush=True)


def _open_screen(stack: ExitStack) -> Callable[[Stats, dict[str, float]], None]:
    """A table that is redrawn in place until the stack is closed."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    live = stack.enter_context(Live(auto_refresh=False))

    def show(stats: Stats, rates: dict[str, float]) -> None:
        lines = (Text(cell.text, style=cell.style) for cell in _summary(stats))
        live.update(Group(rich_table(_headings(rates), _rows(stats, rates)), *lines), refresh=True)

    return show
