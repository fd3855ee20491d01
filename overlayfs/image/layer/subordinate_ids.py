"""Which ids may a user assign to the users of a container? The subordinate ids of subuid(5) and subgid(5)."""

from __future__ import annotations

import pwd
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Subordinate(NamedTuple):
    """A range of `size` ids from `first`, assigned to a user by subuid(5) or subgid(5)."""

    first: int
    size: int


def subordinate_ids(file: Path, uid: int) -> Subordinate | None:
    """The first range that `file` (/etc/subuid or /etc/subgid) assigns to the user, by name or number."""
    names = {str(uid)}
    with suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if name in names and first.isdigit() and count.isdigit() and int(count):
            return Subordinate(int(first), int(count))
    return None
