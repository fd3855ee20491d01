"""How are changes shown as a patch for `git apply` and `patch -p1`?

The extended headers are git's (git-diff documentation, "Generating patch text with -p"). Attributes that a patch cannot
hold (owners, times, xattrs, devices, directories) are left out; `overlayfs diff --json` has them.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Protocol

from overlayfs.cli.output import Cell, Lines, is_terminal, printable
from overlayfs.overlay.changes import Change, Version

_LARGEST_TEXT = 1 << 20
_UNSAFE = re.compile(rb'[\x00-\x1f"\\\x7f-\xff]')
_ESCAPES = {7: b"a", 8: b"b", 9: b"t", 10: b"n", 11: b"v", 12: b"f", 13: b"r", 34: b'"', 92: b"\\"}


class Changed(Protocol):
    """What a patch needs besides the changes: the bytes of files, and the entries of removed directories."""

    def open_data(self, version: Version) -> int: ...

    def gone_with(self, change: Change) -> Iterator[Change]: ...


def print_patch(changes: Iterable[Change], comparison: Changed) -> None:
    """One patch of all changes: bytes to a pipe, coloured and safe text to a terminal."""
    lines = Lines() if is_terminal() else None
    for change in _expanded(changes, comparison):
        for line in patch_of(change, comparison):
            if lines is None:
                sys.stdout.buffer.write(line + b"\n")
            else:
                text, _, _ = line.partition(b"\t") if line.startswith((b"---", b"+++")) else (line, b"", b"")
                lines.print(Cell(printable(text.replace(b"\t", b"    ")), _style(line)))
    sys.stdout.flush()


def _expanded(changes: Iterable[Change], comparison: Changed) -> Iterator[Change]:
    """The changes with deleted directories file by file, before the files that replace them."""
    for change in changes:
        yield from comparison.gone_with(change)
        yield change


def _style(line: bytes) -> str:
    if line.startswith((b"diff ", b"---", b"+++", b"new ", b"old ", b"deleted ", b"index ")):
        return "bold"
    return {b"+": "green", b"-": "red", b"@": "cyan"}.get(line[:1], "")


def patch_of(change: Change, comparison: Changed) -> Iterator[bytes]:
    """The lines of one change, without newlines; none for a change that a patch cannot hold."""
    before, after = _content(change.before, comparison), _content(change.after, comparison)
    if before is None and after is None:
        return
    if change.before is not None and change.after is not None and _kind(change.before) != _kind(change.after):
        # git too writes a changed type as a deletion and a creation
        yield from _patch(change.path, change.before, None, before, None)
        yield from _patch(change.path, None, change.after, None, after)
    else:
        yield from _patch(change.path, change.before, change.after, before, after)


def _kind(version: Version) -> int:
    return stat.S_IFMT(version.stat.mode)


def _content(version: Version | None, comparison: Changed) -> bytes | None:
    """The bytes that git stores: of a file, or the target of a symlink; None for other types."""
    if version is None:
        return None
    if version.target is not None:
        return version.target
    if not stat.S_ISREG(version.stat.mode):
        return None
    fd = comparison.open_data(version)
    with os.fdopen(fd, "rb") as stream:
        return stream.read(_LARGEST_TEXT + 1)


def _git_mode(version: Version) -> bytes:
    if version.target is not None:
        return b"120000"
    return b"100755" if version.stat.mode & 0o100 else b"100644"


def _patch(
    path: bytes, old: Version | None, new: Version | None, before: bytes | None, after: bytes | None
) -> Iterator[bytes]:
    old, new = (old if before is not None else None), (new if after is not None else None)
    header = list(_mode_lines(old, new))
    if not header and before == after and not _is_large(before):
        return
    names = _quote(b"a/" + path), _quote(b"b/" + path)
    yield b"diff --git %s %s" % names
    yield from header
    shown = (names[0] if old else b"/dev/null", names[1] if new else b"/dev/null")
    yield from _text_lines(shown, before or b"", after or b"")


def _mode_lines(old: Version | None, new: Version | None) -> Iterator[bytes]:
    if old is None and new is not None:
        yield b"new file mode " + _git_mode(new)
    elif new is None and old is not None:
        yield b"deleted file mode " + _git_mode(old)
    elif old is not None and new is not None and _git_mode(old) != _git_mode(new):
        yield b"old mode " + _git_mode(old)
        yield b"new mode " + _git_mode(new)


def _is_large(content: bytes | None) -> bool:
    return content is not None and len(content) > _LARGEST_TEXT


def _text_lines(names: tuple[bytes, bytes], before: bytes, after: bytes) -> Iterator[bytes]:
    if _is_large(before) or _is_large(after) or b"\0" in before or b"\0" in after:
        yield b"Binary files %s and %s differ" % names
        return
    old, new = map(_file_name, names)
    lines = difflib.diff_bytes(difflib.unified_diff, _split(before), _split(after), old, new, lineterm=b"")
    for line in lines:
        yield line.removesuffix(b"\n")
        if line[:1] in (b"+", b"-", b" ") and not line.endswith(b"\n") and not _is_header(line, names):
            yield b"\\ No newline at end of file"


def _split(content: bytes) -> list[bytes]:
    """Lines with their newlines; only a newline ends a line in a patch."""
    *whole, rest = content.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _file_name(name: bytes) -> bytes:
    """The name in a patch header; a tab ends a name with a space, as patch(1) would read the rest as a date."""
    return name + b"\t" if b" " in name and not name.startswith(b'"') else name


def _is_header(line: bytes, names: tuple[bytes, bytes]) -> bool:
    return line in (b"--- " + _file_name(names[0]), b"+++ " + _file_name(names[1]))


def _quote(name: bytes) -> bytes:
    """The name in quotes as git writes it: in C style if it has other bytes than printable ASCII."""
    if not _UNSAFE.search(name):
        return name
    escaped = _UNSAFE.sub(lambda m: b"\\" + _ESCAPES.get(m[0][0], b"%03o" % m[0][0]), name)
    return b'"' + escaped + b'"'
