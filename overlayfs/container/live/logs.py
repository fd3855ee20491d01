"""What has a program written? Its log, by conmon or `foreground_log`, in the format of Kubernetes' CRI.

A line is `TIME STREAM TAG TEXT`: an RFC 3339 time with nanoseconds, stdout or stderr, and F for a whole line or P for a
part without its newline (Kubernetes, design-proposals/node/kubelet-cri-logging.md).
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from ...image.oci.errors import InvalidError

_SPAN: Final = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,11}(\.[0-9]{1,9})?", re.ASCII)


class Entry(Struct, frozen=True):
    """One piece of output; `text` has the newline of a whole line."""

    time: bytes
    is_error: bool
    text: bytes

    @property
    def is_whole(self) -> bool:
        return self.text.endswith(b"\n")


def entry_of(line: bytes) -> Entry | None:
    """The entry of one line of the log; None for a line that a crash has damaged."""
    fields = line.rstrip(b"\n").split(b" ", 3)
    if len(fields) != 4 or fields[1] not in (b"stdout", b"stderr") or fields[2] not in (b"F", b"P"):
        return None
    return Entry(fields[0], fields[1] == b"stderr", fields[3] + (b"\n" if fields[2] == b"F" else b""))


def lines_of(data: bytes, *, is_error: bool) -> bytes:
    """The lines of the log for what was written now."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    start = f"{moment}.{nanoseconds:09}+00:00 {'stderr' if is_error else 'stdout'} ".encode()
    whole, newline, part = data.rpartition(b"\n")
    # one pass without a loop over lines: they may be many
    text = start + b"F " + whole.replace(b"\n", b"\n" + start + b"F ") + b"\n" if newline else b""
    return text + start + b"P " + part + b"\n" if part else text


def entries(lines: Iterable[bytes]) -> Iterator[Entry]:
    return (entry for line in lines if (entry := entry_of(line)) is not None)


def last(found: Iterable[Entry], count: int) -> Iterator[Entry]:
    """The entries of the last `count` lines, whichever stream they are of; a line's pieces stay together."""
    kept: deque[list[Entry]] = deque(maxlen=count)
    open_lines: dict[bool, list[Entry]] = {}
    for entry in found:
        line = open_lines.pop(entry.is_error, None)
        if line is None:
            line = []
            kept.append(line)
        line.append(entry)
        if not entry.is_whole:
            open_lines[entry.is_error] = line
    return (entry for pieces in kept for entry in pieces)


def is_since(entry: Entry, since: datetime) -> bool:
    """Whether it was written at or after `since`; a time that cannot be read counts as late."""
    text = entry.time.decode("ascii", "replace")
    found = re.fullmatch(r"(.{19})(\.[0-9]+)?(Z|[+-][0-9:]+)", text)
    if found is None:
        return True
    try:
        return datetime.fromisoformat(f"{found[1]}{(found[2] or '.0')[:7].ljust(7, '0')}{found[3]}") >= since
    except ValueError:
        return True


def since_of(text: str) -> datetime:
    """A time (RFC 3339, or seconds since 1970), or a span until now (`10m`, `1h30m`). Raises InvalidError."""
    if _SECONDS.fullmatch(text):
        return datetime.fromtimestamp(float(text), UTC)
    found = _SPAN.fullmatch(text)
    if found is not None and text:
        hours, minutes, seconds = (int(number or 0) for number in found.groups())
        return datetime.now(UTC) - timedelta(hours=hours, minutes=minutes, seconds=seconds)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidError(f"{text[:60]!r} is no time: as in 10m, 2026-01-31T12:00:00Z or seconds since 1970") from None
    return time if time.tzinfo else time.astimezone()
