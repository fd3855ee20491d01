"""Which paths do the patterns of COPY and of an ignore file match? Go's filepath.Match with `**`, as in docker.

Paths are relative, without a leading slash. Pure; raises InvalidError for a bad pattern.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from ...image.oci.errors import InvalidError

_MAGIC: Final = re.compile(r"[*?\[\\]")
_TOKEN: Final = re.compile(
    r"(?P<tree>\*\*/)|(?P<any>\*\*)|(?P<star>\*)|(?P<one>\?)|\\(?P<escaped>.)|(?P<set>\[(?:\\.|[^\]\\])+\])|(?P<rest>.)",
    re.DOTALL,
)


def has_magic(text: str) -> bool:
    return _MAGIC.search(text) is not None


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression for whole paths."""
    return re.compile("".join(_translated(found, pattern) for found in _TOKEN.finditer(pattern)), re.DOTALL)


def _translated(found: re.Match[str], pattern: str) -> str:
    match found.lastgroup:
        case "tree":
            return r"(?:[^/]+/)*"
        case "any":
            return ".*"
        case "star":
            return "[^/]*"
        case "one":
            return "[^/]"
        case "set":
            inner = found["set"][1:-1]
            is_negated = inner.startswith(("^", "!"))
            return f"(?!/)[{'^' if is_negated else ''}{inner[is_negated:].replace('[', chr(92) + '[')}]"
        case "rest" if found["rest"] == "[":
            raise InvalidError(f"{pattern!r} is no pattern: a [ is not closed")
    return re.escape(found["escaped"] or found["rest"])


@dataclass(frozen=True, slots=True)
class Ignored:
    """The paths that an ignore file leaves out: the last pattern that matches a path, or a directory above it, counts;
    `!` takes back."""

    rules: tuple[tuple[bool, re.Pattern[str]], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        lines = (line.strip() for line in text.removeprefix("\ufeff").splitlines() if not line.startswith("#"))
        return cls.of(filter(None, lines))

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Self:
        rules = []
        for pattern in patterns:
            bare = pattern.removeprefix("!").strip()
            path = posixpath.normpath("/" + bare).lstrip("/")
            if path:  # a pattern of the root means nothing
                rules.append((not pattern.startswith("!"), compiled(path)))
        return cls(tuple(rules))

    @property
    def takes_back(self) -> bool:
        """Whether files in an ignored directory may be there all the same."""
        return not all(is_ignored for is_ignored, _ in self.rules)

    def covers(self, path: str) -> bool:
        if not self.rules:
            return False
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return next((is_ignored for is_ignored, rule in reversed(self.rules) if any(map(rule.fullmatch, above))), False)
