"""The tar reader: whatever it is given, it says what is there or that it is invalid."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayfs.image.layer.disk_format import RealFormat
from overlayfs.image.layer.unpack import Unpacker
from overlayfs.image.oci.errors import ImageError
from overlayfs.image.store.staging import remove_tree
from overlayfs.image.tar.reader import Entry, TarReader
from tests.image.layer.hostile.case import SMALL
from tests.image.tars import directory, file, gnu_long, link, pax, symlink, tar, xattrs

VALID = tar(
    directory(b"./"),
    directory(b"d", 0o700, uid=1),
    xattrs({b"user.a": b"b"}),
    file(b"d/f", b"x" * 700),
    link(b"d/h", b"d/f"),
    gnu_long(b"n" * 150 + b"\0"),
    symlink(b"l", b"d"),
    pax({b"GNU.sparse.size": b"4000", b"GNU.sparse.map": b"0,3,3000,2", b"path": b"s", b"mtime": b"1.5"}),
    file(b"s", b"xyzab"),
    file(b"e/.wh.x"),
)
PAYLOADS = [
    b"\0",
    b"\xff",
    b"/",
    b"..",
    b"../../",
    b"9" * 12,
    b"\x80" + bytes(10) + b"\x01",
    b"\xff" * 12,
    b".wh.",
    b"x",
    b"S",
]


def entries(data: bytes, step: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    reader = TarReader((data[at : at + step] for at in range(0, len(data), step)), SMALL)
    return [(entry, b"".join(map(bytes, reader.read_data()))) for entry in reader]


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 4096])
def test_pieces_may_be_of_any_size(step: int) -> None:
    assert entries(VALID, step) == entries(VALID)


def test_data_that_is_not_read_is_passed_over() -> None:
    reader = TarReader([VALID], SMALL)
    assert [entry.path for entry in reader] == [entry.path for entry, _ in entries(VALID)]


def test_data_that_is_read_in_part_is_passed_over() -> None:
    reader = TarReader((VALID[at : at + 100] for at in range(0, len(VALID), 100)), SMALL)
    assert len([next(reader.read_data(), b"") for _ in reader]) == len(entries(VALID))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=60),
            st.binary(max_size=1500),
            st.integers(0, 0o7777),
            st.integers(0, 0o7777777),
            st.integers(0, 1 << 32),
        ),
        max_size=5,
    )
)
def test_reads_what_pythons_library_writes(form: int, members: list[tuple[str, bytes, int, int, int]]) -> None:
    longest = 100 if form == tarfile.USTAR_FORMAT else 240  # bytes: of a ustar name without a slash
    members = [member for member in members if member[0].strip(".") and len(member[0].encode()) <= longest]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8") as archive:
        for name, data, mode, uid, mtime in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid, member.mtime = len(data), mode, uid, mtime
            archive.addfile(member, io.BytesIO(data))
    expected = [(name.encode(), data, mode, uid, mtime * 10**9) for name, data, mode, uid, mtime in members]
    assert [(e.path, data, e.mode, e.uid, e.mtime_ns) for e, data in entries(out.getvalue())] == expected


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.sampled_from(PAYLOADS)), min_size=1, max_size=3),
    st.booleans(),
)
def test_damaged_tar_is_refused_or_contained(damages: list[tuple[int, bytes]], has_right_sums: bool) -> None:
    data = bytearray(VALID)
    for at, payload in damages:
        data[at : at + len(payload)] = payload
    if has_right_sums:
        _correct_sums(data, damages)
    with tempfile.TemporaryDirectory() as top:
        root = Path(top, "root")
        root.mkdir()
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        message = ""
        try:
            Unpacker(fd, RealFormat(), None, SMALL).run(TarReader([bytes(data)], SMALL))
        except ImageError as error:
            message = str(error)
        finally:
            os.close(fd)
            remove_tree(root)
        assert "\n" not in message
        assert os.listdir(top) == []


def _correct_sums(data: bytearray, damages: list[tuple[int, bytes]]) -> None:
    """Let the blocks that were damaged pass for headers."""
    for at, _ in damages:
        start = at - at % 512
        block = data[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(block)
