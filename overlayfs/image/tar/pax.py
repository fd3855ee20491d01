"""What does a pax extended header say?

POSIX.1-2017, pax, "pax Extended Header"; SCHILY.xattr as in star(5), LIBARCHIVE.xattr as libarchive writes it, GNU
sparse formats 0.0 and 0.1. Raises ValueError with the fault.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

PATH: Final = b"path"
LINK_PATH: Final = b"linkpath"
SIZE, UID, GID, MTIME = b"size", b"uid", b"gid", b"mtime"
_SCHILY: Final = b"SCHILY.xattr."
_LIBARCHIVE: Final = b"LIBARCHIVE.xattr."
_SPARSE_EXTENT: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_LONGEST_XATTR_NAME: Final = 255
_LARGEST_XATTR: Final = 64 << 10  # linux/limits.h: XATTR_NAME_MAX, XATTR_SIZE_MAX
_TIME: Final = re.compile(rb"(-?)([0-9]{1,30})(?:\.([0-9]*))?")


@dataclass(slots=True)
class Records:
    """The records of a header. The last record of a name counts; an empty value removes the record.

    `extents` are the values of GNU.sparse.offset and .numbytes, in turn: in format 0.0 these repeat.
    """

    values: dict[bytes, bytes] = field(default_factory=dict)
    extents: list[bytes] = field(default_factory=list)

    def name(self, key: bytes) -> bytes | None:
        value = self.values.get(key)
        if value is not None and b"\0" in value:
            raise ValueError(f"NUL in the {key.decode()} of an extended header")
        return value

    def number(self, key: bytes) -> int | None:
        value = self.values.get(key)
        return None if value is None else number(value)

    def time_ns(self) -> int | None:
        value = self.values.get(MTIME)
        return None if value is None else time_ns(value)

    def xattrs(self) -> dict[bytes, bytes]:
        """By name; libarchive writes each in both spellings."""
        found: dict[bytes, bytes] = {}
        for key, value in self.values.items():
            if key.startswith(_SCHILY):
                found[key[len(_SCHILY) :]] = value
            elif key.startswith(_LIBARCHIVE):
                found.setdefault(unquote_to_bytes(key[len(_LIBARCHIVE) :]), _from_base64(value))
        for name, value in found.items():
            _check_xattr(name, value)
        return found


def parse(data: bytes) -> Records:
    """Each record is `LENGTH KEY=VALUE\\n`, LENGTH counting all of it in decimal."""
    records = Records()
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at : max(space, at)]
        end = at + int(digits) if digits.isdigit() else at
        if not at < space < end - 1 < len(data) or data[end - 1] != 0x0A:
            raise ValueError("malformed extended header")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise ValueError("malformed record in an extended header")
        _add(records, key, value)
        at = end
    return records


def _add(records: Records, key: bytes, value: bytes) -> None:
    if key in _SPARSE_EXTENT:
        if key != _SPARSE_EXTENT[len(records.extents) % 2]:
            raise ValueError("malformed sparse map")
        records.extents.append(value)
    elif value or key.startswith((_SCHILY, _LIBARCHIVE)):  # an xattr may be empty
        records.values[key] = value
    else:
        records.values.pop(key, None)


def number(text: bytes) -> int:
    """Decimal digits only: no sign, blank or underscore."""
    if not text.isdigit() or len(text) > 20:
        raise ValueError(f"malformed number {text[:40].decode('ascii', 'backslashreplace')!r}")
    return int(text)


def time_ns(text: bytes) -> int:
    """Decimal seconds since the epoch in ns: nine digits of the fraction count, the range is not limited."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"malformed time {text[:40].decode('ascii', 'backslashreplace')!r}")
    sign, seconds, fraction = match.groups()
    total = int(seconds) * 1_000_000_000 + int((fraction or b"").ljust(9, b"0")[:9])
    return -total if sign else total


def _from_base64(value: bytes) -> bytes:
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4))  # libarchive writes no padding
    except binascii.Error:
        raise ValueError("malformed xattr value") from None


def _check_xattr(name: bytes, value: bytes) -> None:
    if not name or len(name) > _LONGEST_XATTR_NAME or b"\0" in name:
        raise ValueError("an xattr's name is empty, has a NUL or more than 255 bytes")
    if len(value) > _LARGEST_XATTR:
        raise ValueError(f"the xattr {name.decode('utf-8', 'backslashreplace')} has more than 65536 bytes")
