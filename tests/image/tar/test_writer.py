"""Members as tar blocks: read back by Python's own reader, byte by byte where no reader would notice."""

from __future__ import annotations

import io
import tarfile

import pytest

from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.tar.reader import Entry
from overlayfs.image.tar.writer import END, header_blocks

S = 1_000_000_000


def read(entry: Entry) -> tarfile.TarInfo:
    blocks = header_blocks(entry)
    assert len(blocks) % 512 == 0
    body = bytes(-(-entry.size // 512) * 512) if entry.size < 1 << 20 else b""
    with tarfile.open(fileobj=io.BytesIO(blocks + body + END), errors="surrogateescape", encoding="utf-8") as archive:
        member = archive.next()
    assert member is not None
    return member


def test_plain_member_is_one_block() -> None:
    entry = Entry(path=b"etc/passwd", kind="f", mode=0o4755, uid=12, gid=34, size=5, mtime_ns=1_700_000_000 * S)
    assert len(header_blocks(entry)) == 512
    member = read(entry)
    assert (member.name, member.isreg(), member.mode, member.size) == ("etc/passwd", True, 0o4755, 5)
    assert (member.uid, member.gid, member.mtime, member.uname) == (12, 34, 1_700_000_000, "")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("f", tarfile.REGTYPE),
        ("d", tarfile.DIRTYPE),
        ("l", tarfile.SYMTYPE),
        ("h", tarfile.LNKTYPE),
        ("p", tarfile.FIFOTYPE),
        ("c", tarfile.CHRTYPE),
        ("b", tarfile.BLKTYPE),
    ],
)
def test_every_type(kind: str, expected: bytes) -> None:
    entry = Entry(path=b"x", kind=kind, target=b"to/y" if kind in "hl" else b"", device=(4095, 1048575))
    member = read(entry)
    assert member.type == expected
    assert (member.devmajor, member.devminor) == (4095, 1048575)
    assert member.linkname == ("to/y" if kind in "hl" else "")


@pytest.mark.parametrize(
    "path", [b"a" * 100, b"a" * 101, b"d/" * 700 + b"x", "ünïcode".encode(), b"raw\xff\xfe", b" x\ny=z ", b"x" * 255]
)
def test_names_come_back_byte_for_byte(path: bytes) -> None:
    member = read(Entry(path=path, kind="l", target=path))
    assert member.name.encode("utf-8", "surrogateescape") == path
    assert member.linkname.encode("utf-8", "surrogateescape") == path


def test_directory_ends_with_a_slash_and_the_root_is_a_dot() -> None:
    assert header_blocks(Entry(path=b"usr", kind="d")).startswith(b"usr/\0")
    assert header_blocks(Entry(path=b"", kind="d")).startswith(b"./\0")


@pytest.mark.parametrize(
    ("time_ns", "record"),
    [
        (1 * S, b""),
        (1 * S + 1, b" mtime=1.000000001\n"),
        (1 * S + 500_000_000, b" mtime=1.500000000\n"),
        (-1, b" mtime=-0.000000001\n"),
        (-2 * S, b" mtime=-2\n"),
        (8**11 * S, b" mtime=8589934592\n"),
        ((8**11 - 1) * S, b""),
    ],
)
def test_times_are_exact(time_ns: int, record: bytes) -> None:
    blocks = header_blocks(Entry(path=b"x", kind="f", mtime_ns=time_ns))
    assert record in blocks
    assert bool(record) == (len(blocks) > 512)


def test_numbers_too_large_for_the_header() -> None:
    entry = Entry(path=b"x", kind="f", uid=1 << 31, gid=(1 << 32) - 2, size=1 << 40)
    member = read(entry)
    assert (member.uid, member.gid, member.size) == (1 << 31, (1 << 32) - 2, 1 << 40)


def test_xattrs_hold_any_bytes() -> None:
    xattrs = {b"user.a": bytes(range(256)), b"security.capability": b"\n=\n", b"user.empty": b"", b"user.\xff": b"1"}
    blocks = header_blocks(Entry(path=b"x", kind="f", xattrs=xattrs))
    for name, value in xattrs.items():
        assert b"SCHILY.xattr." + name + b"=" + value + b"\n" in blocks


@pytest.mark.parametrize("size", [*range(80, 110), *range(970, 1000), 9980, 9990, 65536])
def test_record_counts_its_own_length(size: int) -> None:
    member = read(Entry(path=b"x", kind="f", xattrs={b"user.a": b"v" * size, b"user.b": b"w"}))
    assert member.pax_headers["SCHILY.xattr.user.a"] == "v" * size
    assert member.pax_headers["SCHILY.xattr.user.b"] == "w"


def test_order_of_xattrs_does_not_matter() -> None:
    forth = Entry(path=b"x", kind="f", xattrs={b"user.a": b"1", b"user.b": b"2"})
    back = Entry(path=b"x", kind="f", xattrs={b"user.b": b"2", b"user.a": b"1"})
    assert header_blocks(forth) == header_blocks(back)


def test_xattr_that_no_layer_can_hold() -> None:
    with pytest.raises(InvalidError, match=r"etc/x: no layer can hold the xattr 'user.a=b'"):
        header_blocks(Entry(path=b"etc/x", kind="f", xattrs={b"user.a=b": b""}))
