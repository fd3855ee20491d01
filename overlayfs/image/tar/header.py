"""What do the 512 bytes of a tar header say? ustar, GNU and V7 headers. Raises ValueError with the fault."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from msgspec import Struct

BLOCK: Final = 512
_FIELDS: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_USTAR, _GNU = b"ustar\x0000", b"ustar  \x00"
_BASE_256: Final = 0x80


class Header(Struct, frozen=True):
    """The decoded fields of a header; `block` is the raw header, for formats with further fields."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    flag: bytes
    link: bytes
    device: tuple[int, int]
    block: bytes


def parse_header(block: bytes) -> Header:
    name, mode, uid, gid, size, mtime, checksum, flag, link, magic, _, _, major, minor, prefix, _ = _FIELDS.unpack(
        block
    )
    _check_sum(block, number(checksum))
    name = name.partition(b"\0")[0]
    if magic == _USTAR and prefix[0]:
        name = prefix.partition(b"\0")[0] + b"/" + name
    has_device = flag in (b"3", b"4") and magic in (_USTAR, _GNU)
    return Header(
        name,
        number(mode) & 0o7777,
        number(uid),
        number(gid),
        number(size),
        signed_number(mtime),
        flag,
        link.partition(b"\0")[0],
        (number(major), number(minor)) if has_device else (0, 0),
        block,
    )


def _check_sum(block: bytes, expected: int) -> None:
    """The sum of all bytes, with the checksum field as blanks; old writers summed signed bytes."""
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    if unsigned != expected:
        signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if signed != expected:
            raise ValueError("the checksum of the header is wrong")


def number(text: bytes) -> int:
    """Octal digits among blanks and NULs, or base 256 where the first bit is set. Never negative."""
    value = signed_number(text)
    if value < 0:
        raise ValueError("a number in the header is negative")
    return value


@lru_cache(4096)  # owners, modes and times repeat: a third of the time of reading headers
def signed_number(text: bytes) -> int:
    if text[0] & _BASE_256:
        value = int.from_bytes(text, "big") & ((1 << (8 * len(text) - 1)) - 1)
        return value - (1 << (8 * len(text) - 1)) if text[0] & 0x40 else value
    digits = text.strip(b" \0")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise ValueError("a number in the header is malformed")
    return int(digits, 8)
