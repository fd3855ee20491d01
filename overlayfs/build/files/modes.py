"""Which permissions does --chmod give? Octal digits as they are, or the letters of chmod(1), as `u=rwX,go=rX`.

Dockerfile reference, COPY --chmod. A clause without `u`, `g`, `o` or `a` means all of them, whatever the umask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from ...image.oci.errors import InvalidError

Change = Callable[[int, bool], int]
"""The new permissions from those of a file, and whether it is a directory."""

_OCTAL: Final = re.compile(r"[0-7]{1,5}", re.ASCII)
_CLAUSE: Final = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)")
_ACTION: Final = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_WHO: Final[Mapping[str, int]] = {"u": 0o4700, "g": 0o2070, "o": 0o1007, "a": 0o7777}
_BITS: Final[Mapping[str, int]] = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}
_PLACE: Final[Mapping[str, int]] = {"u": 6, "g": 3, "o": 0}


def parse_mode(text: str) -> Change:
    """Raises InvalidError."""
    if _OCTAL.fullmatch(text) and int(text, 8) <= 0o7777:
        mode = int(text, 8)
        return lambda _mode, _is_directory: mode
    clauses = [_CLAUSE.fullmatch(clause) for clause in text.split(",")]
    if not all(clauses):
        raise InvalidError(f"--chmod={text}: give the permissions as octal digits, as 755, or as u=rwX,go=rX")
    actions = [(found[1] or "a", *action) for found in clauses if found for action in _ACTION.findall(found[2])]

    def change(mode: int, is_directory: bool) -> int:
        for who, operator, letters in actions:
            mode = _changed(mode, who, operator, letters, is_directory)
        return mode

    return change


def _changed(mode: int, who: str, operator: str, letters: str, is_directory: bool) -> int:
    whose = 0
    for letter in who:
        whose |= _WHO[letter]
    bits = _bits(mode, letters, is_directory) & whose
    if operator == "=":
        return mode & ~whose | bits
    return mode | bits if operator == "+" else mode & ~bits


def _bits(mode: int, letters: str, is_directory: bool) -> int:
    if letters in _PLACE:  # the permissions that another has
        return (mode >> _PLACE[letters] & 0o7) * 0o111
    bits = 0
    for letter in letters:
        if letter == "X":
            bits |= 0o111 if is_directory or mode & 0o111 else 0
        else:
            bits |= _BITS[letter]
    return bits
