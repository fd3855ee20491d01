"""Tars made byte by byte: what no library would write."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

END = bytes(1024)
USTAR, GNU, V7 = b"ustar\x0000", b"ustar  \x00", bytes(8)
FILE, LINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO = (b"%d" % number for number in range(7))

Field = int | bytes


def field(value: Field, width: int) -> bytes:
    """A number as octal digits, or the very bytes."""
    return value.ljust(width, b"\0") if isinstance(value, bytes) else b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    return (value & ((1 << (8 * width)) - 1) | 1 << (8 * width - 1)).to_bytes(width, "big")


def header(
    name: bytes,
    kind: bytes = FILE,
    size: Field = 0,
    *,
    mode: Field = 0o644,
    uid: Field = 0,
    gid: Field = 0,
    mtime: Field = 1_600_000_000,
    link: bytes = b"",
    magic: bytes = USTAR,
    device: tuple[Field, Field] = (0, 0),
    prefix: bytes = b"",
    checksum: Field | None = None,
) -> bytes:
    """One header block."""
    parts = [
        name[:100].ljust(100, b"\0"),
        field(mode, 8) + field(uid, 8) + field(gid, 8) + field(size, 12) + field(mtime, 12),
        b" " * 8,
        kind + link[:100].ljust(100, b"\0") + magic + bytes(64),
        field(device[0], 8) + field(device[1], 8) + prefix.ljust(167, b"\0"),
    ]
    parts[2] = b"%06o\0 " % sum(b"".join(parts)) if checksum is None else field(checksum, 8)
    return b"".join(parts)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    return header(name, FILE, len(data), **fields) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **fields: object) -> bytes:
    return header(name, DIRECTORY, mode=mode, **fields)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes) -> bytes:
    return header(name, SYMLINK, mode=0o777, link=target)


def link(name: bytes, target: bytes) -> bytes:
    return header(name, LINK, link=target)


def record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def extended(data: bytes, kind: bytes = b"x") -> bytes:
    """A header before a header, with any content."""
    return header(b"PaxHeaders/x", kind, len(data)) + padded(data)


def pax(records: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    pairs = records.items() if isinstance(records, Mapping) else records
    return extended(b"".join(record(key, value) for key, value in pairs), kind)


def xattrs(values: Mapping[bytes, bytes]) -> bytes:
    return pax({b"SCHILY.xattr." + name: value for name, value in values.items()})


def gnu_long(data: bytes, kind: bytes = b"L") -> bytes:
    return header(b"././@LongLink", kind, len(data), magic=GNU) + padded(data)


def tar(*members: bytes) -> bytes:
    return b"".join(members) + END


def gnu_sparse(name: bytes, extents: Iterable[tuple[int, int]], size: int, data: bytes, *, more: bool = False) -> bytes:
    """GNU's old sparse header with up to four extents."""
    block = bytearray(header(name, b"S", len(data), magic=GNU))
    area = b"".join(b"%011o\0%011o\0" % extent for extent in extents)
    block[386 : 386 + len(area)] = area
    block[482] = more
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + padded(data)


assert len(header(b"x")) == 512 and struct.calcsize("512s") == 512
