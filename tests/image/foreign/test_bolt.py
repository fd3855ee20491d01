"""Databases of bolt: as it writes them, laid out by hand, and damaged ones."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from overlayfs.image.foreign import bolt
from overlayfs.image.foreign.bolt import Bucket, open_database
from overlayfs.image.oci.errors import InvalidError, NotFoundError

SIZE = 4096
BRANCH, LEAF, META = 1, 2, 4
Entry = tuple[bytes, bytes, bool]


def page(number: int, kind: int, count: int, body: bytes, more: int = 0) -> bytes:
    return struct.pack("=QHHI", number, kind, count, more) + body


def leaf(entries: Sequence[Entry], number: int = 0, more: int = 0) -> bytes:
    """A page of entries: key, value, and whether the value is a bucket."""
    heads, bodies = b"", b""
    for index, (key, value, is_bucket) in enumerate(entries):
        position = 16 * (len(entries) - index) + len(bodies)
        heads += struct.pack("=IIII", is_bucket, position, len(key), len(value))
        bodies += key + value
    return page(number, LEAF, len(entries), heads + bodies, more)


def branch(number: int, children: Sequence[int]) -> bytes:
    heads = b"".join(
        struct.pack("=IIQ", 16 * (len(children) - index), 0, child) for index, child in enumerate(children)
    )
    return page(number, BRANCH, len(children), heads)


def inline(*entries: Entry) -> bytes:
    return struct.pack("=QQ", 0, 0) + leaf(entries)


def at(root: int) -> bytes:
    return struct.pack("=QQ", root, 0)


def meta(number: int, root: int, transaction: int, pages: int) -> bytes:
    fields = struct.pack("=IIIIQQQQQ", 0xED0CDAED, 2, SIZE, 0, root, 0, 2, pages, transaction)
    return page(number, META, 0, fields + struct.pack("=Q", bolt._fnv_1a(fields)))


def database(*pages: bytes, roots: tuple[int, int] = (3, 3), transactions: tuple[int, int] = (7, 6)) -> bytes:
    """Two meta pages, an empty list of free pages, and these pages, each as many whole ones as it needs."""
    laid = b"".join(part + bytes(-len(part) % SIZE) for part in pages)
    count = 3 + len(laid) // SIZE
    metas = [meta(number, roots[number], transactions[number], count) for number in (0, 1)]
    return b"".join(part.ljust(SIZE, b"\0") for part in (*metas, page(2, 16, 0, b""))) + laid


def everything(top: Bucket) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    pending = [(top, found)]
    while pending:
        bucket, into = pending.pop()
        for key, value in bucket.read().items():
            into[key] = {} if isinstance(value, Bucket) else value
            if isinstance(value, Bucket):
                pending.append((value, into[key]))
    return found


BIG = b"x" * 5000
SOUND = database(
    leaf([(b"inline", inline((b"deep", inline((b"k", b"v", False)), True)), True), (b"large", at(4), True)], 3),
    branch(4, [5, 7]),
    leaf([(b"a", BIG, False)], 5, more=1),
    leaf([(b"b", b"", False), (b"c", b"3", False)], 7),
)
CONTENT = {b"inline": {b"deep": {b"k": b"v"}}, b"large": {b"a": BIG, b"b": b"", b"c": b"3"}}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], Bucket]:
    def open_bytes(data: bytes) -> Bucket:
        (tmp_path / "db").write_bytes(data)
        return open_database(tmp_path / "db")

    return open_bytes


def test_buckets_in_entries_and_in_pages_are_read(opened: Callable[[bytes], Bucket]) -> None:
    top = opened(SOUND)
    assert everything(top) == CONTENT
    assert top.find(b"inline", b"deep") is not None
    assert top.find(b"inline", b"none", b"k") is None
    assert top.find(b"large", b"a") is None


@pytest.mark.parametrize(("transactions", "newest"), [((7, 6), b"one"), ((6, 7), b"two")])
def test_newest_state_counts(transactions: tuple[int, int], newest: bytes, opened: Callable[[bytes], Bucket]) -> None:
    pages = (leaf([(b"one", b"", False)], 3), leaf([(b"two", b"", False)], 4))
    assert everything(opened(database(*pages, roots=(3, 4), transactions=transactions))) == {newest: b""}


@pytest.mark.parametrize("damaged", [0, 1])
def test_state_before_counts_while_a_meta_page_is_half_written(damaged: int, opened: Callable[[bytes], Bucket]) -> None:
    pages = (leaf([(b"0", b"", False)], 3), leaf([(b"1", b"", False)], 4))
    data = bytearray(database(*pages, roots=(3, 4)))
    data[damaged * SIZE + 70] ^= 1
    assert everything(opened(bytes(data))) == {b"%d" % (1 - damaged): b""}


def test_state_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    path.write_bytes(SOUND)
    states = [
        database(leaf([(name, b"", False)], 3), transactions=(7 + 2 * n, 8 + 2 * n))
        for n, name in enumerate([b"x", b"y"])
    ]
    read = bolt._whole

    def written_meanwhile(*arguments: Any) -> bytearray:
        data = read(*arguments)
        if states:
            path.write_bytes(states.pop(0))
        return data

    monkeypatch.setattr(bolt, "_whole", written_meanwhile)
    assert everything(open_database(path)) == {b"y": b""}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SQLite format 3\0" + bytes(8000),
        SOUND[: 3 * SIZE],
        SOUND[: 4 * SIZE],
        SOUND[: 6 * SIZE],
        database(branch(3, [3])),
        database(branch(3, [4, 4]), branch(4, [3])),
        database(*(branch(number, [number + 1]) for number in range(3, 75)), leaf([], 75)),
        database(leaf([(b"up", at(3), True)], 3)),
        database(leaf([(b"far", at(99), True)], 3)),
        database(leaf([(b"meta", at(1), True)], 3)),
        database(leaf([(b"free", at(2), True)], 3)),
        database(leaf([(b"short", b"\0" * 15, True)], 3)),
        database(leaf([(b"empty", bytes(16), True)], 3)),
        database(page(3, LEAF, 65535, b"")),
        database(page(3, LEAF, 1, struct.pack("=IIII", 0, 16, 4, 0xFFFFFFFF))),
        database(page(3, LEAF, 1, b"", more=0xFFFFFFFF)),
        database(page(4, LEAF, 0, b"")),
        database(page(3, LEAF, 250, struct.pack("=IIII", 0, 0, 0, 90_000) * 250, more=23), bytes(SIZE * 23)),
    ],
)
def test_damaged_or_hostile_database_is_refused(data: bytes, opened: Callable[[bytes], Bucket]) -> None:
    with pytest.raises(InvalidError, match="damaged"):
        everything(opened(data))


def test_references_to_one_page_take_no_memory(opened: Callable[[bytes], Bucket]) -> None:
    data = database(branch(3, [3] * 65535).replace(page(3, BRANCH, 65535, b""), page(3, BRANCH, 65535, b"", 255)))
    top = opened(data)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidError, match="damaged"):
            top.read()
        assert tracemalloc.get_traced_memory()[1] < len(data)
    finally:
        tracemalloc.stop()


def test_any_damage_gives_content_or_one_error(opened: Callable[[bytes], Bucket]) -> None:
    chosen = random.Random(4)
    for _ in range(1500):
        data = bytearray(SOUND)
        for _ in range(chosen.randrange(1, 4)):
            start = chosen.randrange(len(SOUND) // SIZE) * SIZE
            data[start + chosen.randrange(96)] = chosen.choice((0, 1, 2, 0x7F, 0xFF))
        with suppress(InvalidError):
            assert isinstance(everything(opened(bytes(data))), dict)


def test_absent_database_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_database(tmp_path / "db")
