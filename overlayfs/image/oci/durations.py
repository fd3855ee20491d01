"""What does a duration of Go mean, as `1m30s`? Dockerfiles and the options of containers have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from .errors import InvalidError

_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+", re.ASCII)
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_MOST_NS: Final = 2**63 - 1  # Go's time.Duration
_NS: Final[Mapping[str, int]] = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}


def nanoseconds(option: str, text: str) -> int:
    """The duration given to an option. Raises InvalidError."""
    if not _DURATION.fullmatch(text):
        raise InvalidError(f"--{option}={text} is no duration: 30s, 1m30s, 500ms")
    total = sum(float(number) * _NS[unit] for number, unit in _PART.findall(text))
    if total > _MOST_NS:
        raise InvalidError(f"--{option}={text[:40]} is too long: at most 292 years")
    return int(total)
