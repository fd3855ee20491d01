"""How is one member of a layer encoded as tar blocks?

POSIX.1-2001 pax (`pax` utility, "pax Interchange Format") over the ustar header, as Go's archive/tar, GNU tar and
libarchive read it. Deterministic: equal entries give equal bytes. No I/O; reader.py is the inverse.
"""

from __future__ import annotations

import struct
from typing import Final

from ..oci.errors import InvalidError
from .reader import Entry

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""The end marker of an archive."""

_XATTR: Final = b"SCHILY.xattr."
_TYPES: Final = {"f": b"0", "h": b"1", "l": b"2", "c": b"3", "b": b"4", "d": b"5", "p": b"6"}
# name, mode to mtime, checksum, type, link name, magic, user, group, device numbers
_HEADER: Final = struct.Struct("100s48s8s1s100s8s32s32s16s167x")
_NUMBERS: Final = b"%07o\0%07o\0%07o\0%011o\0%011o\0"  # mode, uid, gid, size, mtime
_NUMBERS_SIZE: Final = 48
_DEVICES: Final = b"%07o\0%07o\0"
_MAGIC: Final = b"ustar\x0000"
_NAME_SIZE: Final = 100
_MOST_7: Final = 8**7 - 1
_MOST_11: Final = 8**11 - 1
_MOST: Final = (_MOST_7, _MOST_7, _MOST_7, _MOST_11, _MOST_11)
_S: Final = 1_000_000_000


def header_blocks(entry: Entry) -> bytes:
    """The header of a member, after a pax header for values that ustar cannot hold. InvalidError names the member."""
    path = _stored_path(entry)
    records = _records(entry, path)
    header = _block(
        path,
        (entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns // _S),
        _TYPES[entry.kind],
        entry.target,
        entry.device,
    )
    if not records:
        return header
    extended = b"".join([_record(key, records[key]) for key in sorted(records)])
    before = _block(b"PaxHeaders/" + path[:80].rstrip(b"/"), (0o644, 0, 0, len(extended), 0), b"x")
    return b"".join((before, extended, padding(len(extended)), header))


def padding(size: int) -> bytes:
    """The zeros that fill the last block after so many bytes of data."""
    return bytes(-size % BLOCK)


def _records(entry: Entry, path: bytes) -> dict[bytes, bytes]:
    """Pax records for the values that ustar cannot hold; times are exact."""
    records = {_XATTR + _checked(name, entry): value for name, value in entry.xattrs.items()}
    if not _fits(path):
        records[b"path"] = path
    if not _fits(entry.target):
        records[b"linkpath"] = entry.target
    if entry.mtime_ns % _S or not 0 <= entry.mtime_ns <= _MOST_11 * _S:
        records[b"mtime"] = _time(entry.mtime_ns)
    if entry.uid > _MOST_7:
        records[b"uid"] = b"%d" % entry.uid
    if entry.gid > _MOST_7:
        records[b"gid"] = b"%d" % entry.gid
    if entry.size > _MOST_11:
        records[b"size"] = b"%d" % entry.size
    return records


def _checked(xattr: bytes, entry: Entry) -> bytes:
    if b"=" in xattr:
        name, path = xattr.decode(errors="backslashreplace"), entry.path.decode(errors="backslashreplace")
        raise InvalidError(
            f"{path}: no layer can hold the xattr {name!r}, with '=' in its name: setfattr -x removes it"
        )
    return xattr


def _stored_path(entry: Entry) -> bytes:
    """Directories end with a slash; the root is `./`."""
    return (entry.path or b".") + b"/" if entry.kind == "d" else entry.path


def _fits(name: bytes) -> bool:
    return len(name) <= _NAME_SIZE and name.isascii()


def _ascii(name: bytes) -> bytes:
    return name if name.isascii() else name.decode("ascii", "replace").encode("ascii", "replace")


def _time(time_ns: int) -> bytes:
    """Seconds since the epoch with as many decimals as are needed."""
    seconds, rest = divmod(abs(time_ns), _S)
    sign = b"-" if time_ns < 0 else b""
    return b"%s%d.%09d" % (sign, seconds, rest) if rest else b"%s%d" % (sign, seconds)


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where the length counts its own digits."""
    rest = b" %s=%s\n" % (key, value)
    size = len(rest) + len(str(len(rest)))
    return b"%d%s" % (size if len(str(size)) == size - len(rest) else size + 1, rest)


def _block(
    name: bytes,
    numbers: tuple[int, int, int, int, int],
    flag: bytes,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """One ustar header; the numbers are mode, uid, gid, size and mtime. Pax records hold values that do not fit."""
    name, link = _ascii(name)[:_NAME_SIZE], _ascii(link)[:_NAME_SIZE]
    octal = _NUMBERS % numbers
    if len(octal) != _NUMBERS_SIZE or min(numbers) < 0:
        octal = _NUMBERS % tuple(n if 0 <= n <= most else 0 for n, most in zip(numbers, _MOST, strict=True))
    devices = _DEVICES % device
    checksum = sum(b"".join((name, octal, b" " * 8, flag, link, _MAGIC, devices)))
    return _HEADER.pack(name, octal, b"%06o\0 " % checksum, flag, link, _MAGIC, b"", b"", devices)
