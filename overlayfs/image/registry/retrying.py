"""When is a failed request repeated? Exponential back-off with jitter, and Retry-After."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx
import trio

RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses after which a retry may succeed."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """The number of attempts and the waits between them, which double each time, less a random part of up to a half."""

    attempts: int = 5
    first_s: float = 0.5
    longest_s: float = 30.0
    patience_s: float = 120.0
    """The longest wait that a server may ask for."""
    sleep: Callable[[float], Awaitable[None]] = trio.sleep

    def pause_s(self, failures: int) -> float:
        """The wait after so many failures (at least 1) in a row."""
        wait = min(self.longest_s, self.first_s * 2 ** (failures - 1))
        return float(wait * random.uniform(0.5, 1.0))


def retry_after_s(response: httpx.Response) -> float | None:
    """The wait that Retry-After asks for, in seconds or as a date (RFC 9110, 10.2.3); None without the header."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
