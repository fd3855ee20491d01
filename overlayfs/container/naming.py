"""What is a container called that nobody has named? By two words, as in docker."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

_FIRST: Final = (
    "amber",
    "bold",
    "brisk",
    "calm",
    "clever",
    "eager",
    "fair",
    "fond",
    "gentle",
    "keen",
    "lively",
    "merry",
)
_SECOND: Final = ("crane", "finch", "gecko", "heron", "ibex", "jay", "koala", "lark", "lynx", "otter", "robin")


def free_name(taken: Collection[str]) -> str:
    for _ in range(8):
        name = f"{_any(_FIRST)}-{_any(_SECOND)}"
        if name not in taken:
            return name
    return f"{name}-{os.urandom(3).hex()}"


def _any(words: tuple[str, ...]) -> str:
    """One of them by chance, without the imports of `secrets`: OpenSSL alone takes 7 ms."""
    return words[int.from_bytes(os.urandom(4), "big") % len(words)]
