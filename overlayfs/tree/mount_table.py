"""Which mounts does a mount namespace have? Read from /proc/PID/mountinfo, see proc(5)."""

from __future__ import annotations

from overlayfs._typing import NamedTuple


class MountEntry(NamedTuple):
    """One line of mountinfo. `device` is MAJOR:MINOR of the filesystem, the same in all namespaces that have it.

    `parent_id` is the `mount_id` of the mount that `mountpoint` lies in, 0 where that is not known. `root` is the path
    of what is mounted in the filesystem.
    `filesystem_options` are those of the filesystem, `options` those of this mount of it; `follows` is whether what is
    unmounted elsewhere is unmounted here: the mount is shared, or a slave.
    """

    mount_id: int
    device: bytes
    mountpoint: bytes
    filesystem_type: bytes
    source: bytes
    options: frozenset[bytes]
    filesystem_options: bytes = b""
    follows: bool = False
    parent_id: int = 0
    root: bytes = b"/"


def mount_entries(process: int | str = "self") -> list[MountEntry]:
    """All mounts of a process's namespace, in the order they were made: a later one covers an earlier."""
    with open(f"/proc/{process}/mountinfo", "rb") as lines:
        return [_parse(line) for line in lines]


def _parse(line: bytes) -> MountEntry:
    before, after = line.split(b" - ", 1)
    fields, tail = before.split(b" "), after.rstrip(b"\n").split(b" ", 2)
    return MountEntry(
        mount_id=int(fields[0]),
        device=fields[2],
        mountpoint=unescape(fields[4]),
        filesystem_type=tail[0],
        source=unescape(tail[1]),
        options=frozenset(fields[5].split(b",")),
        filesystem_options=tail[2] if len(tail) > 2 else b"",
        follows=any(field.startswith((b"shared:", b"master:")) for field in fields[6:]),
        parent_id=int(fields[1]),
        root=unescape(fields[3]),
    )


def unescape(text: bytes) -> bytes:
    """Undo the kernel's octal escapes of space, tab, newline and backslash."""
    start, *parts = text.split(b"\\")
    return start + b"".join(map(_unescaped, parts))


def _unescaped(part: bytes) -> bytes:
    """The byte of an escape, which is three octal digits after the backslash; anything else stays as it is."""
    digits = part[:3]
    if len(digits) < 3 or digits.strip(b"01234567") or digits > b"377":
        return b"\\" + part
    return bytes([int(digits, 8)]) + part[3:]
