"""Logs: whole lines and parts, the last lines, times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from overlayfs.container.live import logs
from overlayfs.image.oci.errors import InvalidError

T1, T2 = b"2026-11-29T01:43:59.742419338+00:00", b"2026-11-29T01:44:00.000000001Z"


def entry(text: bytes, *, is_error: bool = False, time: bytes = T1) -> logs.Entry:
    return logs.Entry(time, is_error, text)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (T1 + b" stdout F a b  c", entry(b"a b  c\n")),
        (T1 + b" stderr P ", entry(b"", is_error=True)),
        (T1 + b" stdout F ", entry(b"\n")),
        (T1 + b" stdout F", None),
        (T1 + b" stdlog F x", None),
        (T1 + b" stdout X x", None),
        (b"", None),
        (b"\x00\x00\x00", None),
    ],
)
def test_line_of_the_log(line: bytes, wanted: logs.Entry | None) -> None:
    assert logs.entry_of(line) == wanted


@pytest.mark.parametrize("data", [b"a\n", b"a\n\nb\n", b"a\nb", b"b", b"\n", b"\0\r\n\xff"])
def test_what_is_logged_is_what_was_written(data: bytes) -> None:
    lines = logs.lines_of(data, is_error=True)
    found = list(logs.entries(lines.splitlines(keepends=True)))
    assert b"".join(one.text for one in found) == data and all(one.is_error for one in found)
    assert [one.is_whole for one in found[:-1]] == [True] * (len(found) - 1)
    assert logs.is_since(found[0], datetime.now(UTC) - timedelta(minutes=1))
    assert not logs.is_since(found[0], datetime.now(UTC) + timedelta(minutes=1))


def test_pieces_of_a_line_count_once_and_streams_do_not_mix() -> None:
    found = [entry(b"a\n"), entry(b"b"), entry(b"e\n", is_error=True), entry(b"c\n"), entry(b"d")]
    assert [one.text for one in logs.last(found, 3)] == [b"b", b"c\n", b"e\n", b"d"]
    assert [one.text for one in logs.last(found, 1)] == [b"d"]
    assert [one.text for one in logs.last(found, 9)] == [b"a\n", b"b", b"c\n", b"e\n", b"d"]


def test_times() -> None:
    since = logs.since_of("2026-11-29T01:44:00Z")
    assert not logs.is_since(entry(b"x", time=T1), since)
    assert logs.is_since(entry(b"x", time=T2), since)
    assert logs.is_since(entry(b"x", time=b"no time"), since)
    assert logs.since_of("86400.5") == datetime(1970, 1, 2, 0, 0, 0, 500000, UTC)
    before = datetime.now(UTC)
    assert before <= logs.since_of("1h2m3s") + timedelta(hours=1, minutes=2, seconds=3) <= datetime.now(UTC)


@pytest.mark.parametrize("text", ["", "soon", "10x", "2026-99-01", "9" * 40])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="is no time"):
        logs.since_of(text)
